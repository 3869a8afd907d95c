//! Configuration: one YAML file, overridden by the environment, checked as a whole before anything is bound.
//!
//! ```text
//!  --config FILE (YAML, camelCase)  ◄── overridden by ── ISTHMUS_<PROGRAM>_<FIELD>__<FIELD>
//!                └──────────┬─────────────────────────────────────┘
//!                     one document ──► the program's type ──► Configuration::problems()
//!                                   every error at once, each naming its source and field
//! ```
//!
//! The environment name of a field is the program's prefix and the field's path in capitals, words split by `_` and
//! levels by `__`: `runtime.drainDeadline` of `east-west-gateway` is
//! `ISTHMUS_EAST_WEST_GATEWAY_RUNTIME__DRAIN_DEADLINE`. Values are read as YAML: `5s`, `[a, b]`, `{a: b}`; where a
//! field wants text, what YAML takes for something else (`007`, `true`) stands as it is written. The names that Kubernetes
//! injects for a Service called `isthmus-<program>` are passed over.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tracing_subscriber::EnvFilter;

mod load;
mod source;

pub use load::{ConfigurationError, load};

/// The whole configuration of a program.
///
/// Derive `Deserialize` with `#[serde(deny_unknown_fields, rename_all = "camelCase")]` and hold the runtime's part in a
/// field named `runtime`.
pub trait Configuration: DeserializeOwned + Send + 'static {
    /// The runtime's part, field `runtime`.
    fn runtime(&self) -> &RuntimeConfig;

    /// Everything wrong that the types alone cannot say, each as `field: what is wrong`, with the field's path as
    /// written in the file (`listeners.inbound: …`).
    fn problems(&self) -> Vec<String> {
        Vec::new()
    }
}

/// What every program's process needs: field `runtime`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct RuntimeConfig {
    /// Serves `/metrics` and `/debug/…`. Default `127.0.0.1:15020`.
    pub admin: SocketAddr,
    /// Serves `/readyz` and `/livez`. Default `127.0.0.1:15021`; the same address as `admin` serves both from one
    /// listener.
    pub health: SocketAddr,
    /// What is logged, and how.
    pub log: LogConfig,
    /// Where spans go. Absent: nowhere.
    pub otlp: Option<OtlpConfig>,
    /// How long a drain may last, from the signal to the end of the process. Default `5s`.
    #[serde(with = "crate::duration")]
    pub drain_deadline: Duration,
}

/// What is logged, and how: field `runtime.log`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct LogConfig {
    /// One JSON object a line, or text for people. Default `text`.
    pub format: LogFormat,
    /// Directives of `tracing_subscriber::EnvFilter`, such as `info,sidecar=debug`. Default `info`.
    pub filter: String,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase")]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people to read.
    #[default]
    Text,
}

/// Where spans go: field `runtime.otlp`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct OtlpConfig {
    /// The collector's OTLP/gRPC endpoint, such as `http://127.0.0.1:4317`. Plain text only: run the collector's agent
    /// beside the program.
    pub endpoint: String,
    /// The share of new traces that is recorded, 0 to 1; a caller's own decision goes before it. Default 1.
    #[serde(default = "every_trace")]
    pub sample_ratio: f64,
}

/// The flags of a program without subcommands.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "isthmus", version, about = "A part of Isthmus, the multi-cluster federation gateway mesh", long_about = None)]
pub struct Flags {
    /// The configuration file (YAML).
    #[arg(long, value_name = "FILE", env = "ISTHMUS_CONFIG")]
    pub config: PathBuf,
}

impl Flags {
    /// Reads the process's arguments; on a mistake, or for `--help` and `--version`, prints and ends the process.
    pub fn parse() -> Self {
        <Self as clap::Parser>::parse()
    }
}

fn every_trace() -> f64 {
    1.0
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        Self {
            admin: SocketAddr::from((Ipv4Addr::LOCALHOST, 15020)),
            health: SocketAddr::from((Ipv4Addr::LOCALHOST, 15021)),
            log: LogConfig::default(),
            otlp: None,
            drain_deadline: Duration::from_secs(5),
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::default(), filter: "info".to_owned() }
    }
}

impl RuntimeConfig {
    /// What the types alone cannot say, as [`Configuration::problems`] has it.
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Err(error) = EnvFilter::try_new(&self.log.filter) {
            problems.push(format!("runtime.log.filter: {error}"));
        }
        if let Some(otlp) = &self.otlp {
            problems.extend(otlp.problems());
        }
        problems
    }
}

impl OtlpConfig {
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let plain = self
            .endpoint
            .parse::<http::Uri>()
            .is_ok_and(|uri| uri.scheme_str() == Some("http") && uri.host().is_some_and(|host| !host.is_empty()));
        if !plain {
            let endpoint = &self.endpoint;
            problems.push(format!("runtime.otlp.endpoint: {endpoint:?} is not of the form http://HOST:PORT"));
        }
        if !(0.0..=1.0).contains(&self.sample_ratio) {
            problems.push(format!("runtime.otlp.sampleRatio: {} is not between 0 and 1", self.sample_ratio));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[test]
    fn the_configuration_file_is_a_flag() {
        Flags::command().debug_assert();
        let flags = Flags::try_parse_from(["sidecar", "--config", "/etc/isthmus/sidecar.yaml"]);
        assert!(flags.is_ok_and(|flags| flags.config == *"/etc/isthmus/sidecar.yaml"));
        assert!(Flags::try_parse_from(["sidecar", "--config"]).is_err());
        assert!(Flags::try_parse_from(["sidecar", "--config", "a", "b"]).is_err());
    }

    #[test]
    fn the_defaults_have_no_problems() {
        assert!(RuntimeConfig::default().problems().is_empty());
    }
}
