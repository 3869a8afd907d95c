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
use mesh_runtime::Process;
use rustix::process::{Resource, getrlimit, setrlimit};
use socket2::SockRef;
use tokio::{
    net::TcpSocket,
    sync::{oneshot, watch},
    task::JoinSet,
};
use tracing::warn;

use crate::{
    Config, Gateway, Metrics, debug,
    discovery::{Follower, Freshness},
    own_identity::OwnIdentity,
    pressure::Gauge,
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
    let sockets = bind(&config.listen)?;
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
    sockets: Vec<TcpSocket>,
) -> anyhow::Result<()> {
    make_private_directory(&config.state_directory)
        .with_context(|| format!("stateDirectory: cannot make {}", config.state_directory.display()))?;
    let cluster = config.discovery.cluster().map_err(anyhow::Error::msg)?;
    let routes = Arc::new(Routes::new(cluster));
    let own = Arc::new(OwnIdentity::open(&config.discovery, &config.state_directory)?);
    let freshness = Arc::new(Freshness::default());
    let metrics = Metrics::default();
    let state = StateMetrics::new(Arc::clone(&routes), Arc::clone(&freshness), Arc::clone(&own));
    process.register(|registry| {
        metrics.register(registry);
        registry.register_collector(Box::new(state));
    });
    process.add_debug_routes(debug::router(Arc::clone(&routes)));

    let follower = Follower::new(&config, Arc::clone(&own), Arc::clone(&routes), freshness, unready);
    let has_state = follower.has_state();
    let (stop, stopped) = oneshot::channel::<()>();
    // Aborted if this function is cut off.
    let mut background = JoinSet::new();
    let mut following = JoinSet::new();
    let renewing = background.spawn(own.keep_fresh());
    background.spawn(follower.run(process.drain(), async { drop(stopped.await) }));
    raise_descriptor_limit(config.limits.max_connections);
    let gateway = Gateway::new(&config, routes, metrics);
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
    sockets: Vec<Vec<TcpSocket>>,
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

/// The sockets of each thread: the first one's are given, the others' are bound to the same addresses.
fn share_out(sockets: Vec<TcpSocket>, workers: usize) -> anyhow::Result<Vec<Vec<TcpSocket>>> {
    let addresses = sockets.iter().map(TcpSocket::local_addr).collect::<io::Result<Vec<_>>>()?;
    let mut shares = vec![sockets];
    for _ in 1..workers {
        shares.push(bind(&addresses)?);
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
pub fn bind(addresses: &[SocketAddr]) -> anyhow::Result<Vec<TcpSocket>> {
    addresses
        .iter()
        .map(|address| bind_one(*address).with_context(|| format!("listen: cannot bind {address}")))
        .collect()
}

fn bind_one(address: SocketAddr) -> io::Result<TcpSocket> {
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

fn make_private_directory(path: &std::path::Path) -> io::Result<()> {
    match fs::DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}
