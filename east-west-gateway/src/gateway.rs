//! The listeners and their connections, from the first to the drain.

use std::{
    fs::File,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ipnet::IpNet;
use mesh_runtime::DrainWatcher;
use relay::{RelayOptions, SocketOptions, configure, reset_on_close};
use rustix::{
    io::Errno,
    net::{SocketFlags, sockopt::set_tcp_quickack},
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinSet, spawn_blocking},
    time::{Interval, MissedTickBehavior, timeout},
};
use tracing::{info, warn};

use crate::{
    admission::{Admission, Admitted, Pending, Shed},
    config::Config,
    connection::{DataPath, Record, Side},
    metrics::Metrics,
    pressure::Pressure,
    remotes::Remotes,
    routes::Routes,
    takeover::{self, HANDSHAKES, drop_new_connections, has_successor, kernel_migrates},
};

/// How long to wait before accepting again when that failed: mostly a lack of descriptors, which only an ending connection cures.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The data path: takes connections and passes them on by the routes it is given. Clones share everything.
#[derive(Clone, Debug)]
pub struct Gateway {
    data_path: Arc<DataPath>,
    /// From these every connection begins with what it says of its client.
    load_balancers: Arc<[IpNet]>,
    /// Only from these are connections taken from inside.
    inside: Arc<[IpNet]>,
    /// All listeners served, by their inodes.
    listeners: Arc<Mutex<Vec<u64>>>,
}

impl Gateway {
    /// A gateway that leads from outside to these routes, and from inside to these clusters.
    #[must_use]
    pub fn new(config: &Config, routes: Arc<Routes>, remotes: Arc<Remotes>, metrics: Metrics) -> Self {
        let data_path = DataPath {
            admission: Admission::new(&config.limits),
            routes,
            remotes,
            locality: config.locality.clone(),
            hello_limits: config.limits.hello(),
            connect: config.connect,
            sockets: SocketOptions::default(),
            relaying: RelayOptions {
                max_pipes: config.limits.max_pipes,
                settle_b: Some(SocketOptions::default()),
                ..RelayOptions::default()
            },
            max_connections_per_service: config.limits.max_connections_per_service,
            metrics: Arc::new(metrics),
        };
        Self {
            data_path: Arc::new(data_path),
            load_balancers: config.proxy_protocol_from.clone().into(),
            inside: config.egress.as_ref().map(|egress| egress.allowed_sources.clone()).unwrap_or_default().into(),
            listeners: Arc::default(),
        }
    }

    pub(crate) fn pressure(&self) -> &Pressure {
        self.data_path.admission.pressure()
    }

    /// Serves a listener of one side until the drain: then takes what already waits in the kernel's queue, closes the listener, and
    /// gives the connections `drain_deadline` to end by themselves before it ends them.
    ///
    /// # Errors
    /// The listener takes no socket options.
    pub async fn serve(
        &self,
        side: Side,
        listener: TcpListener,
        drain: DrainWatcher,
        drain_deadline: Duration,
    ) -> io::Result<()> {
        // Connections inherit them, which saves five system calls for each.
        configure(&listener, &self.data_path.sockets)?;
        // What a client gets back, mostly at once, acknowledges its bytes: an acknowledgement alone would be a segment more.
        set_tcp_quickack(&listener, false)?;
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(takeover::inode(&listener)?);
        let mut connections = JoinSet::new();
        // It goes on accepting and relaying while it looks for a successor.
        let leaving = async {
            drain.signaled().await;
            self.has_successor(&listener).await
        };
        if self.accept_until(side, &listener, &mut connections, &drain, leaving).await? {
            info!(address = %listener.local_addr()?, "leaving the port to another process");
            drop_new_connections(&listener)?;
            self.accept_until(side, &listener, &mut connections, &drain, tokio::time::sleep(HANDSHAKES)).await;
        }
        self.accept_waiting(side, listener, &mut connections, &drain)?;
        let ended = async { while connections.join_next().await.is_some() {} };
        if timeout(drain_deadline, ended).await.is_err() {
            info!(connections = connections.len(), "the drain's deadline ends connections");
            connections.shutdown().await;
        }
        Ok(())
    }

    /// Whether another process listens too and gets what still shakes hands only if it is left to it with care.
    async fn has_successor(&self, listener: &TcpListener) -> io::Result<bool> {
        let own = self.listeners.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let inode = takeover::inode(listener)?;
        // The kernel's list takes its time where there are many connections.
        let looked = spawn_blocking(move || has_successor(inode, &own) && !kernel_migrates()).await;
        Ok(looked?)
    }

