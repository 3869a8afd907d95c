//! The program: everything wired together, from the first state to the drain.

use std::{
    fs,
    io::{self, ErrorKind},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::unix::fs::DirBuilderExt,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use mesh_runtime::{Process, resolver::Resolver};
use rustix::process::{Resource, getrlimit, setrlimit};
use socket2::SockRef;
use tokio::{
    net::TcpSocket,
    sync::{oneshot, watch},
    task::JoinSet,
};
use tracing::warn;

use crate::{
    Config, Gateway, Metrics,
    connection::Side,
    debug,
    discovery::{Follower, Freshness, Tables},
    own_identity::OwnIdentity,
    pressure::Gauge,
    remotes::Remotes,
    routes::Routes,
    state_metrics::StateMetrics,
    workers,
};

/// Connections that wait to be accepted, for each listener; the kernel has its own limit (`net.core.somaxconn`).
pub(crate) const BACKLOG: u32 = 4096;

/// What is kept of the drain's deadline to end the connections that are left and to tell of them; at most a tenth.
const DRAIN_MARGIN: Duration = Duration::from_millis(500);

/// A gateway's main.
///
/// # Errors
/// An address cannot be listened on, the state directory cannot be made.
pub async fn run(config: Config, process: Process) -> anyhow::Result<()> {
    // Before the first wait: a probe must not find the process ready before it says what it waits for.
    let unready = process.readiness().require("first state");
    let sockets = bind(&config)?;
    run_on(config, process, unready, sockets).await
}

/// [`run`] on sockets that are bound already and do not listen yet.
///
/// # Errors
/// As there.
pub async fn run_on(
    config: Config,
    process: Process,
    unready: mesh_runtime::ReadinessGuard,
    sockets: Vec<Bound>,
) -> anyhow::Result<()> {
    make_private_directory(&config.state_directory)
        .with_context(|| format!("stateDirectory: cannot make {}", config.state_directory.display()))?;
    let cluster = config.discovery.cluster().map_err(anyhow::Error::msg)?;
    let routes = Arc::new(Routes::new(cluster.clone()));
    let remotes = Arc::new(Remotes::new(cluster));
    let own = Arc::new(OwnIdentity::open(&config.discovery, &config.state_directory)?);
    let freshness = Arc::new(Freshness::default());
    let metrics = Metrics::default();
    let state = StateMetrics::new(Arc::clone(&routes), Arc::clone(&remotes), Arc::clone(&freshness), Arc::clone(&own));
    process.register(|registry| {
        metrics.register(registry);
        registry.register_collector(Box::new(state));
    });
    process.add_debug_routes(debug::router(Arc::clone(&routes), Arc::clone(&remotes)));

    let tables = Tables { routes: Arc::clone(&routes), remotes: Arc::clone(&remotes) };
    let follower = Follower::new(&config, Arc::clone(&own), tables, freshness, unready);
    let has_state = follower.has_state();
    let (stop, stopped) = oneshot::channel::<()>();
    // Aborted if this function is cut off.
    let mut background = JoinSet::new();
    let mut following = JoinSet::new();
    let renewing = background.spawn(own.keep_fresh());
    background.spawn(follower.run(process.drain(), async { drop(stopped.await) }));
    raise_descriptor_limit(config.limits.max_connections);
    if let Some(egress) = &config.egress {
        let (remotes, resolver) = (Arc::clone(&remotes), Resolver::new(is_loopback(&egress.address)));
        following.spawn(async move { remotes.keep_resolved(&resolver).await });
    }
    let gateway = Gateway::new(&config, routes, remotes, metrics);
    if let Some(gauge) = Gauge::new(config.limits.max_memory) {
        gateway.pressure().look_at(&gauge);
        let gateway = gateway.clone();
        following.spawn(async move { gateway.pressure().follow(gauge).await });
    }
    let served = serve(&gateway, &process, has_state, share_out(sockets, workers::count(config.workers))?).await;
    renewing.abort();
    drop(stop);
    while background.join_next().await.is_some() {}
    served
}

/// From the first state to the end of the drain.
async fn serve(
    gateway: &Gateway,
    process: &Process,
    mut has_state: watch::Receiver<bool>,
    sockets: Vec<Vec<Bound>>,
) -> anyhow::Result<()> {
    let drain = process.drain();
    // Until there is a state a connection is refused by the kernel, so that its caller goes elsewhere at once.
    tokio::select! {
        () = drain.signaled() => return Ok(()),
        _ = has_state.wait_for(|has_state| *has_state) => {}
    }
    let deadline = process.drain_deadline();
    let deadline = deadline.saturating_sub(DRAIN_MARGIN.min(deadline / 10));
    workers::serve(gateway, sockets, &drain, deadline).await
}

/// A socket that is bound and does not listen yet.
#[derive(Debug)]
pub struct Bound {
    /// Who connects to it.
    pub side: Side,
    /// The socket.
    pub socket: TcpSocket,
}

/// The sockets of each thread: the first one's are given, the others' are bound to the same addresses.
fn share_out(sockets: Vec<Bound>, workers: usize) -> anyhow::Result<Vec<Vec<Bound>>> {
    let address = |bound: &Bound| Ok((bound.side, bound.socket.local_addr()?));
    let addresses = sockets.iter().map(address).collect::<io::Result<Vec<_>>>()?;
    let mut shares = vec![sockets];
    for _ in 1..workers {
        shares.push(addresses.iter().map(|(side, address)| bind_one(*side, *address)).collect::<Result<_, _>>()?);
    }
    Ok(shares)
}

/// As many descriptors as the system allows: each connection takes two.
fn raise_descriptor_limit(connections: usize) {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum || limit.maximum.is_none() {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            warn!(%error, "the limit on descriptors stays");
        }
    }
    if let Some(allowed) = getrlimit(Resource::Nofile).current
        && allowed < 2 * connections as u64
    {
        warn!(
            allowed,
            connections, "fewer descriptors than limits.maxConnections needs: beyond them connections are shed"
        );
    }
}

/// Binds without listening yet: a wrong or taken address is told at once.
///
/// # Errors
/// The address that cannot be bound, and why.
pub fn bind(config: &Config) -> anyhow::Result<Vec<Bound>> {
    let outside = config.listen.iter().map(|address| bind_one(Side::Outside, *address));
    let egress = config.egress.iter().flat_map(|egress| &egress.listen);
    outside.chain(egress.map(|address| bind_one(Side::Inside, *address))).collect()
}

fn bind_one(side: Side, address: SocketAddr) -> anyhow::Result<Bound> {
    let field = match side {
        Side::Outside => "listen",
        Side::Inside => "egress.listen",
    };
    let socket = shared_socket(address).with_context(|| format!("{field}: cannot bind {address}"))?;
    Ok(Bound { side, socket })
}

fn shared_socket(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restarted gateway need not wait for the last connections of the one before.
    socket.set_reuseaddr(true)?;
    // Shared with the other threads, and for a while with the process that takes over.
    socket.set_reuseport(true)?;
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        // IPv4 too, whatever the system's default is.
        SockRef::from(&socket).set_only_v6(false)?;
    }
    socket.bind(address)?;
    Ok(socket)
}

/// Whether everything here is on loopback, as in a lab: then names may stand for loopback addresses too.
fn is_loopback(address: &str) -> bool {
    address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn make_private_directory(path: &std::path::Path) -> io::Result<()> {
    match fs::DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}
