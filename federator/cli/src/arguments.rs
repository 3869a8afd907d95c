//! What can be said on the command line.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use federation::name::NameError;
use federation::{ClusterName, MeshHost, Namespace, ServiceId};
use ipnet::IpNet;
use jiff::SignedDuration;
use spiffe_identity::SpiffeId;

use crate::dig::{QueryType, ServerAddress};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  refused, or failed; one line on stderr says what and where
  2  the command line is wrong
  3  answered, but not with good news: `status` found a problem, `dig` got an error
  4  no control-plane answers at the admin socket, no trust-bundle at its addresses, no sidecar, or no federator
  5  not done before --timeout, or not acknowledged by all; their names are on stderr";

/// The operator's command of an Isthmus federation.
#[derive(Debug, Parser)]
#[command(name = "isthmus", version, after_help = EXIT_CODES, propagate_version = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command understands.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// The control-plane's admin socket
    #[arg(
        long,
        global = true,
        value_name = "SOCKET",
        env = "ISTHMUS_ADMIN",
        default_value = "/run/isthmus/admin.sock"
    )]
    pub(crate) admin: PathBuf,
    /// How to print
    #[arg(short, long, global = true, value_name = "FORMAT", default_value = "table")]
    pub(crate) output: Format,
    /// Whether to colour: `auto` looks at the terminal, NO_COLOR and CLICOLOR_FORCE
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: When,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For programs: stable.
    Json,
}

/// Whether output is coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum When {
    /// On a terminal.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What is to be done.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Join tokens
    #[command(subcommand)]
    Token(TokenCommand),
    /// Hand a join token to this cluster's control-plane, and wait until it is a member
    Join(Join),
    /// Leave the federation: withdraw every record of this cluster, then end its membership
    Leave(Patience),
    /// Replace one of this cluster's keys
    Rotate(Rotate),
    /// Export a service of this cluster to the federation
    Export(ExportService),
    /// Take an export back
    Unexport(ExportService),
    /// List what this cluster knows
    Get(Get),
    /// Membership, connections, and the measured state of every other cluster; exit code 3 when something is wrong
    Status(Status),
    /// Ask the control-plane's DNS
    Dig(Dig),
    /// Ask a sidecar where its requests to a service go and why, and what would be if something failed
    Explain(Explain),
    /// Shut a cluster, or a single identity, out of the federation, and wait until every proxy has applied it
    Quarantine(ShutOut),
    /// Let a quarantined cluster or identity in again
    Release(ShutOut),
    /// End a cluster's membership; to come back it needs a new token
    Evict(Evict),
    /// List the federation's members
    Members(AtService),
    /// Who did what, and what was refused; exit code 3 when the record is not whole
    Audit(Audit),
    /// The federation's own certificate authority
    #[command(subcommand)]
    Authority(AuthorityCommand),
}

/// Where a command of the operator's finds its keys and the trust-bundle.
#[derive(Debug, Args)]
pub(crate) struct AtService {
    /// The operator's directory, as `trust-bundle init` wrote it
    #[arg(long, value_name = "DIR", env = "ISTHMUS_OPERATOR")]
    pub(crate) operator: PathBuf,
}

/// How long to wait until everybody has applied a deny-list.
#[derive(Debug, Args)]
pub(crate) struct Acknowledged {
    #[command(flatten)]
    pub(crate) service: AtService,
    /// How long to wait for acknowledgements
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
    /// Return as soon as the trust-bundle has taken it
    #[arg(long)]
    pub(crate) no_wait: bool,
}

/// `isthmus quarantine` and `isthmus release`
#[derive(Debug, Args)]
pub(crate) struct ShutOut {
    /// A cluster's name, or one SPIFFE ID
    #[arg(value_name = "CLUSTER|SPIFFE-ID")]
    pub(crate) target: Target,
    #[command(flatten)]
    pub(crate) wait: Acknowledged,
}

/// Who is shut out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A whole cluster.
    Cluster(ClusterName),
    /// One workload, or one identity of the federation's plane.
    Identity(SpiffeId),
}

/// `isthmus evict`
#[derive(Debug, Args)]
pub(crate) struct Evict {
    /// The cluster
    #[arg(value_name = "CLUSTER")]
    pub(crate) cluster: ClusterName,
    /// The last membership to end; the present one, if none is given
    #[arg(long, value_name = "NUMBER")]
    pub(crate) generation: Option<u64>,
    #[command(flatten)]
    pub(crate) wait: Acknowledged,
}

/// `isthmus audit`
#[derive(Debug, Args)]
pub(crate) struct Audit {
    /// Only entries after this number
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub(crate) after: u64,
    #[command(flatten)]
    pub(crate) service: AtService,
}

