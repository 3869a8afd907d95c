//! The pairs: what is between the load and the application, and how it is started.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::{
    captured,
    load::Target,
    own::{APPLICATION, Own},
    rivals::Side,
};
use crate::bench::comparison::Peer;
use crate::bench_gateway::peers::{ENVOY, Running, debian, spawn, until};

/// Two proxies with mutual TLS between them, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pair {
    Direct,
    Isthmus,
    Envoy,
    Haproxy,
    /// The same, with the bytes left as they are.
    IsthmusTcp,
    EnvoyTcp,
    HaproxyTcp,
}

impl Peer for Pair {
    const ALL: &'static [Self] =
        &[Self::Direct, Self::Isthmus, Self::Envoy, Self::Haproxy, Self::IsthmusTcp, Self::EnvoyTcp, Self::HaproxyTcp];
    const DIRECT: Self = Self::Direct;

    fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Isthmus => "isthmus",
            Self::Envoy => "envoy",
            Self::Haproxy => "haproxy",
            Self::IsthmusTcp => "isthmus-tcp",
            Self::EnvoyTcp => "envoy-tcp",
            Self::HaproxyTcp => "haproxy-tcp",
        }
    }

    fn is_rival(self) -> bool {
        !self.is_own() && !matches!(self, Self::Direct)
    }
}

impl Pair {
    pub(super) const fn is_own(self) -> bool {
        matches!(self, Self::Isthmus | Self::IsthmusTcp)
    }

    pub(super) const fn is_http(self) -> bool {
        matches!(self, Self::Isthmus | Self::Envoy | Self::Haproxy)
    }
}

/// Where everything is.
pub(super) struct Setting {
    directory: PathBuf,
    sidecar: PathBuf,
    own: Own,
}

/// A pair that runs until dropped; the client's side first.
pub(super) struct RunningPair {
    pub(super) processes: Vec<Running>,
    /// Where HTTP/1.1 and HTTP/2 are asked for.
    pub(super) targets: [Target; 2],
}

/// The rivals' sides.
const CLIENT: Ipv4Addr = Ipv4Addr::new(127, 251, 0, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(127, 251, 0, 2);

impl Setting {
    pub(super) fn new(directory: &Path, sidecar: PathBuf, own: Own) -> anyhow::Result<Self> {
        make_keys(directory)?;
        Ok(Self { directory: directory.to_owned(), sidecar, own })
    }

    pub(super) fn start_backend(&self) -> anyhow::Result<Running> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("backend").arg(SocketAddr::from((Ipv4Addr::UNSPECIFIED, APPLICATION)).to_string());
        let backend = spawn(command)?;
        until_listening(application())?;
        Ok(backend)
    }

    /// Whether a pair is there, after an attempt to install it.
    pub(super) fn available(&self, pair: Pair) -> anyhow::Result<()> {
        match pair {
            Pair::Isthmus | Pair::IsthmusTcp if !self.sidecar.is_file() => bail!("no {}", self.sidecar.display()),
            Pair::Haproxy | Pair::HaproxyTcp => debian("haproxy", "haproxy"),
            Pair::Envoy | Pair::EnvoyTcp if !Path::new(ENVOY).is_file() => {
                bail!("no {ENVOY}: `make tools` installs it")
            }
            _ => Ok(()),
        }
    }

    pub(super) fn start(&self, pair: Pair) -> anyhow::Result<RunningPair> {
        let [web, calls, bytes] = &self.own.targets;
        let raw = Target { address: bytes.address, host: web.host.clone() };
        let targets = match pair {
            Pair::IsthmusTcp => [raw.clone(), raw],
            _ => [web.clone(), calls.clone()],
        };
        let first = match pair {
            Pair::Direct => [application(); 3],
            pair if pair.is_own() => [self.own.outbound; 3],
            _ => [(CLIENT, 1).into(), (CLIENT, 2).into(), (CLIENT, 1).into()],
        };
        captured::redirect(&self.own.redirects(first)?)?;
        let commands = if pair.is_own() { self.own.commands(&self.sidecar)? } else { self.rival(pair)? };
        let processes = commands.into_iter().map(spawn).collect::<anyhow::Result<Vec<_>>>()?;
        if pair.is_rival() {
            until_listening((CLIENT, 1).into()).with_context(|| format!("starting {}", pair.name()))?;
            until_listening((SERVER, 1).into()).with_context(|| format!("starting {}", pair.name()))?;
        } else if pair.is_own() {
            until_listening(self.own.outbound).with_context(|| format!("starting {}", pair.name()))?;
        }
        Ok(RunningPair { processes, targets })
    }

    fn rival(&self, pair: Pair) -> anyhow::Result<Vec<Command>> {
        if pair == Pair::Direct {
            return Ok(Vec::new());
        }
        let ports = |address: Ipv4Addr| [1, 2].map(|port| SocketAddr::from((address, port)));
        let (directory, http) = (self.directory.as_path(), pair.is_http());
        let client = Side { directory, listen: ports(CLIENT), to: ports(SERVER), client: true, http };
        let server = Side { directory, listen: ports(SERVER), to: [application(); 2], client: false, http };
        [client, server].iter().enumerate().map(|(number, side)| self.rival_side(pair, number, side)).collect()
    }

    fn rival_side(&self, pair: Pair, number: usize, side: &Side<'_>) -> anyhow::Result<Command> {
        let envoy = matches!(pair, Pair::Envoy | Pair::EnvoyTcp);
        let kind = if envoy { "yaml" } else { "cfg" };
        let path = self.directory.join(format!("{}-{number}.{kind}", pair.name()));
        fs::write(&path, if envoy { side.envoy() } else { side.haproxy() })?;
        let mut command = Command::new(if envoy { ENVOY } else { "haproxy" });
        if envoy {
            command.args(["--concurrency", "1", "--log-level", "error", "--base-id", &format!("{}", 7000 + number)]);
            command.arg("-c").arg(path);
        } else {
            command.args(["-db", "-q", "-f"]).arg(path);
        }
        Ok(command)
    }
}

fn application() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, APPLICATION).into()
}

fn until_listening(address: SocketAddr) -> anyhow::Result<()> {
    until(|| TcpStream::connect(address).is_ok()).with_context(|| format!("nobody listens on {address}"))
}

/// A root, and both sides' P-256 keys, in the forms that the rivals read.
fn make_keys(directory: &Path) -> anyhow::Result<()> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // With one name for all, a leaf would look as if it had signed itself.
    params.distinguished_name.push(DnType::CommonName, "bench root");
    fs::write(directory.join("root.pem"), params.self_signed(&key)?.pem())?;
    let issuer = Issuer::new(params, key);
    for side in ["client", "server"] {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(["bench.local".to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, side);
        let leaf = params.signed_by(&key, &issuer)?.pem();
        fs::write(directory.join(format!("{side}.crt")), &leaf)?;
        fs::write(directory.join(format!("{side}.key")), key.serialize_pem())?;
        fs::write(directory.join(format!("{side}.pem")), leaf + &key.serialize_pem())?;
    }
    Ok(())
}
