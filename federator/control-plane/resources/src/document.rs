//! One YAML document of a file: where it starts, what it is, and where a field of it stands.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeOwned, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Options, Spanned};

/// A document's text within its file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Document<'a> {
    pub(crate) text: &'a str,
    /// Lines of the file before it.
    pub(crate) lines_before: u64,
}

/// What a document could not be read for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ParseError {
    /// In the file, from 1.
    pub(crate) line: Option<u64>,
    pub(crate) field: Option<String>,
    pub(crate) what: String,
}

/// What every manifest starts with.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Header {
    #[serde(default)]
    pub(crate) api_version: Option<String>,
    #[serde(default)]
    pub(crate) kind: Option<String>,
}

/// Comments beside one another that the parser may hold; licences at the head of a list are long.
const COMMENT_LINES: usize = 10_000;

/// The documents of a file. A `---` at the start of a line begins one wherever it stands, `...` ends one (YAML 1.2, 9.1).
pub(crate) fn split(text: &str) -> Vec<Document<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 0, 0);
    for (number, line) in (0_u64..).zip(text.split_inclusive('\n')) {
        let ended = marker(line, "...");
        if ended || marker(line, "---") {
            documents.push(Document { text: &text[start..offset], lines_before: start_line });
            start = if ended { offset + line.len() } else { offset };
            start_line = if ended { number + 1 } else { number };
        }
        offset += line.len();
    }
    documents.push(Document { text: &text[start..], lines_before: start_line });
    documents.retain(|document| !document.is_empty());
    documents
}

fn marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

impl Document<'_> {
    /// Only markers, comments and blank lines.
    fn is_empty(&self) -> bool {
        self.text.lines().all(|line| {
            let line = line.strip_prefix("---").unwrap_or(line).trim();
            line.is_empty() || line.starts_with('#')
        })
    }

    /// Reads the document as a `T`, unknown fields passed over.
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> Result<T, ParseError> {
        let mut path = None;
        serde_saphyr::with_deserializer_from_str_with_options(self.text, options(), |deserializer| {
            serde_path_to_error::deserialize(deserializer).map_err(|error| {
                path = Some(error.path().to_string());
                error.into_inner()
            })
        })
        .map_err(|error| {
            let line = error.location().map(|location| location.line()).filter(|line| *line > 0);
            let field = path.filter(|path| path != ".");
            // The library names the wanted type but not what it met.
            let met =
                line.zip(field.as_ref()).and_then(|(line, _)| self.text.lines().nth(usize::try_from(line).ok()? - 1));
            let what = match met {
                Some(met) => format!("{} in {:?}", describe(&error), met.trim().chars().take(80).collect::<String>()),
                None => describe(&error),
            };
            ParseError { line: line.map(|line| self.lines_before + line), field, what }
        })
    }

    /// The line in the file of the field at `path`, such as `spec.ports[1].port`; of its nearest parent where the field
    /// itself is missing.
    pub(crate) fn line_of(&self, path: &str) -> Option<u64> {
        let segments = segments(path);
        let mut line = None;
        // An error only ends the search: what was found before it stands.
        let _ = serde_saphyr::with_deserializer_from_str_with_options(self.text, options(), |deserializer| {
            Locate { segments: &segments, line: &mut line }.deserialize(deserializer)
        });
        line.map(|line| self.lines_before + line)
    }

    /// The line of the file at which its content starts.
    pub(crate) fn first_line(&self) -> u64 {
        let blank = self.text.lines().take_while(|line| {
            let line = line.trim();
            line.is_empty() || line.starts_with('#') || line.starts_with("---")
        });
        self.lines_before + 1 + blank.count() as u64
    }
}

fn options() -> Options {
    serde_saphyr::options! {
        with_snippet: false,
        strict_booleans: true,
        budget: serde_saphyr::budget! { max_buffered_comment_events: COMMENT_LINES },
    }
}

/// The message without the position that the library puts into it: it counts from the document, we from the file.
fn describe(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or("cannot be read");
    let first = first.strip_prefix("error: ").unwrap_or(first);
    let position = first.rfind(" at line ").or_else(|| first.rfind(", line "));
    first[..position.unwrap_or(first.len())].chars().take(300).collect()
}

#[derive(Debug, PartialEq, Eq)]
enum Segment {
    Key(String),
    Index(usize),
}

/// Cuts `spec.ports[1].port`. A label's dots make a key that is not found: its parent's line is then the answer.
fn segments(path: &str) -> Vec<Segment> {
    let mut segments = Vec::new();
    for part in path.split('.') {
        let mut pieces = part.split('[');
        segments.extend(pieces.next().filter(|key| !key.is_empty()).map(|key| Segment::Key(key.to_owned())));
        segments.extend(pieces.filter_map(|piece| piece.strip_suffix(']')?.parse().ok()).map(Segment::Index));
    }
    segments
}

/// Walks down a path and notes the line of every step.
struct Locate<'a> {
    segments: &'a [Segment],
    line: &'a mut Option<u64>,
}

impl<'de> DeserializeSeed<'de> for Locate<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.segments.first() {
            None => IgnoredAny::deserialize(deserializer).map(|_| ()),
            Some(Segment::Key(_)) => deserializer.deserialize_map(self),
            Some(Segment::Index(_)) => deserializer.deserialize_seq(self),
        }
    }
}

impl<'de> Visitor<'de> for Locate<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a part of the path")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((Segment::Key(wanted), rest)) = self.segments.split_first() else { return Ok(()) };
        let mut first = true;
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            // Where the mapping starts, should the wanted key be missing.
            if std::mem::take(&mut first) {
                *self.line = Some(key.referenced.line());
            }
            if key.value == *wanted {
                *self.line = Some(key.referenced.line());
                map.next_value_seed(Locate { segments: rest, line: &mut *self.line })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        let Some((Segment::Index(wanted), rest)) = self.segments.split_first() else { return Ok(()) };
        for _ in 0..*wanted {
            if sequence.next_element::<IgnoredAny>()?.is_none() {
                return Ok(());
            }
        }
        sequence.next_element_seed(Locate { segments: rest, line: &mut *self.line })?;
        while sequence.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_cut_at_markers_and_empty_ones_left_out() {
        let text = "# licence\n---\na: 1\n--- # second\nb: |\n  ---\n  x\n...\n---\n\n# nothing\n---\nc: 3";
        let documents: Vec<_> = split(text).iter().map(|d| (d.lines_before, d.first_line(), d.text)).collect();
        assert_eq!(
            documents,
            [(1, 3, "---\na: 1\n"), (3, 5, "--- # second\nb: |\n  ---\n  x\n"), (11, 13, "---\nc: 3")]
        );
    }

    #[test]
    fn the_line_of_a_field_counts_from_the_file() {
        let text = "a: 1\n---\nspec:\n  ports:\n  - name: x\n    port: 1\n  - port: 2\n    name: y\n";
        let document = split(text)[1];
        let cases = [
            ("spec", Some(3)),
            ("spec.ports[0].port", Some(6)),
            ("spec.ports[1].name", Some(8)),
            ("spec.ports[1].missing", Some(7)),
            ("metadata.name", Some(3)),
        ];
        for (path, line) in cases {
            assert_eq!(document.line_of(path), line, "{path}");
        }
    }
}
