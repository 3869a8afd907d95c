//! What every program's process needs and no component owns: configuration, telemetry, readiness, drain, the admin
//! endpoint, files that survive a crash, and the resolver of names of machines elsewhere.
//!
//! ```text
//!  main.rs: run("sidecar", &flags.config, |config, process| async { … })
//!    │
//!    ├─ configuration   FILE ◄─ ISTHMUS_SIDECAR_…     every problem at once, before anything is bound
//!    ├─ telemetry       logs ─► stderr     spans ─► OTLP
//!    ├─ admin, health   /metrics /debug/…   /readyz /livez       bound before main runs, served until after it
//!    ├─ Process ──────► main: readiness().require(…)   register(…)   drain().signaled()   drain().hold()
//!    └─ SIGTERM ──────► drain, at most runtime.drainDeadline; a second signal ends at once
//! ```
//!
//! Invariants:
//! - Nothing is bound, and no file is written, with a configuration that is not wholly valid.
//! - `/readyz` says "ready" only after main has said what it waits for, has got it, and does not drain.
//! - The process ends within the drain deadline after the first signal (and a moment for the last spans), and at once on
//!   the second.
//! - A reader of a last-good file sees the old content or the new, never a mixture.

pub mod duration;
pub mod resolver;
pub mod trace;

mod admin;
mod config;
mod drain;
mod last_good;
mod process;
mod process_metrics;
mod readiness;
mod run;
mod signals;
mod telemetry;

pub use config::{Configuration, ConfigurationError, Flags, LogConfig, LogFormat, OtlpConfig, RuntimeConfig, load};
pub use drain::{DrainHold, DrainWatcher};
pub use last_good::{read_if_present, write_atomically};
pub use process::Process;
pub use readiness::{Readiness, ReadinessGuard};
pub use run::{run, run_command};
