//! Proxies over real TLS: SVIDs, and what each is told.

use std::path::Path;
use std::time::Duration;

use federation_api::client::discovery::{Discovery, DiscoveryEvent, WatchOptions, issue_svid};
use federation_api::client::{Events, Reconnect};
use federation_api::discovery::v1::resource::Resource as Content;
use federation_api::discovery::v1::{Advertise, ProxyKind, Resource};
use mesh_tls::rpc::{self, ChannelOptions};
use mesh_tls::{ExpectedPeer, Identity, TrustStore, client_config, new_key_and_csr, pem};
use rustls_pki_types::CertificateDer;
use spiffe_identity::{Bundle, SpiffeId, TrustDomain};
use tonic::Code;
use tonic::transport::Channel;

use crate::program::{EXPORT, PATIENCE, Program, SHOP};

pub(crate) fn pinned(directory: &Path) -> TrustStore {
    let root = std::fs::read(directory.join("state/root.crt")).unwrap();
    let trust = TrustStore::new();
    trust.insert(Bundle {
        trust_domain: "east.mesh.example".parse().unwrap(),
        x509_authorities: pem::certificates_from_pem(&root).unwrap(),
        sequence: 1,
        refresh_hint: None,
    });
    trust
}

fn channel(program: &Program, identity: Option<&Identity>) -> Channel {
    let trust_domain: TrustDomain = "east.mesh.example".parse().unwrap();
    let id = SpiffeId::workload(&trust_domain, "isthmus-system", "control-plane").unwrap();
    let config = client_config(identity, &pinned(&program.directory), ExpectedPeer::exactly(id), &[rpc::ALPN]);
    rpc::channel([program.discovery], config, ChannelOptions::default())
}