/// What is to be done about the federation's own authority.
#[derive(Debug, Subcommand)]
pub(crate) enum AuthorityCommand {
    /// How far its rotation is, and whom it waits for
    Status(AtService),
    /// Replace its root: publish, wait until everybody knows it, sign with it, let the old one run out
    Rotate {
        #[command(flatten)]
        service: AtService,
        /// Wait for nobody: the old root is in wrong hands, and failed connections are the smaller evil
        #[arg(long)]
        emergency: bool,
    },
    /// Give a rotation up, as long as the new root has signed nothing
    Cancel(AtService),
    /// Fetch a new certificate for this operator, and the federation's present roots
    Renew(AtService),
}

/// What is to be done about tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a one-use join token with the federation's membership root; works offline
    Create(TokenCreate),
    /// List the tokens that the trust-bundle knows of
    List(AtService),
    /// Make a token worthless before it is used
    Revoke(TokenRevoke),
}

/// `isthmus token revoke`
#[derive(Debug, Args)]
pub(crate) struct TokenRevoke {
    /// The id, as `token create` and `token list` show it
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) service: AtService,
}

/// `isthmus token create`
#[derive(Debug, Args)]
pub(crate) struct TokenCreate {
    /// The operator's directory: membership-root.key, federation.json, federation-root.crt
    #[arg(long, value_name = "DIR", env = "ISTHMUS_OPERATOR")]
    pub(crate) operator: PathBuf,
    /// The cluster that may join
    #[arg(long, value_name = "NAME")]
    pub(crate) cluster: ClusterName,
    /// A namespace it may export from; all, if none is given
    #[arg(long = "namespace", value_name = "NAMESPACE")]
    pub(crate) namespaces: Vec<Namespace>,
    /// Where its gateways may lie; anywhere but in reserved ranges, if none is given
    #[arg(long = "address-range", value_name = "CIDR", value_parser = parse_range)]
    pub(crate) address_ranges: Vec<IpNet>,
    /// A host name its gateways may have, exact or *.suffix; any, if none is given
    #[arg(long = "host-name", value_name = "PATTERN", value_parser = parse_host_pattern)]
    pub(crate) host_names: Vec<String>,
    /// How long it can be used
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = parse_duration)]
    pub(crate) expires: Duration,
}

/// `isthmus join`
#[derive(Debug, Args)]
pub(crate) struct Join {
    /// The token; `-`, or nothing, reads it from stdin, where other users' `ps` does not show it
    #[arg(value_name = "TOKEN", conflicts_with = "token_file")]
    pub(crate) token: Option<String>,
    /// Read the token from a file
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) patience: Patience,
}

/// `isthmus rotate`
#[derive(Debug, Args)]
pub(crate) struct Rotate {
    /// Which key, or `status` for how far each is
    pub(crate) what: RotateWhat,
    /// Wait for nobody: the old key is in wrong hands, and failed handshakes are the smaller evil
    #[arg(long)]
    pub(crate) emergency: bool,
    /// Give the rotation up: possible until the next root signs
    #[arg(long, conflicts_with_all = ["emergency", "wait"])]
    pub(crate) cancel: bool,
    /// Stay until it is over, and tell each phase and whom it waits for
    #[arg(long)]
    pub(crate) wait: bool,
    /// How long to stay
    #[arg(long, value_name = "DURATION", default_value = "48h", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
}

/// What can be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RotateWhat {
    /// The root of the cluster's trust domain
    Root,
    /// The intermediate that signs from day to day
    Intermediate,
    /// The key under which the cluster speaks to the federation
    PublishKey,
    /// Nothing: tell how far each rotation is
    Status,
}

impl RotateWhat {
    /// The admin API's name for it; `None` for `status`.
    pub(crate) fn key(self) -> Option<&'static str> {
        match self {
            Self::Root => Some("root"),
            Self::Intermediate => Some("intermediate"),
            Self::PublishKey => Some("publish-key"),
            Self::Status => None,
        }
    }
}

/// `isthmus export` and `isthmus unexport`
#[derive(Debug, Args)]
pub(crate) struct ExportService {
    /// The service
    #[arg(value_name = "NAMESPACE/NAME")]
    pub(crate) service: ServiceId,
    #[command(flatten)]
    pub(crate) patience: Patience,
}

/// How long to wait for an effect.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Patience {
    /// How long to wait until it is done
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
    /// Return as soon as the control-plane has taken it
    #[arg(long)]
    pub(crate) no_wait: bool,
}

/// `isthmus get`
#[derive(Debug, Args)]
pub(crate) struct Get {
    /// What
    pub(crate) kind: Kind,
    /// Only this namespace's
    #[arg(short, long, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<Namespace>,
}

/// What can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Services that this cluster exports
    #[value(alias = "export")]
    Exports,
    /// Services of the federation, as this cluster sees them
    #[value(alias = "import")]
    Imports,
    /// Members of the federation
    #[value(alias = "cluster")]
    Clusters,
}

