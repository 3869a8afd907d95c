//! The proxies: how each is got, configured and started. One worker each, no log per connection.

use std::{
    fs,
    net::SocketAddr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use aws_lc_rs::digest::{SHA256, digest};
use federation_api::discovery::v1 as discovery;
use prost::Message;
use tokio_rustls::TlsConnector;

use super::{SERVER_NAME, hello, tls};
use crate::bench::comparison::{self, Peer as _};

/// One proxy, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Peer {
    /// No proxy at all.
    Direct,
    Gateway,
    Nginx,
    Haproxy,
    /// With `splice-response` forced and pipes of 1 MiB.
    HaproxySplice,
    Envoy,
    BareSplice,
    BareTokio,
}

impl comparison::Peer for Peer {
    const ALL: &'static [Self] = &[
        Self::Direct,
        Self::Gateway,
        Self::Nginx,
        Self::Haproxy,
        Self::HaproxySplice,
        Self::Envoy,
        Self::BareSplice,
        Self::BareTokio,
    ];
    const DIRECT: Self = Self::Direct;

    fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Gateway => "isthmus",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::HaproxySplice => "haproxy-splice",
            Self::Envoy => "envoy",
            Self::BareSplice => "bare-splice",
            Self::BareTokio => "bare-tokio",
        }
    }

    fn is_rival(self) -> bool {
        matches!(self, Self::Nginx | Self::Haproxy | Self::HaproxySplice | Self::Envoy)
    }
}

/// Where everything is.
pub(super) struct Setting {
    directory: PathBuf,
    gateway: PathBuf,
    listen: SocketAddr,
    backend: SocketAddr,
    hello: Arc<[u8]>,
    connector: TlsConnector,
}

/// A process that ends with this value.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A group of its own: with it go the workers that it has started.
        if let Some(group) = rustix::process::Pid::from_raw(i32::try_from(self.0.id()).unwrap_or(0)) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.0.wait();
    }
}

/// Where `make tools` puts it.
pub(crate) const ENVOY: &str = "target/tools/envoy";

impl Setting {
    /// Everything but the peers themselves.
    pub(super) fn prepare(
        directory: &Path,
        gateway: Option<PathBuf>,
        listen: SocketAddr,
        backend: SocketAddr,
    ) -> anyhow::Result<Self> {
        let gateway = match gateway {
            Some(gateway) => gateway,
            None => std::env::current_exe()?.with_file_name("east-west-gateway"),
        };
        let hello = hello::client_hello()?.into();
        let connector = tls::make_keys(directory)?;
        Ok(Self { directory: directory.to_owned(), gateway, listen, backend, hello, connector })
    }

    pub(super) fn target(&self, peer: Peer) -> hello::Target {
        hello::Target { address: self.address(peer), opening: hello::Opening::Raw(Arc::clone(&self.hello)) }
    }

    /// The same with TLS end to end.
    pub(super) fn tls_target(&self, peer: Peer) -> hello::Target {
        hello::Target { address: self.address(peer), opening: hello::Opening::Tls(self.connector.clone()) }
    }

    fn address(&self, peer: Peer) -> SocketAddr {
        if peer == Peer::Direct { self.backend } else { self.listen }
    }

