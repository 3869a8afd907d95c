//! What a federator's admin listener says of itself and its sessions. What it does not say is left at its default.

use serde::{Deserialize, Serialize};

/// `GET /debug/federation`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Federation {
    /// The replica's name.
    pub(crate) replica: String,
    /// Which history of the store it serves.
    pub(crate) incarnation: String,
    /// Up to which revision.
    pub(crate) revision: u64,
    /// Records it holds.
    pub(crate) records: u64,
    /// Whose records are believed.
    pub(crate) members: Vec<String>,
    /// Every cluster that was seen, connected or not.
    pub(crate) clusters: Vec<Presence>,
}

/// Whether a cluster has a publishing session at any replica.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Presence {
    /// Its name.
    pub(crate) cluster: String,
    /// It has one.
    pub(crate) connected: bool,
    /// Since when that has been so, Unix milliseconds.
    pub(crate) since_ms: i64,
    /// The replica that has its session, or had it last.
    pub(crate) replica: String,
    /// Up to which revision it said to have applied what others export; 0 when it said so elsewhere.
    pub(crate) applied_revision: u64,
}

/// `GET /debug/sessions`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Sessions {
    /// An acknowledgement that is owed for longer is late: three heartbeats.
    pub(crate) late_ms: u64,
    /// The open ones.
    pub(crate) sessions: Vec<Session>,
}

/// One open session.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Session {
    /// The cluster.
    pub(crate) cluster: String,
    /// Its control-plane's replica.
    pub(crate) replica: String,
    /// It publishes for its cluster.
    pub(crate) publisher: bool,
    /// It went on where one before had ended.
    pub(crate) resumed: bool,
    /// Since when, Unix milliseconds.
    pub(crate) since_ms: i64,
    /// It has applied everything up to this revision.
    pub(crate) applied_revision: u64,
    /// For how long it has owed an acknowledgement.
    pub(crate) unacknowledged_ms: u64,
    /// Revisions that it was not told of yet.
    pub(crate) behind: u64,
    /// A snapshot is on its way.
    pub(crate) snapshot: bool,
    /// Answers that wait since it does not read.
    pub(crate) answers_waiting: u64,
}
