//! Reading one file: the objects that matter, what was passed over, and what is wrong.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_saphyr::Spanned;

use crate::document::{self, Document, Header, ParseError};
use crate::resource::{FieldError, Kind, Resource};
use crate::{isthmus, mcs, pruned};

/// The most bytes a file may have.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// What a file holds.
#[derive(Debug, Default)]
pub struct FileReading {
    /// Objects with the line of the file at which each starts, in the file's order.
    pub objects: Vec<(u64, Arc<Resource>)>,
    /// Documents of kinds that mean nothing here, by `apiVersion` and `kind`, such as `apps/v1 Deployment`.
    pub passed_over: BTreeMap<String, u32>,
    /// What could not be read.
    pub problems: Vec<Problem>,
}

/// Something wrong with a manifest. Its text is `<file>:<line>: <field>: <what>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where.
    pub file: PathBuf,
    /// The line, from 1, where it is known.
    pub line: Option<u64>,
    /// The field's path, where it is known.
    pub field: Option<String>,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file.display().fmt(formatter)?;
        if let Some(line) = self.line {
            write!(formatter, ":{line}")?;
        }
        if let Some(field) = &self.field {
            write!(formatter, ": {field}")?;
        }
        write!(formatter, ": {}", self.what)
    }
}

/// Reads a file of manifests.
///
/// # Errors
/// The file cannot be opened or read. What is wrong inside is in [`FileReading::problems`].
pub fn read_file(path: &Path) -> io::Result<FileReading> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    let problem = |line, what: String| {
        let problem = Problem { file: path.to_owned(), line, field: None, what };
        FileReading { problems: vec![problem], ..FileReading::default() }
    };
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Ok(problem(None, format!("has more than {MAX_FILE_BYTES} bytes")));
    }
    Ok(match String::from_utf8(bytes) {
        Ok(text) => read_text(path, &text),
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let line = error.as_bytes()[..valid].iter().filter(|byte| **byte == b'\n').count() as u64 + 1;
            problem(Some(line), "is not UTF-8".to_owned())
        }
    })
}

/// Reads the text of a file of manifests; `file` is only named in problems.
#[must_use]
pub fn read_text(file: &Path, text: &str) -> FileReading {
    let mut reading = FileReading::default();
    for document in document::split(text) {
        let mut errors = Vec::new();
        if let Err(error) = read_document(document, &mut reading, &mut errors) {
            errors.push(error);
        }
        reading.problems.extend(errors.into_iter().map(|ParseError { line, field, what }| Problem {
            file: file.to_owned(),
            line,
            field,
            what,
        }));
    }
    reading
}

fn read_document(
    document: Document<'_>,
    reading: &mut FileReading,
    errors: &mut Vec<ParseError>,
) -> Result<(), ParseError> {
    let header: Option<Header> = document.parse()?;
    let Some(header) = header else { return Ok(()) };
    let missing = |field: &str| ParseError {
        line: Some(document.first_line()),
        field: Some(field.to_owned()),
        what: "missing".to_owned(),
    };
    let api_version = header.api_version.ok_or_else(|| missing("apiVersion"))?;
    let kind = header.kind.ok_or_else(|| missing("kind"))?;
    if (api_version.as_str(), kind.as_str()) == ("v1", "List") {
        return read_list(document, reading, errors);
    }
    match Kind::of(&api_version, &kind) {
        None => pass_over(reading, &api_version, &kind),
        Some(kind) => {
            let resource = read_object(kind, |kind| match kind {
                Kind::Namespace => document.parse().map(Whole::Namespace),
                Kind::Node => document.parse().map(Whole::Node),
                Kind::Pod => document.parse().map(Whole::Pod),
                Kind::Service => document.parse().map(Whole::Service),
                Kind::EndpointSlice => document.parse().map(Whole::EndpointSlice),
                Kind::ServiceExport => document.parse().map(Whole::ServiceExport),
                Kind::FailoverPolicy => document.parse().map(Whole::FailoverPolicy),
                Kind::AccessPolicy => document.parse().map(Whole::AccessPolicy),
            })
            .map_err(|error| match error {
                ReadError::Parse(error) => error,
                ReadError::Field(error) => ParseError {
                    line: document.line_of(&error.field).or_else(|| Some(document.first_line())),
                    field: Some(error.field),
                    what: error.what,
                },
            })?;
            reading.objects.push((document.first_line(), Arc::new(resource)));
        }
    }
    Ok(())
}