    pub(super) fn start_backend(&self) -> anyhow::Result<Running> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("backend").arg(self.backend.to_string()).arg(&self.directory);
        let backend = spawn(command)?;
        until_listening(self.backend)?;
        Ok(backend)
    }

    /// Whether a peer is there, after an attempt to install it.
    pub(super) fn available(&self, peer: Peer) -> anyhow::Result<()> {
        match peer {
            Peer::Gateway if !self.gateway.is_file() => bail!("{} is not built", self.gateway.display()),
            Peer::Nginx => debian("nginx", "nginx libnginx-mod-stream"),
            Peer::Haproxy | Peer::HaproxySplice => debian("haproxy", "haproxy"),
            Peer::Envoy if !Path::new(ENVOY).is_file() => bail!("no {ENVOY}: `make tools` installs it"),
            _ => Ok(()),
        }
    }

    /// Starts a peer and waits until it listens; none for [`Peer::Direct`].
    pub(super) fn start(&self, peer: Peer) -> anyhow::Result<Option<Running>> {
        let command = match peer {
            Peer::Direct => return Ok(None),
            Peer::Gateway => self.isthmus()?,
            Peer::Nginx => self.nginx()?,
            Peer::Haproxy => self.haproxy("")?,
            Peer::HaproxySplice => self.haproxy("tune.pipesize 1048576")?,
            Peer::Envoy => self.envoy()?,
            Peer::BareSplice | Peer::BareTokio => {
                let mut command = Command::new(std::env::current_exe()?);
                let role = if peer == Peer::BareSplice { "bare-splice" } else { "bare-tokio" };
                command.args([role, &self.listen.to_string(), &self.backend.to_string()]);
                command
            }
        };
        // The one before may still have a worker that is about to end, and would answer for this one.
        until(|| std::net::TcpStream::connect(self.listen).is_err())?;
        let running = spawn(command).with_context(|| format!("starting {}", peer.name()))?;
        until_listening(self.listen).with_context(|| format!("starting {}", peer.name()))?;
        Ok(Some(running))
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.directory.join(name);
        fs::write(&path, text)?;
        Ok(path)
    }

    /// It starts from its last good state, which is made here: no control-plane is needed.
    fn isthmus(&self) -> anyhow::Result<Command> {
        let state = self.directory.join("state");
        fs::create_dir_all(&state)?;
        fs::write(state.join("discovery.state"), last_good_state(self.backend))?;
        let config = format!(
            "runtime: {{ admin: '{ip}:15020', health: '{ip}:15021', log: {{ filter: error }} }}
name: bench
workers: 1
listen: ['{listen}']
advertise: {{ address: {ip} }}
discovery:
  addresses: ['{ip}:15010']
  trustDomain: east.mesh.example
  rootFile: {directory}/root.crt
  tokenFile: {directory}/token
stateDirectory: {state}
limits: {{ maxPendingPerSource: 20000 }}
",
            ip = self.listen.ip(),
            listen = self.listen,
            directory = self.directory.display(),
            state = state.display(),
        );
        let mut command = Command::new(&self.gateway);
        command.arg("--config").arg(self.write("isthmus.yaml", &config)?);
        Ok(command)
    }

    fn nginx(&self) -> anyhow::Result<Command> {
        let directory = self.directory.display();
        let config = format!(
            "load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off; worker_processes 1; worker_rlimit_nofile 20000;
pid {directory}/nginx.pid; error_log {directory}/nginx.log crit;
events {{ worker_connections 15000; }}
stream {{
  map_hash_bucket_size 128;
  map $ssl_preread_server_name $chosen {{ {SERVER_NAME} backend; }}
  upstream backend {{ server {backend}; }}
  server {{ listen {listen} reuseport backlog=4096; ssl_preread on; tcp_nodelay on; access_log off; proxy_pass $chosen; }}
}}
",
            backend = self.backend,
            listen = self.listen,
        );
        let mut command = Command::new("nginx");
        command.arg("-c").arg(self.write("nginx.conf", &config)?);
        Ok(command)
    }

    fn haproxy(&self, tuning: &str) -> anyhow::Result<Command> {
        let splice = if tuning.is_empty() { "" } else { "option splice-response" };
        let config = format!(
            "global
  nbthread 1
  maxconn 9000
  maxpipes 500
  {tuning}
defaults
  mode tcp
  timeout connect 5s
  timeout client 5m
  timeout server 5m
  {splice}
frontend in
  bind {listen} backlog 4096
  tcp-request inspect-delay 5s
  tcp-request content accept if {{ req_ssl_hello_type 1 }}
  use_backend out if {{ req_ssl_sni -i {SERVER_NAME} }}
backend out
  server one {backend}
",
            backend = self.backend,
            listen = self.listen,
        );
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-q").arg("-f").arg(self.write("haproxy.cfg", &config)?);
        Ok(command)
    }

    fn envoy(&self) -> anyhow::Result<Command> {
        let socket = |address: SocketAddr| {
            format!("{{ socket_address: {{ address: {}, port_value: {} }} }}", address.ip(), address.port())
        };
        let config = format!(
            "static_resources:
  listeners:
  - name: in
    address: {listen}
    listener_filters:
    - name: tls
      typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector }}
    filter_chains:
    - filter_chain_match: {{ server_names: ['{SERVER_NAME}'] }}
      filters:
      - name: tcp
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: in
          cluster: out
  clusters:
  - name: out
    type: STATIC
    connect_timeout: 5s
    circuit_breakers: {{ thresholds: [{{ max_connections: 100000, max_pending_requests: 100000, max_requests: 100000 }}] }}
    load_assignment:
      cluster_name: out
      endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {backend} }} }}] }}]
",
            listen = socket(self.listen),
            backend = socket(self.backend),
        );
        let mut command = Command::new(ENVOY);
        command.args(["--concurrency", "1", "--log-level", "error", "--base-id"]);
        command.arg((std::process::id() % 30_000).to_string()).arg("-c").arg(self.write("envoy.yaml", &config)?);
        Ok(command)
    }
}

/// What the gateway would have written on its own: see `federation_api::client::discovery`.
fn last_good_state(backend: SocketAddr) -> Vec<u8> {
    #[derive(Clone, PartialEq, Message)]
    struct LastGood {
        #[prost(message, repeated, tag = "1")]
        resources: Vec<discovery::Resource>,
    }
    let host = "bench.shop.svc.clusterset.local".to_owned();
    let endpoint = discovery::Endpoint {
        id: "east/shop/bench-1".to_owned(),
        address: backend.ip().to_string(),
        mesh_port: backend.port().into(),
        ready: true,
        ..discovery::Endpoint::default()
    };
    let route = discovery::Route {
        namespace: "shop".to_owned(),
        name: "bench".to_owned(),
        host: host.clone(),
        ports: vec![8080],
        endpoints: vec![endpoint],
    };
    let resource = discovery::Resource {
        name: format!("route/{host}"),
        version: vec![1],
        resource: Some(discovery::resource::Resource::Route(route)),
    };
    let message = LastGood { resources: vec![resource] }.encode_to_vec();
    [b"isthmus discovery state 1\n", digest(&SHA256, &message).as_ref(), &message].concat()
}

pub(crate) fn spawn(mut command: Command) -> anyhow::Result<Running> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
    Ok(Running(command.spawn().with_context(|| format!("{command:?}"))?))
}

fn until_listening(address: SocketAddr) -> anyhow::Result<()> {
    until(|| std::net::TcpStream::connect(address).is_ok()).with_context(|| format!("nobody listens on {address}"))
}

pub(crate) fn until(holds: impl Fn() -> bool) -> anyhow::Result<()> {
    let until = Instant::now() + Duration::from_secs(20);
    while !holds() {
        if Instant::now() > until {
            bail!("not within 20 seconds");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

pub(crate) fn debian(program: &str, packages: &str) -> anyhow::Result<()> {
    let there = || succeeds(Command::new(program).arg("-v"));
    if !there() {
        let script = format!(
            "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends {packages}"
        );
        succeeds(Command::new("sh").args(["-c", &script]));
    }
    if there() { Ok(()) } else { bail!("the Debian packages {packages} cannot be installed") }
}
