//! The program: everything wired together, from the first state to the drain.

use std::{
    fs,
    io::{self, ErrorKind},
    net::SocketAddr,
    os::unix::fs::DirBuilderExt,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use mesh_runtime::Process;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::{oneshot, watch},
    task::JoinSet,
};
use tracing::info;

use crate::{
    Config, Gateway, Metrics, debug,
    discovery::{Follower, Freshness},
    own_identity::OwnIdentity,
    routes::Routes,
    state_metrics::StateMetrics,
};

/// Connections that wait to be accepted, for each listener; the kernel has its own limit (`net.core.somaxconn`).
const BACKLOG: u32 = 4096;

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
    let renewing = background.spawn(own.keep_fresh());
    background.spawn(follower.run(process.drain(), async { drop(stopped.await) }));
    let served = serve(&Gateway::new(&config, routes, metrics), &process, has_state, sockets).await;
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
    sockets: Vec<TcpSocket>,
) -> anyhow::Result<()> {
    let drain = process.drain();
    // Until there is a state a connection is refused by the kernel, so that its caller goes elsewhere at once.
    tokio::select! {
        () = drain.signaled() => return Ok(()),
        _ = has_state.wait_for(|has_state| *has_state) => {}
    }
    let deadline = process.drain_deadline();
    let deadline = deadline.saturating_sub(DRAIN_MARGIN.min(deadline / 10));
    let mut serving = JoinSet::new();
    for listener in listen(sockets)? {
        info!(address = %listener.local_addr()?, "accepting connections");
        let (gateway, drain) = (gateway.clone(), drain.clone());
        serving.spawn(async move { gateway.serve(listener, drain, deadline).await });
    }
    // One that fails ends the others, and the program.
    while let Some(ended) = serving.join_next().await {
        ended??;
    }
    Ok(())
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
    socket.bind(address)?;
    Ok(socket)
}

fn listen(sockets: Vec<TcpSocket>) -> anyhow::Result<Vec<TcpListener>> {
    sockets
        .into_iter()
        .map(|socket| {
            let address = socket.local_addr()?;
            socket.listen(BACKLOG).with_context(|| format!("listen: cannot listen on {address}"))
        })
        .collect()
}

fn make_private_directory(path: &std::path::Path) -> io::Result<()> {
    match fs::DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}
