//! The conditions of ServiceExports and ServiceImports, with the reasons that the MCS API fixes.

use std::collections::BTreeMap;
use std::time::SystemTime;

use federation::merge::ConflictReason;

use crate::local::{Invalid, LocalService};
use crate::publications::Answer;

/// A condition without its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// `Valid`, `Ready`, `Conflict`.
    pub kind: &'static str,
    /// `True`, `False`, `Unknown`.
    pub status: &'static str,
    /// One of the API's.
    pub reason: String,
    /// For a person.
    pub message: String,
}

impl Condition {
    fn new(kind: &'static str, status: &'static str, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { kind, status, reason: reason.into(), message: message.into() }
    }
}

/// What became of an export's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publication<'a> {
    /// The cluster is no member yet.
    NotJoined,
    /// What the federator answered.
    Answered(&'a Answer),
}

/// The conditions of a ServiceExport.
#[must_use]
pub fn of_export(
    service: &LocalService,
    publication: Publication<'_>,
    conflicts: &[ConflictReason],
    details: &[String],
) -> Vec<Condition> {
    let valid = match service.exported() {
        Err(Invalid::NoService) => Condition::new("Valid", "False", "NoService", "there is no Service of this name"),
        Err(Invalid::InvalidServiceType) => {
            Condition::new("Valid", "False", "InvalidServiceType", "an ExternalName Service cannot be exported")
        }
        Ok(_) => Condition::new("Valid", "True", "Valid", "the Service can be exported"),
    };
    let ready = if valid.status == "True" {
        ready(service, publication)
    } else {
        Condition::new("Ready", "False", "Failed", "the export is not valid")
    };
    vec![valid, ready, conflict(conflicts, details)]
}

fn ready(service: &LocalService, publication: Publication<'_>) -> Condition {
    match publication {
        Publication::NotJoined => {
            Condition::new("Ready", "False", "Pending", "the cluster has not joined a federation")
        }
        Publication::Answered(Answer::Pending) => {
            Condition::new("Ready", "False", "Pending", "the federator has not confirmed the export yet")
        }
        Publication::Answered(Answer::Refused(why)) => {
            Condition::new("Ready", "False", "Failed", format!("the federator refused the export: {why}"))
        }
        Publication::Answered(Answer::Stored) => Condition::new("Ready", "True", "Ready", capacity(service)),
    }
}

fn capacity(service: &LocalService) -> String {
    let ready = service.endpoints.iter().filter(|endpoint| endpoint.ready).count();
    let with = service.endpoints.len();
    match service.without_sidecar {
        0 => format!("{ready} of {with} endpoints are ready"),
        without => format!("{ready} of {with} endpoints are ready; {without} more have no sidecar and get no traffic"),
    }
}

fn conflict(conflicts: &[ConflictReason], details: &[String]) -> Condition {
    if conflicts.is_empty() {
        return Condition::new("Conflict", "False", "NoConflicts", "all exports agree");
    }
    let reasons: Vec<_> = conflicts.iter().map(ToString::to_string).collect();
    Condition::new("Conflict", "True", reasons.join(","), details.join("; "))
}

/// The condition of a ServiceImport.
#[must_use]
pub fn of_import(without_vip: Option<&str>) -> Condition {
    match without_vip {
        None => Condition::new("Ready", "True", "Ready", "the service can be called"),
        Some(why) if why.starts_with("IP family") => Condition::new("Ready", "False", "IPFamilyNotSupported", why),
        Some(why) => Condition::new("Ready", "False", "Pending", why),
    }
}

/// When each condition last changed its status, over restarts.
#[derive(Debug, Default)]
pub struct Transitions {
    known: BTreeMap<String, BTreeMap<String, (String, SystemTime)>>,
}

impl Transitions {
    /// Remembers what was written before.
    pub fn remember(&mut self, object: &str, kind: &str, status: &str, since: SystemTime) {
        self.known.entry(object.to_owned()).or_default().insert(kind.to_owned(), (status.to_owned(), since));
    }

    /// Since when the object's condition has its status, to whole seconds.
    pub fn since(&mut self, object: &str, condition: &Condition, now: SystemTime) -> SystemTime {
        let known = self.known.entry(object.to_owned()).or_default();
        match known.get(condition.kind) {
            Some((status, since)) if status == condition.status => *since,
            _ => {
                known.insert(condition.kind.to_owned(), (condition.status.to_owned(), now));
                now
            }
        }
    }

    /// The object is gone.
    pub fn forget(&mut self, object: &str) {
        self.known.remove(object);
    }
}
