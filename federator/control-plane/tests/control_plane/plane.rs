//! A cluster in its federation: joining, exporting, importing, quarantine, and life without the federation.

use std::time::Duration;

use federation_api::client::discovery::WatchOptions;
use federation_api::discovery::v1::ProxyKind;
use federation_api::discovery::v1::resource::Resource as Content;
use federation_api::record::v1::statement::Payload;
use federation_api::verify::{DenyList, verify_member};
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, UdpSocket};

use crate::federation_fake::Fake;
use crate::member::{Peer, cluster, federation};
use crate::program::{EXPORT, Program, SHOP};
use crate::proxy::{Proxy, advertise, identity, options};

fn exporters(import: &Value) -> Vec<&str> {
    import["clusters"].as_array().unwrap().iter().filter_map(|it| it["cluster"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_joins_and_publishes_what_it_exports() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::start().await;
    let program = Program::start(directory.path()).await;
    program.write("shop.yaml", &format!("{SHOP}---\n{EXPORT}"));
    program.until_import("cart", |_| true).await;
    assert!(!program.process.readiness().is_ready());
    let other = fake.token("west").to_string();
    let (status, answer) = program.request("POST", "/v1/join", &format!(r#"{{"token": "{other}"}}"#)).await.unwrap();
    assert_eq!((status, answer["error"].as_str()), (400, Some("the token is for cluster west, this is east")));
    let token = fake.token("east").to_string();
    program.join(&token).await;
    let (status, _) = program.request("POST", "/v1/join", &format!(r#"{{"token": "{token}"}}"#)).await.unwrap();
    assert_eq!(status, 409, "a token makes one membership");

    let gateway = identity(&program, "isthmus-system", "east-west-gateway").await;
    let watch = WatchOptions { advertise: advertise("127.1.0.9", 15443), ..options("gw-0") };
    let _proxy = Proxy::watch(&program, &gateway, ProxyKind::Gateway, watch);
    program
        .until("the records", async |_| {
            let keys: Vec<_> = fake.published("east").into_keys().collect();
            (keys == ["exports/shop/cart", "gateways", "heads"]).then_some(())
        })
        .await;
    let member = verify_member(&fake.root.public(), &federation(), &fake.member("east").unwrap(), None).unwrap();
    assert_eq!(member.cluster(), &cluster("east"));
    let ready = async |it: &Program| {
        let exports = it.get("/v1/exports").await;
        (exports["exports"][0]["conditions"][1]["status"] == "True").then_some(())
    };
    program.until("Ready=True", ready).await;
    let manifest = program.import("shop/serviceexport-cart.yaml").unwrap_or_default();
    assert!(manifest.contains("kind: ServiceExport"), "{manifest}");
    program.write("shop.yaml", SHOP);
    program
        .until("the withdrawal", async |_| {
            let published = fake.published("east");
            matches!(published["exports/shop/cart"].payload, Some(Payload::Withdrawal(_))).then_some(())
        })
        .await;
    fake.forget_bundle("east");
    program.until("the bundle", async |_| fake.bundle_of("east")).await;
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peers_service_is_imported_named_probed_and_quarantined() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::start().await;
    let program = Program::start(directory.path()).await;
    program.write("ns.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n");
    program.join(&fake.token("east").to_string()).await;
    // Takes connections and says nothing: a gateway that is there, without a sidecar behind it.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut west = Peer::new(&fake.root, "west");
    fake.add("west", &mut west);
    let gateway = west.gateway("127.0.0.1", silent.local_addr().unwrap().port());
    fake.publish(vec![gateway]);
    let west_gateway = async |it: &Program, measured: &str, reachable: bool| {
        let clusters = it.get("/v1/clusters").await;
        let gateway = clusters["clusters"][0]["gateways"][0].clone();
        (gateway["reachable"] == reachable && (!reachable || gateway["measured"] == measured)).then_some(gateway)
    };
    let measured = program.until("the probe", async |it| west_gateway(it, "connection", true).await).await;
    assert!(measured["roundTripUs"].as_u64().unwrap() > 0 && measured["ageMs"].is_u64());
    let records = vec![west.export("shop/cart", |_| {}), west.heads()];
    fake.publish(records);
    let import = program.until_import("cart", |import| exporters(import) == ["west"]).await;
    let failed = program.until("the failed probe", async |it| west_gateway(it, "", false).await).await;
    assert!(failed["lastError"].is_string() && failed["lastSuccessAgeMs"].is_u64(), "{failed}");
    assert_eq!(resolve(&program, "cart.shop.svc.clusterset.local").await, import["ips"][0].as_str().unwrap());

    fake.set_liveness("west", false);
    program.until_import("cart", |import| import["clusters"][0]["suspect"] == true).await;
    let workload = identity(&program, "shop", "frontend").await;
    let mut proxy = Proxy::watch(&program, &workload, ProxyKind::Sidecar, options("frontend-0"));
    proxy.handle.subscribe(["cart.shop.svc.clusterset.local".parse().unwrap()], []).unwrap();
    let host = "service/cart.shop.svc.clusterset.local";
    proxy.until(host, |it| matches!(it, Content::Service(it) if it.clusters[0].suspect)).await;
    proxy.until("trust/west.mesh.example", |_| true).await;

    let mut list = DenyList::empty(federation());
    list.epoch = 1;
    list.clusters.insert(cluster("west"));
    fake.deny(&list);
    proxy.until_gone("trust/west.mesh.example").await;
    proxy.until("mesh", |it| matches!(it, Content::Mesh(it) if it.deny_list.is_some())).await;
    proxy.until(host, |it| matches!(it, Content::Absent(_))).await;
    program
        .until("the end of the import", async |it| it.import("shop/serviceimport-cart.yaml").is_none().then_some(()))
        .await;
    let epoch = fake.epoch();
    program.until("the acknowledgement", async |_| (fake.acked() == (epoch, Vec::new())).then_some(())).await;
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_may_not_dial_out_probes_others_through_its_gateways_way_out() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::start().await;
    let program = Program::start_with(directory.path(), |config| config.egress_restricted = true).await;
    program.write("ns.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n");
    program.join(&fake.token("east").to_string()).await;
    let far = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut west = Peer::new(&fake.root, "west");
    fake.add("west", &mut west);
    let port = far.local_addr().unwrap().port();
    let records = vec![west.export("shop/cart", |_| {}), west.gateway("127.0.0.1", port), west.heads()];
    fake.publish(records);
    program.until_import("cart", |import| exporters(import) == ["west"]).await;
    let west_gateway = async |it: &Program, error: &str| {
        let gateway = it.get("/v1/clusters").await["clusters"][0]["gateways"][0].clone();
        gateway["lastError"].as_str().is_some_and(|last| last.contains(error)).then_some(gateway)
    };
    let without = program.until("no way out", async |it| west_gateway(it, "egress side").await).await;
    assert!(without["reachable"] == false && without["through"].is_null(), "{without}");

    let way_out = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = identity(&program, "isthmus-system", "east-west-gateway").await;
    let mut place = advertise("203.0.113.9", 15443).unwrap();
    (place.egress_address, place.egress_port) = ("127.0.0.1".to_owned(), way_out.local_addr().unwrap().port().into());
    let watch = WatchOptions { advertise: Some(place), ..options("gw-0") };
    let _proxy = Proxy::watch(&program, &gateway, ProxyKind::Gateway, watch);
    let (mut probe, _) = way_out.accept().await.unwrap();
    let mut hello = vec![0; 4096];
    let length = probe.read(&mut hello).await.unwrap();
    let name = b"_.c-west_.cart.shop.svc.clusterset.local";
    assert!(hello[..length].windows(name.len()).any(|part| part == name), "the name of the other cluster");
    drop(probe);
    let through = async |it: &Program| west_gateway(it, "").await.filter(|gateway| gateway["through"] == "gw-0");
    program.until("a probe through the way out", through).await;
    let direct = tokio::time::timeout(Duration::ZERO, far.accept()).await;
    assert!(direct.is_err(), "nobody dials out");
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_goes_on_without_the_federation_over_restarts_too() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::start().await;
    let program = Program::start(directory.path()).await;
    program.write("shop.yaml", &format!("{SHOP}---\n{EXPORT}"));
    program.join(&fake.token("east").to_string()).await;
    let mut west = Peer::new(&fake.root, "west");
    fake.add("west", &mut west);
    let records = vec![west.export("shop/cart", |_| {}), west.gateway("127.0.0.1", 9), west.heads()];
    fake.publish(records);
    let import = program.until_import("cart", |import| exporters(import) == ["east", "west"]).await;
    fake.stop();
    program
        .until("the loss", async |it| (it.get("/v1/status").await["federator"]["connected"] == false).then_some(()))
        .await;
    program.stop().await;

    let program = Program::start(directory.path()).await;
    program.until("readiness", async |it| it.process.readiness().is_ready().then_some(())).await;
    let again = program.until_import("cart", |import| exporters(import) == ["east", "west"]).await;
    assert_eq!(import["ips"], again["ips"]);
    let status = program.get("/v1/status").await;
    assert_eq!((status["synced"].as_bool(), status["federator"]["connected"].as_bool()), (Some(true), Some(false)));
    assert!(status["federator"]["ageMs"].is_u64(), "the age of what came from the disk is known");

    fake.serve().await;
    program
        .until("the session", async |it| (it.get("/v1/status").await["federator"]["connected"] == true).then_some(()))
        .await;
    let news = west.export("shop/cart", |export| export.zones[0].ready = 1);
    fake.publish(vec![news]);
    program.until_import("cart", |import| import["clusters"][1]["ready"] == 1).await;
    program.stop().await;
}

/// The A record of a name, asked over UDP by hand.
async fn resolve(program: &Program, name: &str) -> String {
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let ask = async |_: &Program| {
        socket.send_to(&query, program.dns).await.unwrap();
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer).await.unwrap();
        let answers = u16::from_be_bytes([answer[6], answer[7]]);
        let address: [u8; 4] = answer[..length].last_chunk().copied()?;
        (answers == 1).then(|| std::net::Ipv4Addr::from(address).to_string())
    };
    program.until("the answer", ask).await
}