/// `isthmus status`
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Show the sessions of the federator's replica with this admin address instead, once for each replica; no
    /// control-plane is asked
    #[arg(long = "federator", value_name = "ADDR:PORT")]
    pub(crate) federators: Vec<String>,
}

/// `isthmus explain`
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// The service of the clusterset, or the host name of one of the cluster's own whose namespace has opted in
    #[arg(value_name = "NAMESPACE/NAME", value_parser = explained)]
    pub(crate) service: MeshHost,
    /// Only this port
    #[arg(long, value_name = "PORT")]
    pub(crate) port: Option<u16>,
    /// What if this failed: `cluster=west`, `group=east/zone-a`, `gateway=gw-1` or `endpoint=west/shop/cart-1`; any number
    #[arg(long = "without", value_name = "KIND=NAME")]
    pub(crate) without: Vec<String>,
    /// The sidecar's admin address
    #[arg(long, value_name = "ADDR:PORT", env = "ISTHMUS_SIDECAR", default_value = "127.0.0.1:15020")]
    pub(crate) sidecar: String,
}

fn explained(text: &str) -> Result<MeshHost, NameError> {
    match text.parse() {
        Ok(host) => Ok(host),
        Err(_) => text.parse::<ServiceId>().map(|service| service.host().into()),
    }
}

/// `isthmus dig`
#[derive(Debug, Args)]
pub(crate) struct Dig {
    /// A domain name, or NAMESPACE/NAME for that service's clusterset name
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// A record type: A, AAAA, SRV, TXT, …
    #[arg(value_name = "TYPE", default_value = "A")]
    pub(crate) record_type: QueryType,
    /// Ask this server, and not the one that the control-plane names; port 53 unless said otherwise
    #[arg(long, value_name = "ADDR[:PORT]")]
    pub(crate) server: Option<ServerAddress>,
    /// Print the records' data alone
    #[arg(long)]
    pub(crate) short: bool,
    /// Ask over TCP at once
    #[arg(long)]
    pub(crate) tcp: bool,
    /// How long to wait for each answer; UDP is tried twice
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration: SignedDuration =
        text.parse().map_err(|_| "write a number with a unit, for example \"500ms\", \"30s\", \"1h30m\"".to_owned())?;
    match Duration::try_from(duration) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("must be longer than nothing".to_owned()),
    }
}

fn parse_range(text: &str) -> Result<IpNet, String> {
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(IpNet::from(address)),
        Err(_) => text.parse::<IpNet>().map(|range| range.trunc()).map_err(|_| {
            "write an address and a prefix length, for example \"203.0.113.0/24\" or \"2001:db8::/48\"".to_owned()
        }),
    }
}

fn parse_host_pattern(text: &str) -> Result<String, String> {
    let name = text.strip_prefix("*.").unwrap_or(text);
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let labels = name.split('.').all(|label| Namespace::parse(label).is_ok());
    if labels && name.len() <= 253 && name.parse::<IpAddr>().is_err() {
        Ok(text.to_owned())
    } else {
        Err("write a host name, or *. and the suffix of several, for example \"*.gateways.example.com\"".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn a_token_lives_as_long_as_tokens_do_unless_said_otherwise() {
        let words = ["isthmus", "token", "create", "--operator", ".", "--cluster", "east"];
        let Command::Token(TokenCommand::Create(create)) = Arguments::parse_from(words).command else {
            panic!("another command");
        };
        assert_eq!(create.expires, federation_api::token::DEFAULT_LIFETIME);
    }

    #[test]
    fn durations_need_a_unit_and_some_length() {
        assert_eq!(parse_duration("15m"), Ok(Duration::from_secs(900)));
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        for wrong in ["", "15", "0s", "-5m", "soon"] {
            assert!(parse_duration(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn an_address_alone_is_a_range_of_one() {
        assert_eq!(parse_range("192.0.2.7").map(|it| it.to_string()), Ok("192.0.2.7/32".to_owned()));
        assert_eq!(parse_range("192.0.2.7/24").map(|it| it.to_string()), Ok("192.0.2.0/24".to_owned()));
        assert_eq!(parse_range("2001:db8::/48").map(|it| it.to_string()), Ok("2001:db8::/48".to_owned()));
        assert!(parse_range("192.0.2.0/33").is_err());
    }

    #[test]
    fn host_patterns_are_exact_or_suffixes() {
        for right in ["gw.east.example", "*.east.example", "gw.east.example."] {
            assert!(parse_host_pattern(right).is_ok(), "{right:?}");
        }
        for wrong in ["", "*", "*.", "gw.*.example", "192.0.2.1", "a b", "*.*.example"] {
            assert!(parse_host_pattern(wrong).is_err(), "{wrong:?}");
        }
    }
}
