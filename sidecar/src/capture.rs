//! The kernel's part of capturing: an nftables table of this program's own, `inet isthmus`.
//!
//! ```text
//!  application ─┬─ TCP to the clusterset ─► REDIRECT ─► outbound listener (15001), which asks for the original destination
//!               ├─ anything else there ───► ICMP port unreachable: the mesh carries TCP only
//!               ├─ TCP to local services ─► REDIRECT ─► outbound listener
//!               ├─ DNS to its resolvers ──► REDIRECT ─► DNS listener (15053)
//!               └─ everything else ───────► not looked at
//!
//!  from outside ─┬─ TCP to a strict port ───► REDIRECT ─► strict listener (15006), which refuses it
//!                ├─ from the node's probes ─► not looked at
//!                └─ everything else ────────► not looked at
//! ```
//!
//! Which ports are strict is a set in the table, and so is which of the cluster's own addresses are local services', of
//! namespaces that have opted in: none, unless the control-plane says so. The running sidecar keeps them as policies and
//! discovery say (it needs CAP_NET_ADMIN for that); they outlive the sidecar, so that plaintext is refused while one restarts.
//!
//! The table is replaced as a whole in one transaction: installing twice changes nothing, and no packet ever meets half of
//! it. The sidecar's own user is left alone, so its traffic cannot come back to it. Only `nft` is needed, no `iptables`.

pub(crate) mod local;
mod nft;
mod rules;
pub(crate) mod strict;

use std::net::IpAddr;

pub use nft::NftError;

use crate::Config;

/// What a rule set is made from.
struct Wanted<'a> {
    config: &'a crate::config::CaptureConfig,
    /// Where captured connections go.
    outbound_port: u16,
    /// Where captured queries go; none: DNS is left alone.
    dns_port: Option<u16>,
    /// Queries to these are captured.
    resolvers: Vec<IpAddr>,
    /// Where plaintext to strict ports goes; none: no port is strict.
    strict: Option<StrictCapture>,
    /// The addresses of local services that the kernel knew before, IPv4 and IPv6, as `nft` writes them.
    local: [Option<String>; 2],
}

/// How plaintext to strict ports is captured.
struct StrictCapture {
    port: u16,
    /// Ports of the sidecar itself.
    own_ports: Vec<u16>,
    /// The strict ports that the kernel knew before, as `nft` writes them.
    known: Option<String>,
}

/// Why the capture could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// There is nothing to install.
    #[error("the configuration has no `capture` section")]
    NotConfigured,
    /// It says where nothing.
    #[error("listeners.outbound: name at least one address")]
    NoListener,
    /// The machine's resolvers are not known, and their queries were to be captured.
    #[error("/etc/resolv.conf: {0}")]
    Resolvers(String),
    /// The kernel was not changed.
    #[error(transparent)]
    Nft(#[from] NftError),
}

/// Installs the rules of a configuration in place of those that are there, in one step.
///
/// # Errors
/// The configuration asks for none, or the kernel refused them; what was installed before is still there.
pub fn install(config: &Config) -> Result<(), CaptureError> {
    let capture = config.capture.as_ref().ok_or(CaptureError::NotConfigured)?;
    let outbound_port = config.listeners.outbound.first().ok_or(CaptureError::NoListener)?.port();
    let dns_port = config.listeners.dns.first().map(std::net::SocketAddr::port);
    let resolvers = match dns_port {
        Some(_) => system_resolvers().map_err(CaptureError::Resolvers)?,
        None => Vec::new(),
    };
    let strict = match config.listeners.strict.first() {
        Some(listener) => Some(StrictCapture {
            port: listener.port(),
            own_ports: own_ports(config),
            known: nft::elements(rules::TABLE, rules::STRICT)?,
        }),
        None => None,
    };
    let local = [nft::elements(rules::TABLE, rules::LOCAL[0])?, nft::elements(rules::TABLE, rules::LOCAL[1])?];
    let wanted = Wanted { config: capture, outbound_port, dns_port, resolvers, strict, local };
    Ok(nft::run(&rules::install(&wanted))?)
}

/// Ports of the sidecar, which are never strict.
fn own_ports(config: &Config) -> Vec<u16> {
    let listeners = config.listeners.inbound.iter().chain(&config.listeners.strict).map(std::net::SocketAddr::port);
    let mut ports: Vec<u16> = listeners.chain([config.runtime.health.port(), config.runtime.admin.port()]).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// Removes the rules; there need not be any.
///
/// # Errors
/// The kernel refused.
pub fn remove() -> Result<(), CaptureError> {
    Ok(nft::run(rules::REMOVE)?)
}

/// The rules that are installed, as `nft` writes them; `None` when there are none.
///
/// # Errors
/// The kernel could not be asked.
pub fn show() -> Result<Option<String>, CaptureError> {
    Ok(nft::list(rules::TABLE)?)
}

/// The machine's resolvers.
pub(crate) fn system_resolvers() -> Result<Vec<IpAddr>, String> {
    let (config, _) = hickory_resolver::system_conf::read_system_conf().map_err(|error| error.to_string())?;
    Ok(config.name_servers().iter().map(|server| server.ip).collect())
}