/// An SVID as a proxy gets it.
pub(crate) async fn identity(program: &Program, namespace: &str, account: &str) -> Identity {
    let body = format!(r#"{{"namespace": "{namespace}", "serviceAccount": "{account}", "expiresSeconds": 600}}"#);
    let (_, answer) = program.request("POST", "/v1/service-account-tokens", &body).await.unwrap();
    let (key, csr) = new_key_and_csr().unwrap();
    let token = answer["token"].as_str().unwrap().to_owned();
    let issued = issue_svid(channel(program, None), csr, Some(token)).await.unwrap();
    let chain = issued.certificate_chain.into_iter().map(CertificateDer::from).collect();
    Identity::from_der(chain, key).unwrap()
}

pub(crate) struct Proxy {
    pub(crate) handle: Discovery,
    events: Events<DiscoveryEvent>,
}

impl Proxy {
    pub(crate) fn watch(program: &Program, identity: &Identity, kind: ProxyKind, options: WatchOptions) -> Self {
        let (handle, events) = Discovery::watch(channel(program, Some(identity)), WatchOptions { kind, ..options });
        Self { handle, events }
    }

    /// Applies updates until a resource is as wished.
    pub(crate) async fn until(&mut self, name: &str, check: impl Fn(&Content) -> bool) -> Resource {
        let found = tokio::time::timeout(PATIENCE, async {
            loop {
                let resources = self.handle.resources();
                let found = resources.iter().find(|resource| resource.name == name);
                if let Some(found) = found.filter(|found| found.resource.as_ref().is_some_and(&check)) {
                    return found.as_ref().clone();
                }
                self.step().await;
            }
        });
        found.await.unwrap_or_else(|_| panic!("{name} did not come: {:?}", self.names()))
    }

    pub(crate) async fn until_gone(&mut self, name: &str) {
        let gone = tokio::time::timeout(PATIENCE, async {
            while self.names().iter().any(|known| known == name) {
                self.step().await;
            }
        });
        gone.await.unwrap();
    }

    async fn step(&mut self) {
        match self.events.recv().await.unwrap() {
            DiscoveryEvent::Update { ticket, .. } => self.handle.applied(ticket),
            DiscoveryEvent::FromDisk(_) | DiscoveryEvent::Connected => {}
            DiscoveryEvent::Disconnected { reason, .. } => panic!("{reason}"),
        }
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.handle.resources().iter().map(|resource| resource.name.clone()).collect()
    }

    /// Why the server refuses the watch.
    async fn refused(mut self) -> String {
        loop {
            if let DiscoveryEvent::Disconnected { reason, .. } = self.events.recv().await.unwrap() {
                return reason.to_string();
            }
        }
    }
}

pub(crate) fn options(name: &str) -> WatchOptions {
    WatchOptions {
        kind: ProxyKind::Sidecar,
        proxy: name.to_owned(),
        workload_addresses: Vec::new(),
        hosts: Vec::new(),
        advertise: None,
        state_file: None,
        reconnect: Reconnect { first: Duration::from_millis(10), ..Reconnect::default() },
    }
}

pub(crate) fn advertise(address: &str, port: u32) -> Option<Advertise> {
    Some(Advertise { address: address.to_owned(), port, ..Advertise::default() })
}

#[tokio::test(flavor = "multi_thread")]
async fn svids_are_issued_for_tokens_and_renewed_by_themselves() {
    let directory = tempfile::tempdir().unwrap();
    let program = Program::start(directory.path()).await;
    let identity = identity(&program, "shop", "cart").await;
    assert_eq!(identity.spiffe_id().unwrap().to_string(), "spiffe://east.mesh.example/ns/shop/sa/cart");
    let (_, csr) = new_key_and_csr().unwrap();
    let renewed = issue_svid(channel(&program, Some(&identity)), csr.clone(), None).await.unwrap();
    let leaf = CertificateDer::from(renewed.certificate_chain[0].clone());
    assert_eq!(spiffe_identity::check_leaf(&leaf).unwrap(), identity.spiffe_id().unwrap());
    let refused = async |csr: &[u8], token: Option<&str>| {
        issue_svid(channel(&program, None), csr.to_vec(), token.map(str::to_owned)).await.unwrap_err().code()
    };
    assert_eq!(refused(&csr, None).await, Code::Unauthenticated);
    assert_eq!(refused(&csr, Some("a.b.c")).await, Code::Unauthenticated);
    let body = r#"{"namespace": "shop", "serviceAccount": "cart"}"#;
    let (_, answer) = program.request("POST", "/v1/service-account-tokens", body).await.unwrap();
    assert_eq!(refused(b"no request", answer["token"].as_str()).await, Code::InvalidArgument);
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_is_told_what_it_asks_for_and_what_it_answers() {
    let directory = tempfile::tempdir().unwrap();
    let program = Program::start(directory.path()).await;
    program.write("shop.yaml", &format!("{SHOP}---\n{EXPORT}"));
    let import = program.until_import("cart", |import| import["clusters"][0]["ready"] == 1).await;
    let identity = identity(&program, "shop", "cart").await;
    let workload_addresses = vec!["127.1.0.7".parse().unwrap()];
    let mut proxy =
        Proxy::watch(&program, &identity, ProxyKind::Sidecar, WatchOptions { workload_addresses, ..options("cart-0") });
    proxy
        .until(
            "workload",
            |it| matches!(it, Content::Workload(it) if it.bindings.len() == 1 && it.endpoint == "east/shop/cart-0"),
        )
        .await;
    proxy.until("mesh", |it| matches!(it, Content::Mesh(it) if it.trust_domain == "east.mesh.example")).await;
    proxy.until("trust/east.mesh.example", |_| true).await;
    assert!(!proxy.names().iter().any(|name| name.starts_with("service/") || name.starts_with("route/")));
    let vip = import["ips"][0].as_str().unwrap().parse().unwrap();
    proxy.handle.subscribe(["gone.shop.svc.clusterset.local".parse().unwrap()], [vip]).unwrap();
    let host = "service/cart.shop.svc.clusterset.local";
    let ready = |it: &Content| matches!(it, Content::Service(it) if it.clusters[0].endpoints[0].ready);
    let first = proxy.until(host, ready).await;
    proxy.until("service/gone.shop.svc.clusterset.local", |it| matches!(it, Content::Absent(_))).await;
    program.write(
        "shop.yaml",
        &format!("{SHOP}---\n{EXPORT}").replace("targetRef", "conditions: {ready: false}, targetRef"),
    );
    let second = proxy.until(host, |it| !ready(it)).await;
    assert_ne!(first.version, second.version);
    program.write("shop.yaml", &format!("{SHOP}---\n{EXPORT}"));
    assert_eq!(proxy.until(host, ready).await.version, first.version, "a version is the content's");
    program.write("shop.yaml", SHOP);
    proxy.until(host, |it| matches!(it, Content::Absent(_))).await;
    proxy.until("workload", |it| matches!(it, Content::Workload(it) if it.bindings.is_empty())).await;
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecars_are_told_of_local_services_while_their_namespace_has_opted_in_and_gateways_never() {
    const OPTED_IN: &str =
        "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {isthmus.dev/local-services: enabled}}\n";
    let directory = tempfile::tempdir().unwrap();
    let program = Program::start(directory.path()).await;
    let shop = SHOP.replace("spec: {ports", "spec: {clusterIP: 10.96.0.7, ports");
    program.write("shop.yaml", &format!("{shop}---\n{EXPORT}"));
    program.until_import("cart", |_| true).await;
    let workload = identity(&program, "shop", "cart").await;
    let workload_addresses = vec!["127.1.0.7".parse().unwrap()];
    let watch = WatchOptions { workload_addresses, ..options("cart-0") };
    let mut sidecar = Proxy::watch(&program, &workload, ProxyKind::Sidecar, watch);
    let gateway = identity(&program, "isthmus-system", "east-west-gateway").await;
    let mut gateway = Proxy::watch(&program, &gateway, ProxyKind::Gateway, options("gw-0"));
    let host = "service/cart.shop.svc.cluster.local";
    sidecar.handle.subscribe(["cart.shop.svc.cluster.local".parse().unwrap()], []).unwrap();
    sidecar.until(host, |it| matches!(it, Content::Absent(_))).await;

    program.write("shop.yaml", &format!("{shop}---\n{EXPORT}{OPTED_IN}"));
    let told = |it: &Content| matches!(it, Content::LocalServices(it) if it.addresses == ["10.96.0.7"]);
    sidecar.until("local-services", told).await;
    let known = |it: &Content| matches!(it, Content::Service(it) if it.vips == ["10.96.0.7"] && it.clusters.len() == 1);
    sidecar.until(host, known).await;
    sidecar.until("workload", |it| matches!(it, Content::Workload(it) if it.bindings.len() == 2)).await;
    // By the address alone, as of a captured connection.
    let other = identity(&program, "shop", "frontend").await;
    let mut other = Proxy::watch(&program, &other, ProxyKind::Sidecar, options("frontend-0"));
    other.handle.subscribe([], ["10.96.0.7".parse().unwrap()]).unwrap();
    other.until(host, known).await;
    gateway.until("route/cart.shop.svc.clusterset.local", |_| true).await;
    assert!(gateway.names().iter().all(|name| !name.contains("cluster.local") && name != "local-services"));

    program.write("shop.yaml", &format!("{shop}---\n{EXPORT}"));
    sidecar.until_gone("local-services").await;
    sidecar.until(host, |it| matches!(it, Content::Absent(_))).await;
    sidecar.until("workload", |it| matches!(it, Content::Workload(it) if it.bindings.len() == 1)).await;
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_may_not_dial_out_is_told_its_gateways_way_out() {
    let directory = tempfile::tempdir().unwrap();
    let program = Program::start_with(directory.path(), |config| config.egress_restricted = true).await;
    program.write("shop.yaml", &format!("{SHOP}---\n{EXPORT}"));
    program.until_import("cart", |_| true).await;
    let workload = identity(&program, "shop", "cart").await;
    let mut sidecar = Proxy::watch(&program, &workload, ProxyKind::Sidecar, options("cart-0"));
    let gateway = identity(&program, "isthmus-system", "east-west-gateway").await;
    let mut place = advertise("203.0.113.9", 15443).unwrap();
    (place.egress_address, place.egress_port) = ("127.1.0.9".to_owned(), 15444);
    let watch = WatchOptions { advertise: Some(place), ..options("gw-0") };
    let mut gateway = Proxy::watch(&program, &gateway, ProxyKind::Gateway, watch);
    let told = |content: &Content| match content {
        Content::Mesh(mesh) => mesh
            .egress_gateways
            .iter()
            .any(|way_out| way_out.name == "gw-0" && way_out.address == "127.1.0.9" && way_out.port == 15444),
        _ => false,
    };
    sidecar.until("mesh", told).await;
    gateway.until("mesh", told).await;
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_is_told_exported_services_only_and_nobody_else_is_one() {
    let directory = tempfile::tempdir().unwrap();
    let program = Program::start(directory.path()).await;
    let other = SHOP.replace("cart", "ads").replace("127.1.0.7", "127.1.0.8");
    program.write("shop.yaml", &format!("{SHOP}---\n{EXPORT}---\n{other}"));
    program.until_import("cart", |_| true).await;
    let gateway = identity(&program, "isthmus-system", "east-west-gateway").await;
    let watch = WatchOptions { advertise: advertise("127.1.0.9", 15443), ..options("gw-0") };
    let mut proxy = Proxy::watch(&program, &gateway, ProxyKind::Gateway, watch);
    let route = proxy.until("route/cart.shop.svc.clusterset.local", |_| true).await;
    let Some(Content::Route(route)) = route.resource else { panic!("{route:?}") };
    assert_eq!((route.ports, route.endpoints[0].mesh_port), (vec![7070], 15008));
    assert!(!proxy.names().contains(&"route/ads.shop.svc.clusterset.local".to_owned()));
    program
        .until("the gateway", async |it| (it.get("/v1/status").await["gateways"][0]["port"] == 15443).then_some(()))
        .await;
    program.write("shop.yaml", &format!("{SHOP}---\n{other}"));
    proxy.until_gone("route/cart.shop.svc.clusterset.local").await;
    let workload = identity(&program, "shop", "cart").await;
    let refused = Proxy::watch(&program, &workload, ProxyKind::Gateway, options("gw-1")).refused().await;
    assert!(refused.contains("only isthmus-system/east-west-gateway may be a gateway"), "{refused}");
    let watch = WatchOptions { advertise: advertise("127.1.0.9", 15443), ..options("cart-0") };
    let refused = Proxy::watch(&program, &workload, ProxyKind::Sidecar, watch).refused().await;
    assert!(refused.contains("only a gateway"), "{refused}");
    program.stop().await;
}
