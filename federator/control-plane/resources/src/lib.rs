//! The Kubernetes and MCS kinds that a control-plane works on, and the reader of manifest directories.
//!
//! ```text
//!   *.yaml, *.yml, *.json ──read_file──► FileReading { objects, passed over, problems }
//!        (a directory)                        │
//!                                             ▼ last good version of each file, first file wins a duplicate
//!   kube-apiserver ───(k8s_openapi, mcs)──► Resource (pruned) ──► Change::Applied | Change::Deleted
//! ```
//!
//! - [`mcs`]: ServiceExport and ServiceImport as they are written, of `multicluster.x-k8s.io`.
//! - [`isthmus`]: policies and the view of members, of `isthmus.dev`; [`about`]: ClusterProperty, of `about.k8s.io`.
//! - [`crds`]: the definitions of all of them, from which `deploy/crds` is written.
//! - [`pruned`]: the parts of each kind that a control-plane needs, parsed: what it keeps in memory, whatever the source.
//! - [`reading`]: one file, pure but for the reading itself; [`directory`]: many files over time.
//!
//! Invariants: a broken document never takes away what its file held before; every problem names file, line and field as
//! far as they are known; kinds that mean nothing here are passed over and counted.

pub mod about;
pub mod crds;
pub mod directory;
mod document;
pub mod isthmus;
pub mod mcs;
pub mod pruned;
pub mod reading;
mod resource;

pub use directory::{Change, Directory, Scan};
pub use reading::{FileReading, Problem, read_file, read_text};
pub use resource::{FieldError, Kind, Resource, ResourceKey};

/// The namespace of an object that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Opts a Namespace's own Services in, with the value `enabled`: sidecars balance calls to them, over mutual TLS where the
/// endpoint has one.
pub const LOCAL_SERVICES_LABEL: &str = "isthmus.dev/local-services";

/// Marks a Pod that has a sidecar, with the value `true`.
pub const SIDECAR_ANNOTATION: &str = "isthmus.dev/sidecar";

/// What a Pod can take beside others, as a whole number from 1 to [`MAX_WEIGHT`]: twice the weight gets twice the traffic.
pub const WEIGHT_ANNOTATION: &str = "isthmus.dev/weight";

/// The largest weight of a Pod.
pub const MAX_WEIGHT: u32 = 1000;
