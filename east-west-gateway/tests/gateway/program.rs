//! The program as it is installed: its file, its admin and health listeners, its signals and exit codes.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use east_west_gateway::Side;
use federation_api::{
    discovery::v1::{self as wire, resource::Resource as Kind},
    record::v1 as record,
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::{Child, Command},
    time::{Instant, timeout},
};

use super::{
    control_plane::{ControlPlane, TOKEN},
    lab::{Authority, Endpoint, HOST, PATIENCE, Running, name, route, session_at},
};

/// An address of this test's own, so that the usual ports are free.
fn own_address(port: u16) -> SocketAddr {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(127, 77, high, low), port))
}

fn write_config(directory: &Path, control_plane: SocketAddr, more: &str) -> PathBuf {
    let path = directory.join("gateway.yaml");
    let text = format!(
        "runtime: {{ admin: '{}', health: '{}', drainDeadline: 2s }}
name: gateway-1
listen: ['{}']
advertise: {{ address: gateway.east.example }}
locality: {{ region: eu, zone: eu-1 }}
discovery:
  addresses: ['{control_plane}']
  trustDomain: east.mesh.example
  rootFile: {root}
  tokenFile: {token}
stateDirectory: {state}
connect: {{ budget: 1s, attempt: 200ms }}
{more}
",
        own_address(15020),
        own_address(15021),
        own_address(15443),
        root = directory.join("root.crt").display(),
        token = directory.join("token").display(),
        state = directory.join("state").display(),
    );
    std::fs::write(&path, text).unwrap();
    path
}

fn spawn(config: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_east-west-gateway"));
    command.arg("--config").arg(config).kill_on_drop(true).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Status and body of a GET; `None` while nobody listens.
async fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    Some((head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned()))
}

