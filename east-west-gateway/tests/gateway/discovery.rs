//! The whole program, from its first contact with a control-plane to a restart without one.

use std::{net::SocketAddr, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use east_west_gateway::{Config, bind, run_on};
use federation_api::discovery::v1::{TrustBundle, resource::Resource as Kind};
use mesh_runtime::Process;
use rustls::AlertDescription;
use tempfile::TempDir;
use tokio::{
    net::TcpStream,
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::{
    control_plane::{ControlPlane, TOKEN},
    lab::{Authority, Endpoint, HOST, PATIENCE, Session, config, endpoint, name, refusing_address, route, session_at},
};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A gateway as its program runs it.
struct Program {
    address: SocketAddr,
    process: Process,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Program {
    /// Starts one with its state, the pinned root and its token in `directory`.
    fn start(directory: &Path, control_plane: SocketAddr) -> Self {
        Self::start_with(directory, control_plane, |_| {})
    }

    fn start_with(directory: &Path, control_plane: SocketAddr, adjust: impl FnOnce(&mut Config)) -> Self {
        let mut config = config(directory.join("state"));
        adjust(&mut config);
        config.discovery.addresses = vec![control_plane.to_string()];
        config.discovery.root_file = directory.join("root.crt");
        config.discovery.token_file = directory.join("token");
        let process = Process::for_tests();
        let sockets = bind(&config).unwrap();
        let address = sockets[0].socket.local_addr().unwrap();
        let unready = process.readiness().require("first state");
        let running = tokio::spawn(run_on(config, process.clone(), unready, sockets));
        Self { address, process, running }
    }

    async fn until(&self, what: &str, holds: impl AsyncFn() -> bool) {
        let until = Instant::now() + PATIENCE;
        while !holds().await {
            assert!(Instant::now() < until, "never: {what}\n{}", self.process.metrics_text().unwrap());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn ready(&self) {
        self.until("ready", async || self.process.readiness().is_ready()).await;
    }

    /// A session, as soon as the gateway listens: it does so after it is ready.
    async fn session(&self, authority: &Authority) -> Result<Session, Option<AlertDescription>> {
        self.until("listening", async || TcpStream::connect(self.address).await.is_ok()).await;
        session_at(self.address, authority, &name("c-east")).await
    }

    fn has_metric(&self, line: &str) -> bool {
        self.process.metrics_text().unwrap().contains(&format!("isthmus_test_{line}\n"))
    }

    async fn stop(self) {
        self.process.trigger_drain();
        timeout(PATIENCE, self.running).await.unwrap().unwrap().unwrap();
    }
}

fn directory_with_token() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("token"), format!("{TOKEN}\n")).unwrap();
    directory
}

#[tokio::test]
async fn the_first_contact_ends_with_an_svid_on_disk_and_sessions_passed_on() {
    let (directory, authority) = (directory_with_token(), Authority::new());
    let echo = Endpoint::start(&authority, "echo-1").await;
    let control_plane = ControlPlane::start(directory.path(), DAY).await;
    control_plane.set_mesh();
    control_plane.set_route(route(&[echo.wire("eu-1")]));
    let gateway = Program::start(directory.path(), control_plane.address);
    assert_eq!(gateway.process.readiness().waiting_for(), ["first state"]);
    gateway.ready().await;
    assert_eq!(gateway.session(&authority).await.unwrap().id, echo.id);

    let svid = directory.path().join("state/svid.pem");
    assert_eq!(svid.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(directory.path().join("state").metadata().unwrap().permissions().mode() & 0o777, 0o700);
    control_plane.hears("an acknowledgement", |heard| !heard.acks.is_empty()).await;
    let heard = control_plane.heard.lock().unwrap();
    assert_eq!((heard.by_token, heard.by_svid), (1, 0));
    assert_eq!(heard.watchers[0].to_string(), "spiffe://east.mesh.example/ns/isthmus-system/sa/east-west-gateway");
    let advertised = &heard.advertised[0];
    assert_eq!(
        (advertised.address.as_str(), advertised.port, advertised.draining),
        ("gateway.east.example", 15443, false)
    );
    assert_eq!(advertised.locality.as_ref().unwrap().zone, "eu-1");
    for line in ["routes 1.0", "endpoints 1.0", "endpoints_ready 1.0", "synced 1.0", "state_age_seconds 0.0"] {
        assert!(gateway.has_metric(line), "no {line} in {}", gateway.process.metrics_text().unwrap());
    }
}

#[tokio::test]
async fn changes_are_followed_and_bad_ones_are_reported() {
    let (directory, authority) = (directory_with_token(), Authority::new());
    let echo = Endpoint::start(&authority, "echo-1").await;
    let control_plane = ControlPlane::start(directory.path(), DAY).await;
    let gateway = Program::start(directory.path(), control_plane.address);
    gateway.ready().await;
    let unknown = Some(Some(AlertDescription::UnrecognisedName));
    assert_eq!(gateway.session(&authority).await.err(), unknown, "nothing is exported yet");

    control_plane.set_route(route(&[echo.wire("eu-1")]));
    gateway.until("exported", async || gateway.session(&authority).await.is_ok()).await;

    let mut bad = route(&[]);
    bad.ports = vec![70_000];
    control_plane.set_route(bad);
    control_plane.hears("a complaint", |heard| heard.acks.iter().any(|ack| ack.error.contains("70000"))).await;
    assert!(gateway.has_metric("resources_rejected_total 1"));
    assert!(gateway.session(&authority).await.is_ok(), "the last good one stays");

    // The route of one service under the name of another could never be removed.
    control_plane.set("route/other.shop.svc.clusterset.local", Kind::Route(route(&[])));
    control_plane.hears("a complaint", |heard| heard.acks.iter().any(|ack| ack.error.contains(HOST))).await;
    assert!(gateway.session(&authority).await.is_ok());

    control_plane.remove(&format!("route/{HOST}"));
    gateway.until("exported no more", async || gateway.session(&authority).await.err() == unknown).await;
}

#[tokio::test]
async fn a_gateway_restarts_from_disk_with_no_control_plane() {
    let (directory, authority) = (directory_with_token(), Authority::new());
    let echo = Endpoint::start(&authority, "echo-1").await;
    let control_plane = ControlPlane::start(directory.path(), DAY).await;
    control_plane.set_mesh();
    control_plane.set_route(route(&[echo.wire("eu-1")]));
    let address = control_plane.address;
    let gateway = Program::start(directory.path(), address);
    gateway.ready().await;
    assert!(gateway.session(&authority).await.is_ok());

    drop(control_plane);
    gateway.until("alone", async || gateway.has_metric("synced 0.0")).await;
    assert!(gateway.process.readiness().is_ready(), "age is no reason to be unready");
    assert!(gateway.session(&authority).await.is_ok());
    gateway.stop().await;

    let started = Instant::now();
    let gateway = Program::start(directory.path(), address);
    gateway.ready().await;
    assert_eq!(gateway.session(&authority).await.unwrap().id, echo.id);
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert!(gateway.has_metric("synced 0.0"));
    gateway.stop().await;
}

#[tokio::test]
async fn a_restarted_gateway_resumes_with_what_it_knows_and_the_svid_it_has() {
    let (directory, authority) = (directory_with_token(), Authority::new());
    let echo = Endpoint::start(&authority, "echo-1").await;
    let control_plane = ControlPlane::start(directory.path(), DAY).await;
    control_plane.set_mesh();
    control_plane.set_route(route(&[echo.wire("eu-1")]));
    let gateway = Program::start(directory.path(), control_plane.address);
    gateway.ready().await;
    gateway.stop().await;
    // No token any more: the SVID must do.
    std::fs::remove_file(directory.path().join("token")).unwrap();
    // While it was away a service came and another went.
    control_plane.remove("mesh");
    let gateway = Program::start(directory.path(), control_plane.address);
    gateway.until("synced", async || gateway.has_metric("synced 1.0")).await;
    assert!(gateway.session(&authority).await.is_ok());
    let heard = control_plane.heard.lock().unwrap();
    assert_eq!(heard.known, ["mesh".to_owned(), format!("route/{HOST}")]);
    assert_eq!((heard.by_token, heard.by_svid), (1, 0));
}

#[tokio::test]
async fn the_svid_is_renewed_by_itself_at_half_its_life() {
    let directory = directory_with_token();
    let control_plane = ControlPlane::start(directory.path(), Duration::from_secs(3)).await;
    let gateway = Program::start(directory.path(), control_plane.address);
    gateway.ready().await;
    let first = std::fs::read(directory.path().join("state/svid.pem")).unwrap();
    std::fs::remove_file(directory.path().join("token")).unwrap();
    let started = Instant::now();
    control_plane.hears("a renewal", |heard| heard.by_svid >= 1).await;
    let after = started.elapsed();
    assert!(after >= Duration::from_millis(200) && after <= Duration::from_secs(3), "renewed after {after:?}");
    gateway.until("on disk", async || std::fs::read(directory.path().join("state/svid.pem")).unwrap() != first).await;
    assert_eq!(control_plane.heard.lock().unwrap().by_token, 1);
}

#[tokio::test]
async fn a_wrong_token_is_tried_again_from_its_file() {
    let directory = directory_with_token();
    std::fs::write(directory.path().join("token"), "stale").unwrap();
    let control_plane = ControlPlane::start(directory.path(), DAY).await;
    let gateway = Program::start(directory.path(), control_plane.address);
    assert!(TcpStream::connect(gateway.address).await.is_err(), "it does not listen before it has a state");
    std::fs::write(directory.path().join("token"), TOKEN).unwrap();
    gateway.ready().await;
    assert_eq!(control_plane.heard.lock().unwrap().by_token, 1);
}

#[tokio::test]
async fn a_stranger_in_the_control_planes_place_gets_no_token_and_gives_no_state() {
    let (directory, impostors) = (directory_with_token(), tempfile::tempdir().unwrap());
    let control_plane = ControlPlane::start(directory.path(), DAY).await;
    // Another root, and the right root but another identity.
    let stranger = ControlPlane::start(impostors.path(), DAY).await;
    let workload = ControlPlane::start_as(directory.path(), DAY, "cart").await;
    for impostor in [&stranger, &workload] {
        impostor.set_route(route(&[]));
        let gateway = Program::start(directory.path(), impostor.address);
        gateway.until("refused twice", async || gateway.has_metric("svid_request_failures_total 2")).await;
        assert!(!gateway.process.readiness().is_ready());
        assert_eq!(impostor.heard.lock().unwrap().by_token, 0);
        gateway.stop().await;
    }
    // With the right one the same files do.
    let gateway = Program::start(directory.path(), control_plane.address);
    gateway.ready().await;
}

#[tokio::test]
async fn an_announced_root_is_believed_beside_the_pinned_one() {
    let (directory, next) = (directory_with_token(), tempfile::tempdir().unwrap());
    let control_plane = ControlPlane::start(directory.path(), DAY).await;
    let pinned = std::fs::read(directory.path().join("root.crt")).unwrap();
    // The cluster's next root: announced by the control-plane of today, used by the one of tomorrow.
    let tomorrow = ControlPlane::start(next.path(), DAY).await;
    let root = std::fs::read(next.path().join("root.crt")).unwrap();
    let root = mesh_tls::pem::certificates_from_pem(&root).unwrap()[0].to_vec();
    let trust_domain = "east.mesh.example".to_owned();
    let name = format!("trust/{trust_domain}");
    let bundle = TrustBundle { trust_domain, x509_authorities: vec![root], sequence: 2 };
    control_plane.set(&name, Kind::TrustBundle(bundle));
    let gateway = Program::start(directory.path(), control_plane.address);
    gateway.ready().await;
    gateway.stop().await;
    drop(control_plane);
    // The SVID of the old root is of no use to the new control-plane.
    std::fs::remove_file(directory.path().join("state/svid.pem")).unwrap();
    tomorrow.set_route(route(&[endpoint("east/shop/echo-1", refusing_address().await, "eu-1")]));
    let gateway = Program::start(directory.path(), tomorrow.address);
    gateway.until("synced with tomorrow's", async || gateway.has_metric("routes 1.0")).await;
    assert_eq!(std::fs::read(directory.path().join("root.crt")).unwrap(), pinned);
}

#[tokio::test]
async fn a_draining_gateway_says_so_to_its_control_plane() {
    let (directory, authority) = (directory_with_token(), Authority::new());
    let echo = Endpoint::start(&authority, "echo-1").await;
    let control_plane = ControlPlane::start(directory.path(), DAY).await;
    control_plane.set_route(route(&[echo.wire("eu-1")]));
    let gateway = Program::start(directory.path(), control_plane.address);
    gateway.ready().await;
    let mut session = gateway.session(&authority).await.unwrap();
    gateway.process.trigger_drain();
    control_plane.hears("draining", |heard| heard.advertised.last().is_some_and(|last| last.draining)).await;
    session.echo("still served").await;
    drop(session);
    timeout(PATIENCE, gateway.running).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn one_listener_on_all_addresses_takes_both_families() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let echo = Endpoint::start(&authority, "echo-1").await;
    let control_plane = ControlPlane::start(directory.path(), DAY).await;
    control_plane.set_route(route(&[echo.wire("eu-1")]));
    std::fs::write(directory.path().join("token"), TOKEN).unwrap();
    let program = Program::start_with(directory.path(), control_plane.address, |config| {
        config.listen = vec!["[::]:0".parse().unwrap()];
        config.workers = 2;
        // What is said of an IPv4 source counts for it, though it comes as an IPv4-mapped address.
        config.limits.max_pending_per_source = 1;
    });
    program.ready().await;
    let port = program.address.port();
    for address in [SocketAddr::from(([127, 0, 0, 1], port)), SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port))] {
        program.until("listening", async || TcpStream::connect(address).await.is_ok()).await;
        let mut session = loop {
            // The probe before may still be counted as one whose hello is awaited.
            match session_at(address, &authority, &name("c-east")).await {
                Ok(session) => break session,
                Err(alert) => assert_eq!(alert, None),
            }
        };
        session.echo("over either").await;
    }
    program.stop().await;
}
