//! The listeners and their connections, from the first to the drain.

use std::{future::Future, io, sync::Arc, time::Duration};

use mesh_runtime::DrainWatcher;
use relay::{RelayOptions, SocketOptions, configure, reset_on_close};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};
use tracing::{info, warn};

use crate::{
    admission::{Admission, Shed},
    config::Config,
    connection::{DataPath, Record},
    metrics::Metrics,
    routes::Routes,
};

/// How long to wait before accepting again when that failed: mostly a lack of descriptors, which only an ending connection cures.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The data path: takes connections and passes them on by the routes it is given. Clones share everything.
#[derive(Clone, Debug)]
pub struct Gateway {
    data_path: Arc<DataPath>,
    admission: Arc<Admission>,
}

impl Gateway {
    /// A gateway that leads to these routes.
    #[must_use]
    pub fn new(config: &Config, routes: Arc<Routes>, metrics: Metrics) -> Self {
        let data_path = DataPath {
            routes,
            locality: config.locality.clone(),
            hello_limits: config.limits.hello(),
            connect: config.connect,
            sockets: SocketOptions::default(),
            relaying: RelayOptions::default(),
            max_connections_per_service: config.limits.max_connections_per_service,
            metrics: Arc::new(metrics),
        };
        Self { data_path: Arc::new(data_path), admission: Admission::new(&config.limits) }
    }

    /// Serves a listener until the drain: then takes what already waits in the kernel's queue, closes the listener, and
    /// gives the connections `drain_deadline` to end by themselves before it ends them.
    ///
    /// # Errors
    /// The listener takes no socket options.
    pub async fn serve(&self, listener: TcpListener, drain: DrainWatcher, drain_deadline: Duration) -> io::Result<()> {
        // Connections inherit them, which saves five system calls for each.
        configure(&listener, &self.data_path.sockets)?;
        let mut connections = JoinSet::new();
        self.accept_until(&listener, &mut connections, &drain, drain.signaled()).await;
        self.accept_waiting(listener, &mut connections, &drain)?;
        let ended = async { while connections.join_next().await.is_some() {} };
        if timeout(drain_deadline, ended).await.is_err() {
            info!(connections = connections.len(), "the drain's deadline ends connections");
            connections.shutdown().await;
        }
        Ok(())
    }

    async fn accept_until(
        &self,
        listener: &TcpListener,
        connections: &mut JoinSet<()>,
        drain: &DrainWatcher,
        stop: impl Future<Output = ()>,
    ) {
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => return,
                Some(_) = connections.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, source)) => self.take(stream, source, connections, drain),
                    Err(error) => {
                        self.data_path.metrics.accept_errors.inc();
                        warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }

    /// Takes what the kernel has already connected, which closing the listener would reset; then closes it.
    fn accept_waiting(
        &self,
        listener: TcpListener,
        connections: &mut JoinSet<()>,
        drain: &DrainWatcher,
    ) -> io::Result<()> {
        // The runtime may not know yet that connections wait; the kernel does.
        let listener = listener.into_std()?;
        while let Ok((stream, source)) = listener.accept() {
            stream.set_nonblocking(true)?;
            self.take(TcpStream::from_std(stream)?, source, connections, drain);
        }
        Ok(())
    }

    fn take(
        &self,
        stream: TcpStream,
        source: std::net::SocketAddr,
        connections: &mut JoinSet<()>,
        drain: &DrainWatcher,
    ) {
        match self.admission.admit(source.ip()) {
            Ok((admitted, pending)) => {
                let record = Record::new(source, Arc::clone(&self.data_path.metrics), drain.clone(), admitted);
                let data_path = Arc::clone(&self.data_path);
                connections.spawn(async move { data_path.serve(stream, pending, record).await });
            }
            Err(shed) => self.shed(&stream, shed),
        }
    }

    /// A reset: the client learns at once, and no state of it stays in the kernel.
    fn shed(&self, stream: &TcpStream, shed: Shed) {
        self.data_path.metrics.shed.add(shed.label(), 1);
        // Without the option it is closed in order, which tells it as well.
        let _ = reset_on_close(stream);
    }
}
