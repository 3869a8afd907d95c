//! What the demo prints: colours and a live line on a terminal, plain lines elsewhere.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::Instant;

use anstyle::{AnsiColor, Style};

/// Where the story is told.
#[derive(Debug)]
pub struct Screen {
    terminal: bool,
    started: Instant,
    live: bool,
    silent: bool,
}

impl Screen {
    /// Standard output.
    #[must_use]
    pub fn new() -> Self {
        Self { terminal: std::io::stdout().is_terminal(), started: Instant::now(), live: false, silent: false }
    }

    /// Nowhere: for scenarios that look at what happened themselves.
    #[must_use]
    pub fn silent() -> Self {
        Self { terminal: false, started: Instant::now(), live: false, silent: true }
    }

    /// Whether somebody watches.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    fn paint(&self, style: Style, text: impl Display) -> String {
        if self.terminal { format!("{style}{text}{style:#}") } else { text.to_string() }
    }

    fn line(&mut self, text: &str) {
        let clear = if self.live { "\r\x1b[2K" } else { "" };
        self.live = false;
        self.write(&format!("{clear}{text}\n"));
    }

    fn write(&self, text: &str) {
        if self.silent {
            return;
        }
        let mut out = std::io::stdout().lock();
        // Whoever watched may have gone; the story's end still counts.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    /// A chapter begins.
    pub fn chapter(&mut self, title: &str) {
        let time = format!("{:5.1}s", self.started.elapsed().as_secs_f64());
        let time = self.paint(Style::new().dimmed(), time);
        let title = self.paint(Style::new().bold().fg_color(Some(AnsiColor::Cyan.into())), title);
        self.line(&format!("\n{time}  {title}"));
    }

    /// A command, as the operator types it.
    pub fn command(&mut self, command: &str) {
        let command = self.paint(Style::new().fg_color(Some(AnsiColor::Yellow.into())), format!("$ {command}"));
        self.line(&format!("        {command}"));
    }

    /// Something that is so.
    pub fn fact(&mut self, text: &str) {
        for line in text.trim_end().lines() {
            self.line(&format!("        {line}"));
        }
    }

    /// Something that is as expected.
    pub fn good(&mut self, text: &str) {
        let mark = self.paint(Style::new().fg_color(Some(AnsiColor::Green.into())), "ok");
        self.line(&format!("     {mark} {text}"));
    }

    /// Something that is not.
    pub fn bad(&mut self, text: &str) {
        let mark = self.paint(Style::new().bold().fg_color(Some(AnsiColor::Red.into())), "NOT AS EXPECTED:");
        self.line(&format!("  {mark} {text}"));
    }

    /// Replaces the live line; nothing where nobody watches.
    pub fn live(&mut self, text: &str) {
        if self.terminal {
            self.live = true;
            self.write(&format!("\r\x1b[2K        {text}"));
        }
    }

    /// A table's header or row.
    pub fn row(&mut self, text: &str, bold: bool) {
        let style = if bold { Style::new().bold() } else { Style::new() };
        let text = self.paint(style, text);
        self.line(&text);
    }
}

impl Default for Screen {
    fn default() -> Self {
        Self::new()
    }
}
