//! Several programs as they are installed: one that takes over from another, and ones that are short of something.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::{Child, Command},
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{
    control_plane::{ControlPlane, TOKEN},
    lab::{Authority, Endpoint, PATIENCE, name, route, session_at},
};

/// One program. The `network` keeps tests apart, the `number` programs of one test.
struct Installed {
    child: Child,
    admin: SocketAddr,
    health: SocketAddr,
}

fn own_address(network: u8, port: u16) -> SocketAddr {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(127, network, high, low), port))
}

impl Installed {
    /// Starts it, under `before` where that is a command such as `ulimit -n 30`.
    fn start(
        directory: &Path,
        control_plane: &ControlPlane,
        network: u8,
        number: u16,
        more: &str,
        before: &str,
    ) -> Self {
        let (admin, health) = (own_address(network, 16000 + number), own_address(network, 17000 + number));
        let text = format!(
            "runtime: {{ admin: '{admin}', health: '{health}', drainDeadline: 10s }}
name: gateway-{number}
listen: ['{listen}', '[::1]:{v6_port}']
advertise: {{ address: gateway.east.example }}
discovery:
  addresses: ['{control_plane}']
  trustDomain: east.mesh.example
  rootFile: {directory}/root.crt
  tokenFile: {directory}/token
stateDirectory: {directory}/state-{number}
{more}
",
            listen = own_address(network, 15443),
            v6_port = v6(network).port(),
            control_plane = control_plane.address,
            directory = directory.display(),
        );
        let config = directory.join(format!("gateway-{number}.yaml"));
        std::fs::write(&config, text).unwrap();
        std::fs::write(directory.join("token"), TOKEN).unwrap();
        let child = Command::new("sh")
            .arg("-c")
            .arg(format!("{before}\nexec \"$0\" --config \"$1\""))
            .arg(env!("CARGO_BIN_EXE_east-west-gateway"))
            .arg(&config)
            .kill_on_drop(true)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, admin, health }
    }

    /// Until it says that it is ready, and is.
    async fn listening(self, network: u8) -> Self {
        let until = Instant::now() + PATIENCE;
        while !(get(self.health, "/readyz").await.starts_with("HTTP/1.1 200")
            && TcpStream::connect(own_address(network, 15443)).await.is_ok())
        {
            assert!(Instant::now() < until, "never ready");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self
    }

    async fn metric(&self, line: &str) {
        let wanted = format!("isthmus_east_west_gateway_{line}\n");
        let until = Instant::now() + PATIENCE;
        loop {
            let metrics = get(self.admin, "/metrics").await;
            if metrics.contains(&wanted) {
                return;
            }
            assert!(Instant::now() < until, "no {line:?} in:\n{metrics}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn end(mut self) {
        let pid = Pid::from_raw(self.child.id().unwrap().try_into().unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        assert_eq!(timeout(PATIENCE, self.child.wait()).await.unwrap().unwrap().code(), Some(0));
    }
}

/// There is one address of IPv6 to bind: the port keeps tests apart.
fn v6(network: u8) -> SocketAddr {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let port = 20_000 + (u16::from_be_bytes([high, low]) % 500) * 20 + u16::from(network % 20);
    SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port))
}

/// The answer to a GET, head and body; empty while nobody listens.
async fn get(address: SocketAddr, path: &str) -> String {
    let mut answer = String::new();
    if let Ok(mut stream) = TcpStream::connect(address).await {
        let request = format!("GET {path} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let _ = stream.read_to_string(&mut answer).await;
    }
    answer
}

/// Sessions one after the other, as many at a time as there are tasks, each with its own connection.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    tasks: JoinSet<()>,
}

impl Load {
    fn start(authority: &Arc<Authority>, gateway: SocketAddr) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        for _ in 0..4 {
            let (authority, stop, done) = (Arc::clone(authority), Arc::clone(&stop), Arc::clone(&done));
            tasks.spawn(async move {
                while !stop.load(SeqCst) {
                    let opened = session_at(gateway, &authority, &name("")).await;
                    let mut session = opened.unwrap_or_else(|alert| panic!("refused: {alert:?}"));
                    session.echo("not lost").await;
                    session.stream.shutdown().await.unwrap();
                    done.fetch_add(1, SeqCst);
                }
            });
        }
        Self { stop, done, tasks }
    }

    /// Until so many more are done.
    async fn goes_on(&self, more: usize) {
        let wanted = self.done.load(SeqCst) + more;
        let until = Instant::now() + PATIENCE;
        while self.done.load(SeqCst) < wanted {
            assert!(Instant::now() < until, "{} of {wanted}", self.done.load(SeqCst));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Every session must have been whole.
    async fn end(mut self) {
        self.stop.store(true, SeqCst);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_under_load_loses_no_session() {
    const NETWORK: u8 = 81;
    let directory = tempfile::tempdir().unwrap();
    let authority = Arc::new(Authority::new());
    let echo = Endpoint::start(&authority, "echo-1").await;
    let control_plane = ControlPlane::start(directory.path(), Duration::from_secs(3600)).await;
    control_plane.set_route(route(&[echo.wire("eu-1")]));
    let start = |number| Installed::start(directory.path(), &control_plane, NETWORK, number, "workers: 2", "");
    let mut gateway = start(0).listening(NETWORK).await;
    let load = Load::start(&authority, own_address(NETWORK, 15443));
    for number in 1..4 {
        load.goes_on(20).await;
        // The successor's health says that it is ready; from then on both listen.
        let successor = start(number).listening(NETWORK).await;
        load.goes_on(20).await;
        successor.metric("synced 1.0").await;
        gateway.end().await;
        gateway = successor;
    }
    load.goes_on(20).await;
    load.end().await;
    gateway.end().await;
}

#[tokio::test]
async fn both_families_are_served_by_every_thread() {
    const NETWORK: u8 = 82;
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let echo = Endpoint::start(&authority, "echo-1").await;
    let control_plane = ControlPlane::start(directory.path(), Duration::from_secs(3600)).await;
    control_plane.set_route(route(&[echo.wire("eu-1")]));
    let gateway =
        Installed::start(directory.path(), &control_plane, NETWORK, 0, "workers: 3", "").listening(NETWORK).await;
    for address in [own_address(NETWORK, 15443), v6(NETWORK)] {
        // By their ports they come to all threads.
        for _ in 0..12 {
            session_at(address, &authority, &name("")).await.unwrap().echo("both").await;
        }
    }
    assert_eq!(echo.accepted(), 24);
    gateway.end().await;
}

#[tokio::test]
async fn without_descriptors_new_connections_are_reset_and_old_ones_stay() {
    const NETWORK: u8 = 83;
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let echo = Endpoint::start(&authority, "echo-1").await;
    let control_plane = ControlPlane::start(directory.path(), Duration::from_secs(3600)).await;
    control_plane.set_route(route(&[echo.wire("eu-1")]));
    let more = "workers: 1\nlimits: { helloDeadline: 60s }";
    let gateway =
        Installed::start(directory.path(), &control_plane, NETWORK, 0, more, "ulimit -n 64").listening(NETWORK).await;
    let mut session = session_at(own_address(NETWORK, 15443), &authority, &name("")).await.unwrap();
    let mut held = Vec::new();
    // Connections without a hello take what is left.
    let until = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < until, "{} connections are taken", held.len());
        // The reset may come before the client has looked at its own connect.
        let mut stream = match TcpStream::connect(own_address(NETWORK, 15443)).await {
            Ok(stream) => stream,
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
                break;
            }
        };
        match timeout(Duration::from_millis(50), stream.read_u8()).await {
            Ok(ended) => {
                assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
                break;
            }
            Err(_) => held.push(stream),
        }
    }
    session.echo("old ones stay").await;
    drop((held, session));
    // And when there are some again, new ones are served.
    while session_at(own_address(NETWORK, 15443), &authority, &name("")).await.is_err() {
        assert!(Instant::now() < until);
    }
    let metrics = get(gateway.admin, "/metrics").await;
    assert!(!metrics.contains("shed_total{limit=\"descriptors\"} 0"), "{metrics}");
    gateway.end().await;
}

#[tokio::test]
async fn without_memory_new_connections_are_reset() {
    const NETWORK: u8 = 84;
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let echo = Endpoint::start(&authority, "echo-1").await;
    let control_plane = ControlPlane::start(directory.path(), Duration::from_secs(3600)).await;
    control_plane.set_route(route(&[echo.wire("eu-1")]));
    let more = "limits: { maxMemory: 1 }";
    let gateway = Installed::start(directory.path(), &control_plane, NETWORK, 0, more, "").listening(NETWORK).await;
    assert!(session_at(own_address(NETWORK, 15443), &authority, &name("")).await.is_err());
    assert_eq!(echo.accepted(), 0);
    let metrics = get(gateway.admin, "/metrics").await;
    assert!(!metrics.contains("shed_total{limit=\"memory\"} 0"), "{metrics}");
    gateway.end().await;
}