fn pass_over(reading: &mut FileReading, api_version: &str, kind: &str) {
    let name: String = format!("{api_version} {kind}").chars().take(200).collect();
    *reading.passed_over.entry(name).or_default() += 1;
}

/// `kind: List`: every item is an object of its own.
fn read_list(
    document: Document<'_>,
    reading: &mut FileReading,
    errors: &mut Vec<ParseError>,
) -> Result<(), ParseError> {
    #[derive(Deserialize)]
    struct List {
        #[serde(default)]
        items: Vec<Spanned<Value>>,
    }

    let list: List = document.parse()?;
    for (index, item) in list.items.into_iter().enumerate() {
        let line = document.lines_before + item.referenced.line();
        if let Err(error) = read_item(item.value, line, reading) {
            let field =
                error.field.map_or_else(|| format!("items[{index}]"), |field| format!("items[{index}].{field}"));
            let line = document.line_of(&field).map_or(line, |found| found.max(line));
            errors.push(ParseError { line: Some(line), field: Some(field), what: error.what });
        }
    }
    Ok(())
}

fn read_item(value: Value, line: u64, reading: &mut FileReading) -> Result<(), ParseError> {
    let text = |name: &str| {
        let missing = || ParseError { line: None, field: Some(name.to_owned()), what: "missing".to_owned() };
        value.get(name).and_then(Value::as_str).map(str::to_owned).ok_or_else(missing)
    };
    let (api_version, kind) = (text("apiVersion")?, text("kind")?);
    let Some(kind) = Kind::of(&api_version, &kind) else {
        pass_over(reading, &api_version, &kind);
        return Ok(());
    };
    let resource = read_object(kind, |kind| match kind {
        Kind::Namespace => from_value(value).map(Whole::Namespace),
        Kind::Node => from_value(value).map(Whole::Node),
        Kind::Pod => from_value(value).map(Whole::Pod),
        Kind::Service => from_value(value).map(Whole::Service),
        Kind::EndpointSlice => from_value(value).map(Whole::EndpointSlice),
        Kind::ServiceExport => from_value(value).map(Whole::ServiceExport),
        Kind::FailoverPolicy => from_value(value).map(Whole::FailoverPolicy),
        Kind::AccessPolicy => from_value(value).map(Whole::AccessPolicy),
    })
    .map_err(|error| match error {
        ReadError::Parse(error) => error,
        ReadError::Field(FieldError { field, what }) => ParseError { line: None, field: Some(field), what },
    })?;
    reading.objects.push((line, Arc::new(resource)));
    Ok(())
}

fn from_value<T: DeserializeOwned>(value: Value) -> Result<T, ParseError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let field = Some(error.path().to_string()).filter(|path| path != ".");
        ParseError { line: None, field, what: error.inner().to_string() }
    })
}

/// An object before it is pruned.
#[expect(clippy::large_enum_variant, reason = "one at a time, on the stack, for a moment")]
enum Whole {
    Namespace(core::Namespace),
    Node(core::Node),
    Pod(core::Pod),
    Service(core::Service),
    EndpointSlice(discovery::EndpointSlice),
    ServiceExport(mcs::ServiceExport),
    FailoverPolicy(isthmus::FailoverPolicy),
    AccessPolicy(isthmus::AccessPolicy),
}

enum ReadError {
    Parse(ParseError),
    Field(FieldError),
}

fn read_object(kind: Kind, parse: impl FnOnce(Kind) -> Result<Whole, ParseError>) -> Result<Resource, ReadError> {
    let pruned = match parse(kind).map_err(ReadError::Parse)? {
        Whole::Namespace(namespace) => pruned::Namespace::try_from(&namespace).map(Resource::Namespace),
        Whole::Node(node) => pruned::Node::try_from(&node).map(Resource::Node),
        Whole::Pod(pod) => pruned::Pod::try_from(&pod).map(Resource::Pod),
        Whole::Service(service) => pruned::Service::try_from(&service).map(Resource::Service),
        Whole::EndpointSlice(slice) => pruned::EndpointSlice::try_from(&slice).map(Resource::EndpointSlice),
        Whole::ServiceExport(export) => pruned::ServiceExport::try_from(&export).map(Resource::ServiceExport),
        Whole::FailoverPolicy(policy) => pruned::FailoverPolicy::try_from(&policy).map(Resource::FailoverPolicy),
        Whole::AccessPolicy(policy) => pruned::AccessPolicy::try_from(&policy).map(Resource::AccessPolicy),
    };
    pruned.map_err(ReadError::Field)
}
