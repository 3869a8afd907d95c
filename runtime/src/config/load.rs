//! From the merged document to the program's type, gathering every problem on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use figment::Error;
use figment::error::Kind;
use figment::value::{Tag, Value};

use super::Configuration;
use super::source::Sources;

/// How many problems are gathered before giving up on a document.
const MAX_PROBLEMS: usize = 64;

/// Everything wrong with a configuration, one line each: `source: field: what is wrong`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConfigurationError {
    /// Never empty.
    pub problems: Vec<String>,
}

impl fmt::Display for ConfigurationError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.problems.join("\n"))
    }
}

impl std::error::Error for ConfigurationError {}

/// Reads a program's configuration from its file and from the given environment, and checks it.
pub fn load<C: Configuration>(
    program: &str,
    file: &Path,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<C, ConfigurationError> {
    let single = |problem| ConfigurationError { problems: vec![problem] };
    let sources = Sources::read(program, file, environment).map_err(single)?;
    let document = sources.figment.find_value("").map_err(|error| single(error.to_string()))?;
    let configuration: C = Reader::new(&sources, document).read()?;
    let problems: Vec<String> =
        configuration.runtime().problems().into_iter().chain(configuration.problems()).collect();
    if problems.is_empty() {
        return Ok(configuration);
    }
    let locate = |problem: String| format!("{}: {problem}", sources.of_problem(&problem));
    Err(ConfigurationError { problems: problems.into_iter().map(locate).collect() })
}

impl Sources {
    fn named(&self, tag: Tag) -> String {
        self.figment.get_metadata(tag).map_or_else(|| self.file.clone(), |metadata| metadata.name.to_string())
    }

    /// The source of the field with which a problem's text begins; the file if it is in none.
    fn of_problem(&self, problem: &str) -> String {
        let field = problem.split([':', '[']).next().unwrap_or_default();
        self.figment.find_metadata(field).map_or_else(|| self.file.clone(), |metadata| metadata.name.to_string())
    }
}

/// Deserialises again and again, each time without what was found wrong, so that one run tells all: serde itself stops
/// at the first error.
struct Reader<'a> {
    sources: &'a Sources,
    document: Value,
    problems: Vec<String>,
    /// Fields taken out of the document: that they are missing now is no news.
    removed: BTreeSet<Vec<String>>,
    /// Elements taken out of each sequence: later ones have moved down by as many.
    removed_elements: BTreeMap<Vec<String>, usize>,
    /// What was wrong with a variable's value before it was tried as plain text.
    before_text: BTreeMap<Vec<String>, String>,
}

impl<'a> Reader<'a> {
    fn new(sources: &'a Sources, document: Value) -> Self {
        Self {
            sources,
            document,
            problems: Vec::new(),
            removed: BTreeSet::new(),
            removed_elements: BTreeMap::new(),
            before_text: BTreeMap::new(),
        }
    }

    fn read<C: Configuration>(mut self) -> Result<C, ConfigurationError> {
        loop {
            let error = match C::deserialize(&self.document) {
                Ok(configuration) if self.problems.is_empty() => return Ok(configuration),
                Ok(_) => break,
                Err(error) => error,
            };
            if self.retry_as_text(&error) {
                continue;
            }
            if !self.note(&error) || self.problems.len() >= MAX_PROBLEMS {
                break;
            }
        }
        Err(ConfigurationError { problems: self.problems })
    }

    /// A variable such as `…_NAME=5` was read as a number; where text is wanted, it is text.
    fn retry_as_text(&mut self, error: &Error) -> bool {
        let Kind::InvalidType(..) = error.kind else { return false };
        let Some(text) = self.sources.raw.get(&error.path) else { return false };
        let Some(value) = find(&mut self.document, &error.path) else { return false };
        if matches!(value, Value::String(..)) {
            return false;
        }
        *value = Value::String(value.tag(), text.clone());
        self.before_text.insert(error.path.clone(), error.kind.to_string());
        true
    }

    /// Records the error and takes its cause out of the document. False if reading on cannot tell more.
    fn note(&mut self, error: &Error) -> bool {
        let mut path = error.path.clone();
        if let Kind::MissingField(field) = &error.kind {
            path.push(field.to_string());
            if !self.removed.contains(&path) {
                self.report(&path, "is required");
            }
            // What lacks a field can only be left out as a whole.
            path.pop();
        } else {
            let what = self.before_text.remove(&path).unwrap_or_else(|| describe(&error.kind));
            self.report(&path, &what);
        }
        self.remove(path)
    }

    fn report(&mut self, path: &[String], what: &str) {
        let source = self.source(path);
        let shown = self.show(path);
        let field = if shown.is_empty() { String::new() } else { format!("{shown}: ") };
        self.problems.push(format!("{source}: {field}{what}"));
    }

    /// The source of the value at `path`, or of the nearest value around it that one source wrote.
    fn source(&mut self, path: &[String]) -> String {
        let tag =
            (0..=path.len()).rev().find_map(|depth| find(&mut self.document, &path[..depth]).map(|value| value.tag()));
        tag.map_or_else(|| self.sources.file.clone(), |tag| self.sources.named(tag))
    }

    /// `gateways[2].address`, with the positions that the author sees.
    fn show(&mut self, path: &[String]) -> String {
        let mut shown = String::new();
        for (depth, step) in path.iter().enumerate() {
            let sequence = &path[..depth];
            if let (Some(Value::Array(..)), Ok(index)) = (find(&mut self.document, sequence), step.parse::<usize>()) {
                let moved = self.removed_elements.get(sequence).copied().unwrap_or(0);
                shown.push_str(&format!("[{}]", index + moved));
            } else {
                let dot = if shown.is_empty() { "" } else { "." };
                shown.push_str(&format!("{dot}{step}"));
            }
        }
        shown
    }

    fn remove(&mut self, path: Vec<String>) -> bool {
        let Some((last, around)) = path.split_last() else { return false };
        let taken = match find(&mut self.document, around) {
            Some(Value::Dict(_, dict)) => dict.remove(last).is_some(),
            Some(Value::Array(_, elements)) => match last.parse::<usize>() {
                Ok(index) if index < elements.len() => {
                    elements.remove(index);
                    self.removed_elements
                        .retain(|sequence, _| !(sequence.len() > around.len() && sequence.starts_with(around)));
                    self.removed.retain(|field| !field.starts_with(around));
                    *self.removed_elements.entry(around.to_vec()).or_default() += 1;
                    return true;
                }
                _ => false,
            },
            _ => false,
        };
        self.removed.insert(path);
        taken
    }
}

fn find<'v>(value: &'v mut Value, path: &[String]) -> Option<&'v mut Value> {
    let Some((step, rest)) = path.split_first() else { return Some(value) };
    match value {
        Value::Dict(_, dict) => find(dict.get_mut(step)?, rest),
        Value::Array(_, elements) => find(elements.get_mut(step.parse::<usize>().ok()?)?, rest),
        _ => None,
    }
}

fn describe(kind: &Kind) -> String {
    match kind {
        Kind::UnknownField(_, []) => "is not a known field".to_owned(),
        Kind::UnknownField(_, known) => format!("is not a known field; known here: {}", known.join(", ")),
        Kind::UnknownVariant(found, known) => format!("{found:?} is not one of {}", known.join(", ")),
        other => other.to_string(),
    }
}
