//! One per cluster: watches services, publishes exports, writes imports, issues SVIDs, serves discovery and DNS.
//!
//! ```text
//!  manifests ─► Source ─┐                          ┌─► discovery ──► sidecars, gateways (SVIDs, services, routes, roots)
//!  gateways ─► Proxies ─┤                          ├─► DNS, clusterset.local
//!  trust-bundle ─┐      ├─► Reconciler ─► Snapshot ┼─► ServiceImports, statuses (API or files)
//!  federator ──► Plane ─┘      │  one owner        ├─► admin socket, metrics
//!                ▲             │  no I/O           └─► Prober ──► gateways of other clusters
//!                └─────────────┘ own signed records
//! ```
//!
//! Objects come from an API server or from a directory of the same manifests, behind one [`source::Source`]; in a cluster with
//! an API server what follows is written there, by whichever replica holds the Lease ([`kubernetes`]).
//!
//! The cluster's own authority signs for its proxies ([`authority`]); its root and the key under which the cluster speaks are
//! replaced in steps that wait for everybody who must know ([`rotation`]).
//!
//! Invariants:
//! - One task owns the state; everybody else sees immutable snapshots.
//! - Nothing of another cluster is believed before it was verified under the membership root pinned at the join.
//! - Disconnection deletes nothing. A restart with the federation gone serves discovery and names from the disk at once.
//! - Before the cluster's own objects were read once, nothing is published, withdrawn, released or written; before the
//!   federation's first full state, nothing is said to be absent.
//! - A root signs only after every connected proxy and watcher has acknowledged it, and goes only after the last certificate
//!   below it has ended; an emergency alone hurries. A bundle's sequence only grows, over restarts and lost disks.
//! - A membership that its member ended, or that a later one replaced, is not brought back by an old word.
//! - A namespace that opts its own Services in ([`local`]) changes what this cluster's sidecars are told, and nothing else: no
//!   record, route, import or name speaks of `cluster.local`.
//! - Pod addresses of other clusters are never handed on: what stands for a headless endpoint is an address of this cluster's own
//!   range ([`vips`]), and its pod's address is no more than a label.
//! - Sequences and other clusters' records are on disk before they are said or acknowledged.

pub mod admin;
pub mod authority;
pub mod conditions;
pub mod config;
pub mod discovery;
pub mod driver;
pub mod foreign_bundles;
pub mod import_files;
pub mod kubernetes;
pub mod local;
pub mod membership;
pub mod metrics;
pub mod names;
pub mod peers;
pub mod plane;
pub mod probe;
pub mod proxies;
pub mod publications;
pub mod reconciler;
pub mod resources;
pub mod rotation;
pub mod run;
pub mod snapshot;
pub mod source;
pub mod state;
pub mod tokens;
pub mod vips;

pub use run::run;