async fn until_ready_is(status: u16, said: &str) {
    let until = Instant::now() + PATIENCE;
    while get(own_address(15021), "/readyz").await.is_none_or(|(found, body)| found != status || !body.contains(said)) {
        assert!(Instant::now() < until, "/readyz never answers {status} {said}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn ended(mut child: Child) -> (ExitStatus, String) {
    let mut stderr = child.stderr.take().unwrap();
    let mut text = String::new();
    let both = async { tokio::join!(child.wait(), stderr.read_to_string(&mut text)) };
    let (status, _) = timeout(PATIENCE, both).await.unwrap();
    (status.unwrap(), text)
}

#[tokio::test]
async fn the_program_serves_tells_of_itself_and_ends_on_sigterm() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("token"), TOKEN).unwrap();
    let authority = Authority::new();
    let echo = Endpoint::start(&authority, "echo-1").await;
    // Its control-plane comes later.
    let late = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let child = spawn(&write_config(directory.path(), late.local_addr().unwrap(), ""));
    until_ready_is(503, "waiting for first state\n").await;
    assert!(TcpStream::connect(own_address(15443)).await.is_err(), "it does not listen before it has a state");
    late.set_nonblocking(true).unwrap();
    let control_plane = ControlPlane::start_on(tokio::net::TcpListener::from_std(late).unwrap(), directory.path());
    control_plane.set_route(route(&[echo.wire("eu-1")]));
    until_ready_is(200, "").await;

    let mut session = loop {
        match session_at(own_address(15443), &authority, &name("c-east")).await {
            Ok(session) => break session,
            Err(alert) => assert_eq!(alert, None, "only until it listens"),
        }
    };
    session.echo("hello").await;
    let (status, routes) = get(own_address(15020), "/debug/routes").await.unwrap();
    let routes: serde_json::Value = serde_json::from_str(&routes).unwrap();
    assert_eq!(status, 200);
    assert_eq!(routes[0]["host"], HOST);
    assert_eq!(routes[0]["ports"], serde_json::json!([8080]));
    let expected = serde_json::json!([{
        "id": "east/shop/echo-1", "address": echo.address.to_string(), "region": "eu", "zone": "eu-1",
        "ready": true, "weight": 1, "avoided": false, "connections": 1,
    }]);
    assert_eq!(routes[0]["endpoints"], expected);
    let (_, metrics) = get(own_address(15020), "/metrics").await.unwrap();
    for line in ["connections 1", "pipes 0.0"] {
        assert!(metrics.contains(&format!("isthmus_east_west_gateway_{line}\n")), "no {line} in {metrics}");
    }

    let pid = Pid::from_raw(child.id().unwrap().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    until_ready_is(503, "draining\n").await;
    session.echo("undisturbed").await;
    drop(session);
    let (status, stderr) = ended(child).await;
    assert_eq!(status.code(), Some(0), "{stderr}");
}

#[tokio::test]
async fn with_egress_configured_it_advertises_a_way_out_and_leads_to_the_clusters_that_it_is_told_of() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("token"), TOKEN).unwrap();
    let authority = Authority::new();
    let echo = Endpoint::start(&authority, "echo-1").await;
    let west = Running::start_as("west", Side::Outside, &[echo.wire("us-1")], |_| {}).await;
    let control_plane = ControlPlane::start(directory.path(), Duration::from_secs(3600)).await;
    control_plane.set_mesh();
    let gateway = record::Gateway {
        name: "gw-1".to_owned(),
        address: west.address.ip().to_string(),
        port: west.address.port().into(),
        ..record::Gateway::default()
    };
    let remote = wire::Remote { cluster: "west".to_owned(), gateways: vec![gateway] };
    control_plane.set("remote/west", Kind::Remote(remote));
    let way_out = own_address(15444);
    let more = format!("egress: {{ listen: ['{way_out}'], address: {} }}", way_out.ip());
    let mut config = write_config(directory.path(), control_plane.address, &more);
    // Beside the other tests' programs.
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace(":15443'", ":15543'").replace(":15020'", ":15120'").replace(":15021'", ":15121'");
    config.set_file_name("egress.yaml");
    std::fs::write(&config, text).unwrap();
    let child = spawn(&config);
    let until = Instant::now() + PATIENCE;
    let mut session = loop {
        match session_at(way_out, &authority, &name("c-west.e-3")).await {
            Ok(session) => break session,
            Err(alert) => assert!(alert.is_none() && Instant::now() < until, "only until it listens: {alert:?}"),
        }
    };
    assert_eq!(session.id, echo.id);
    session.echo("out").await;
    let outside = session_at(own_address(15543), &authority, &name("c-west")).await.err();
    assert_eq!(outside, Some(Some(rustls::AlertDescription::UnrecognisedName)));
    let advertised = control_plane.heard.lock().unwrap().advertised.last().cloned().unwrap();
    assert_eq!((advertised.egress_address, advertised.egress_port), (way_out.ip().to_string(), 15444));
    let (_, remotes) = get(own_address(15120), "/debug/remotes").await.unwrap();
    let remotes: serde_json::Value = serde_json::from_str(&remotes).unwrap();
    assert_eq!(remotes[0]["cluster"], "west");
    assert_eq!(remotes[0]["connections"], 1);
    assert_eq!(remotes[0]["gateways"][0]["address"], west.address.to_string());
    drop(session);
    let pid = Pid::from_raw(child.id().unwrap().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let (status, stderr) = ended(child).await;
    assert_eq!(status.code(), Some(0), "{stderr}");
}

#[tokio::test]
async fn a_bad_configuration_is_refused_as_a_whole() {
    let directory = tempfile::tempdir().unwrap();
    let more =
        "limits: { helloMaxBytes: 100, maxConnections: 0 }\negress: { address: '', port: 0, allowedSources: [] }";
    let config = write_config(directory.path(), "127.0.0.1:1".parse().unwrap(), more);
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace("east.mesh.example", "East.mesh.example").replace("budget: 1s", "budget: 1ms");
    std::fs::write(&config, text).unwrap();
    let (status, stderr) = ended(spawn(&config)).await;
    assert_eq!(status.code(), Some(2));
    let limits = ["limits.helloMaxBytes", "limits.maxConnections", "discovery.trustDomain", "connect.budget"];
    for field in limits.into_iter().chain(["egress.address", "egress.port", "egress.allowedSources"]) {
        assert!(stderr.contains(field), "no {field} in:\n{stderr}");
    }
}
