//! Standard output and standard error: tables, JSON, colours.
//!
//! Whoever reads may stop reading (`isthmus get imports | head -1`): that ends the command quietly. Text that others
//! wrote, a condition's message or a DNS record, cannot steer the terminal: control characters are shown, not sent.

use std::io::{self, IsTerminal as _, Write};

use anstyle::{AnsiColor, Style};
use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::arguments::{Format, When};
use crate::failure::Failure;

/// How something is doing, and so which colour it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Neither good nor bad.
    Plain,
    /// As it should be.
    Good,
    /// To be looked at.
    Doubtful,
    /// Not as it should be.
    Bad,
    /// Of less interest.
    Faint,
}

impl Tone {
    fn style(self) -> Style {
        match self {
            Self::Plain => Style::new(),
            Self::Good => AnsiColor::Green.on_default(),
            Self::Doubtful => AnsiColor::Yellow.on_default(),
            Self::Bad => AnsiColor::Red.on_default().bold(),
            Self::Faint => Style::new().dimmed(),
        }
    }
}

/// A text with its tone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Toned {
    text: String,
    tone: Tone,
}

impl Toned {
    /// A text with a tone.
    pub(crate) fn new(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: text.into(), tone }
    }

    /// Plain text, `-` when there is none.
    pub(crate) fn or_dash(text: impl Into<String>) -> Self {
        let text = text.into();
        if text.is_empty() { Self::new("-", Tone::Faint) } else { Self::new(text, Tone::Plain) }
    }
}

impl<T: Into<String>> From<T> for Toned {
    fn from(text: T) -> Self {
        Self::new(text, Tone::Plain)
    }
}

/// Where results go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    format: Format,
    coloured: bool,
}

impl Output {
    /// On this terminal, or pipe.
    pub(crate) fn new(format: Format, when: When) -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0");
        let coloured = match when {
            When::Always => true,
            When::Never => false,
            When::Auto if set("NO_COLOR") => false,
            When::Auto if set("CLICOLOR_FORCE") => true,
            When::Auto => io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb"),
        };
        Self { format, coloured }
    }

    /// JSON, or else what `text` writes.
    pub(crate) fn show(&self, value: &impl Serialize, text: impl FnOnce(&Self) -> String) -> Result<(), Failure> {
        match self.format {
            Format::Table => print(&text(self)),
            Format::Json => {
                let json = serde_json::to_string_pretty(value)
                    .map_err(|error| Failure::Stream { what: "standard output", source: error.into() })?;
                print(&(json + "\n"))
            }
        }
    }

    /// A text in its colour.
    pub(crate) fn paint(&self, toned: &Toned) -> String {
        let text = visible(&toned.text);
        let style = if self.coloured { toned.tone.style() } else { Style::new() };
        format!("{}{text}{}", style.render(), style.render_reset())
    }

    /// An aligned table without borders, as kubectl prints them.
    pub(crate) fn table(&self, header: &[&str], rows: Vec<Vec<Toned>>) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        if self.coloured {
            table.enforce_styling().style_text_only();
        } else {
            table.force_no_tty();
        }
        table.set_header(header.iter().map(|name| Cell::new(name).add_attribute(Attribute::Bold)));
        for row in rows {
            table.add_row(row.iter().map(cell));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 3));
        }
        table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
    }
}

fn cell(toned: &Toned) -> Cell {
    let cell = Cell::new(visible(&toned.text));
    match toned.tone {
        Tone::Plain => cell,
        Tone::Good => cell.fg(Color::DarkGreen),
        Tone::Doubtful => cell.fg(Color::DarkYellow),
        Tone::Bad => cell.fg(Color::DarkRed).add_attribute(Attribute::Bold),
        Tone::Faint => cell.add_attribute(Attribute::Dim),
    }
}

/// The text without anything that moves the cursor or changes the terminal's state.
pub(crate) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// To standard output. A reader that has gone is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::Stream { what: "standard output", source: error })
        }
        _ => Ok(()),
    }
}

/// A line to standard error. When that is gone, there is nobody left to tell.
pub(crate) fn note(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", visible(line));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(coloured: bool) -> String {
        let output = Output { format: Format::Table, coloured };
        let rows = vec![
            vec!["shop".into(), Toned::new("True", Tone::Good), Toned::or_dash("")],
            vec!["a-longer-one".into(), Toned::new("False", Tone::Bad), "x".into()],
        ];
        output.table(&["NAMESPACE", "READY", "NOTE"], rows)
    }

    #[test]
    fn tables_are_aligned_without_borders_or_trailing_space() {
        let expected = "NAMESPACE      READY   NOTE\nshop           True    -\na-longer-one   False   x\n";
        assert_eq!(table(false), expected);
    }

    #[test]
    fn colours_do_not_move_the_columns() {
        let coloured = table(true);
        assert!(coloured.contains("\u{1b}["), "{coloured:?}");
        let mut plain = String::new();
        let mut rest = coloured.as_str();
        while let Some((before, after)) = rest.split_once("\u{1b}[") {
            plain.push_str(before);
            rest = after.split_once('m').map_or("", |(_, rest)| rest);
        }
        plain.push_str(rest);
        let plain: String = plain.lines().map(|line| line.trim_end().to_owned() + "\n").collect();
        assert_eq!(plain, table(false));
    }

    #[test]
    fn others_text_cannot_steer_the_terminal() {
        let output = Output { format: Format::Table, coloured: true };
        let shown = output.table(&["NOTE"], vec![vec!["\u{1b}[2Jgone\r\nx".into()]]);
        assert!(shown.contains("\\u{1b}[2Jgone\\r\\nx"), "{shown:?}");
        assert_eq!(output.paint(&Toned::from("a\u{7}b")), "a\\u{7}b");
    }
}