    async fn accept_until<T>(
        &self,
        side: Side,
        listener: &TcpListener,
        connections: &mut JoinSet<()>,
        drain: &DrainWatcher,
        stop: impl Future<Output = T>,
    ) -> T {
        let mut stop = std::pin::pin!(stop);
        let mut spare = SpareDescriptor::new();
        let mut metronome = Metronome::new();
        loop {
            tokio::select! {
                stopped = &mut stop => return stopped,
                () = metronome.tick() => reap(connections),
                // While connections come, those that have ended are let go with the next one or tick: each would wake this task.
                Some(_) = connections.join_next(), if metronome.is_run_down() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, source)) => {
                        metronome.wind();
                        reap(connections);
                        self.take(side, stream, source, connections, drain);
                    }
                    Err(error) => {
                        self.data_path.metrics.accept_errors.inc();
                        warn!(%error, "cannot accept a connection");
                        if !self.shed_for_lack_of_descriptors(listener, &mut spare, &error) {
                            tokio::time::sleep(ACCEPT_PAUSE).await;
                        }
                    }
                },
            }
        }
    }

    /// Takes what the kernel has already connected, which closing the listener would reset; then closes it.
    fn accept_waiting(
        &self,
        side: Side,
        listener: TcpListener,
        connections: &mut JoinSet<()>,
        drain: &DrainWatcher,
    ) -> io::Result<()> {
        // The runtime may not know yet that connections wait; the kernel does.
        let listener = listener.into_std()?;
        while let Ok((stream, source)) = listener.accept() {
            stream.set_nonblocking(true)?;
            self.take(side, TcpStream::from_std(stream)?, source, connections, drain);
        }
        Ok(())
    }

    fn take(
        &self,
        side: Side,
        stream: TcpStream,
        source: SocketAddr,
        connections: &mut JoinSet<()>,
        drain: &DrainWatcher,
    ) {
        let source = SocketAddr::new(source.ip().to_canonical(), source.port());
        match self.admit(side, source.ip()) {
            Ok((admitted, pending)) => {
                let record = Record::new(side, source, Arc::clone(&self.data_path.metrics), drain.clone(), admitted);
                let data_path = Arc::clone(&self.data_path);
                connections.spawn(data_path.serve(stream, pending, record));
            }
            Err(shed) => self.shed(&stream, shed),
        }
    }

    /// A load balancer's connections are counted for the sources that it names.
    fn admit(&self, side: Side, source: IpAddr) -> Result<(Admitted, Option<Pending>), Shed> {
        let among = |networks: &[IpNet]| networks.iter().any(|network| network.contains(&source));
        if side == Side::Inside && !among(&self.inside) {
            return Err(Shed::Outsider);
        }
        let admission = &self.data_path.admission;
        let admitted = admission.admit()?;
        let announced = side == Side::Outside && among(&self.load_balancers);
        let pending = if announced { None } else { Some(admission.await_hello(source)?) };
        Ok((admitted, pending))
    }

    /// Without a descriptor nothing can be accepted, and so nobody be told; with the spare one the connections that wait are
    /// accepted and reset, one after the other. Says whether that was the matter, and could be done.
    fn shed_for_lack_of_descriptors(
        &self,
        listener: &TcpListener,
        spare: &mut SpareDescriptor,
        error: &io::Error,
    ) -> bool {
        let lack = [Errno::MFILE, Errno::NFILE].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
        let mut shed = false;
        while lack
            && spare.give_up()
            && let Ok(stream) = rustix::net::accept_with(listener, SocketFlags::CLOEXEC)
        {
            self.shed(&stream, Shed::Descriptors);
            drop(stream);
            shed = true;
            spare.take_again();
        }
        spare.take_again();
        shed
    }

    /// A reset: the client learns at once, and no state of it stays in the kernel.
    fn shed(&self, stream: &impl AsFd, shed: Shed) {
        self.data_path.metrics.shed.add(shed.label(), 1);
        // Without the option it is closed in order, which tells it as well.
        let _ = reset_on_close(stream);
    }
}

/// Lets go of connections that have ended.
fn reap(connections: &mut JoinSet<()>) {
    while connections.try_join_next().is_some() {}
}

/// Ticks for a while after each connection.
///
/// A timer that is due before all others makes the runtime wake itself through a system call, and each connection sets several. With a
/// tick always due before, none does.
struct Metronome {
    interval: Interval,
    ticks_left: u32,
}

impl Metronome {
    /// Below the time-outs of hellos and attempts.
    const PERIOD: Duration = Duration::from_millis(50);
    /// A second without a connection ends it: an idle gateway sleeps.
    const TICKS: u32 = 20;

    fn new() -> Self {
        let mut interval = tokio::time::interval(Self::PERIOD);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { interval, ticks_left: 0 }
    }

    fn wind(&mut self) {
        if self.ticks_left == 0 {
            self.interval.reset();
        }
        self.ticks_left = Self::TICKS;
    }

    const fn is_run_down(&self) -> bool {
        self.ticks_left == 0
    }

    /// Never ends while it is run down.
    async fn tick(&mut self) {
        if self.ticks_left == 0 {
            std::future::pending::<()>().await;
        }
        self.interval.tick().await;
        self.ticks_left -= 1;
    }
}

/// A descriptor kept for the moment when there is no other.
struct SpareDescriptor(Option<File>);

impl SpareDescriptor {
    fn new() -> Self {
        let mut spare = Self(None);
        spare.take_again();
        spare
    }

    /// Whether there was one to give up.
    fn give_up(&mut self) -> bool {
        self.0.take().is_some()
    }

    fn take_again(&mut self) {
        if self.0.is_none() {
            self.0 = File::open("/dev/null").ok();
        }
    }
}
