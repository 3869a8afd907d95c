//! Where configuration comes from: the file's document, and one document per environment variable, each under its name.

use std::collections::BTreeMap;
use std::path::Path;

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

use crate::last_good::read_if_present;

/// The longest configuration file that is read.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// All sources merged, and what is needed to name them.
pub(super) struct Sources {
    pub(super) figment: Figment,
    pub(super) file: String,
    /// The text of each environment variable by the path of its field, as its author wrote it.
    pub(super) raw: BTreeMap<Vec<String>, String>,
}

impl Sources {
    /// Reads the file and the variables; what cannot be read is told in one line.
    pub(super) fn read(
        program: &str,
        file: &Path,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, String> {
        let name = file.display().to_string();
        let document = read_document(file).map_err(|problem| format!("{name}: {problem}"))?;
        let mut figment = Figment::new().merge(Document { name: name.clone(), dict: document });
        let mut raw = BTreeMap::new();
        let prefix = format!("ISTHMUS_{}_", program.to_ascii_uppercase().replace('-', "_"));
        for (variable, text) in environment {
            let Some(field) = variable.strip_prefix(&prefix).filter(|field| !field.is_empty()) else { continue };
            if is_service_link(field, &text) {
                continue;
            }
            let path: Vec<String> = field.split("__").map(camel_case).collect();
            // As YAML, like the file; figment's own reader of variables panics on a quoted text that ends in a backslash.
            let value = serde_saphyr::from_str::<Value>(&text).unwrap_or_else(|_| Value::from(text.as_str()));
            figment = figment.merge(Document { name: variable.clone(), dict: nest(&path, value) });
            raw.insert(path, text);
        }
        Ok(Self { figment, file: name, raw })
    }
}

/// One source as figment wants it.
struct Document {
    name: String,
    dict: Dict,
}

impl Provider for Document {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(Profile::Default.collect(self.dict.clone()))
    }
}

fn read_document(file: &Path) -> Result<Dict, String> {
    let bytes = match read_if_present(file, MAX_FILE_BYTES) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Err("there is no such file".to_owned()),
        Err(error) => return Err(format!("cannot be read: {error}")),
    };
    let text = String::from_utf8(bytes).map_err(|error| format!("is not UTF-8: {error}"))?;
    match serde_saphyr::from_str::<Value>(&text) {
        Ok(Value::Dict(_, dict)) => Ok(dict),
        Ok(Value::Empty(..)) => Ok(Dict::new()),
        Ok(_) => Err("is not a mapping of fields".to_owned()),
        Err(error) => Err(format!("is not valid YAML: {}", error.without_snippet())),
    }
}

/// `DRAIN_DEADLINE` to `drainDeadline`.
fn camel_case(words: &str) -> String {
    let mut field = String::with_capacity(words.len());
    for (index, word) in words.split('_').enumerate() {
        let word = word.to_ascii_lowercase();
        let mut letters = word.chars();
        match letters.next() {
            Some(first) if index > 0 => {
                field.push(first.to_ascii_uppercase());
                field.push_str(letters.as_str());
            }
            _ => field.push_str(&word),
        }
    }
    field
}

fn nest(path: &[String], value: Value) -> Dict {
    match path {
        [] => Dict::new(),
        [field] => Dict::from([(field.clone(), value)]),
        [field, rest @ ..] => Dict::from([(field.clone(), Value::from(nest(rest, value)))]),
    }
}

/// Whether the variable is one of those that the kubelet sets for a Service named `isthmus-<program>[-…]`: they share
/// our prefix but are no configuration.
fn is_service_link(field: &str, text: &str) -> bool {
    let is_url = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| text.starts_with(scheme));
    let word = |wanted: &str| field == wanted || field.ends_with(&format!("_{wanted}"));
    let per_port = field
        .split('_')
        .zip(field.split('_').skip(1))
        .zip(field.split('_').skip(2))
        .any(|((a, b), c)| a == "PORT" && b.parse::<u16>().is_ok() && matches!(c, "TCP" | "UDP" | "SCTP"));
    word("SERVICE_HOST") || format!("_{field}").contains("_SERVICE_PORT") || (word("PORT") && is_url) || per_port
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_variable_become_one_field() {
        for (words, field) in [("ADMIN", "admin"), ("DRAIN_DEADLINE", "drainDeadline"), ("A_B_C", "aBC"), ("X1", "x1")]
        {
            assert_eq!(camel_case(words), field);
        }
    }

    #[test]
    fn variables_of_a_kubernetes_service_are_told_from_fields() {
        for (field, text) in [
            ("SERVICE_HOST", "10.0.0.1"),
            ("SERVICE_PORT", "15012"),
            ("SERVICE_PORT_GRPC", "15012"),
            ("PORT", "tcp://10.0.0.1:15012"),
            ("PORT_15012_TCP", "tcp://10.0.0.1:15012"),
            ("PORT_15012_TCP_ADDR", "10.0.0.1"),
            ("HEADLESS_SERVICE_HOST", "10.0.0.1"),
            ("HEADLESS_PORT_53_UDP_PROTO", "udp"),
        ] {
            assert!(is_service_link(field, text), "{field}");
        }
        for (field, text) in [
            ("PORT", "15012"),
            ("LISTEN", "127.0.0.1:1"),
            ("RUNTIME__OTLP__ENDPOINT", "http://127.0.0.1:4317"),
            ("SERVICES", "[a]"),
        ] {
            assert!(!is_service_link(field, text), "{field}");
        }
    }
}
