//! Trust domains outside the federation: go-spiffe fetches the mesh's bundles from its endpoint, as SPIRE does, and serves
//! bundles that the mesh fetches; then workloads of both sides meet.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::ensure;
use e2e::lab::{Lab, READY, wait};
use mesh_tls::{new_key_and_csr, pem};
use serde_json::{Value, json};
use spiffe_identity::{Bundle, SpiffeId, TrustDomain};
use svid_issuer::Authority;
use tempfile::TempDir;

use crate::programs::{self, Program, Server};
use crate::{NORTH_CLIENT, PING, REDIS, lab_with};

/// Whom clients of profile `https_spiffe` expect.
const ENDPOINT_ID: &str = "spiffe://mesh.example/service/trust-bundle";
const HOUR: Duration = Duration::from_secs(3600);

/// A web server's certificate for an address, its key and the authority to believe, as PEM files.
struct Web {
    certificate: PathBuf,
    key: PathBuf,
    roots: PathBuf,
}

impl Web {
    fn write(directory: &Path, address: &str) -> Self {
        std::fs::create_dir_all(directory).unwrap();
        let mut root = rcgen::CertificateParams::new(Vec::new()).unwrap();
        root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = rcgen::CertifiedIssuer::self_signed(root, rcgen::KeyPair::generate().unwrap()).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(vec![address.to_owned()]).unwrap();
        let files = ["web.crt", "web.key", "web-roots.pem"].map(|name| directory.join(name));
        let [certificate, key_file, roots] = files;
        std::fs::write(&certificate, leaf.signed_by(&key, &root).unwrap().pem()).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        std::fs::write(&roots, root.pem()).unwrap();
        Self { certificate, key: key_file, roots }
    }
}

/// A lab whose trust-bundle serves bundles by profile `https_web`, with a certificate written to `web`, or without by
/// `https_spiffe`; and where.
async fn lab_with_endpoint(web: Option<&Path>) -> (Lab, TempDir, String) {
    let mut url = String::new();
    let (lab, directory) = lab_with(async |lab| {
        url = format!("https://{}:8443", lab.federation.trust_bundle_address(0));
        let endpoint = |address: Ipv4Addr| {
            let Some(directory) = web else { return format!("bundleEndpoint: {{listen: \"{address}:8443\"}}\n") };
            let Web { certificate, key, .. } = Web::write(directory, &address.to_string());
            let web = json!({ "certificateFile": certificate, "keyFile": key });
            format!("bundleEndpoint: {{listen: \"{address}:8443\", web: {web}}}\n")
        };
        lab.federation.configure_trust_bundles(endpoint).await.unwrap();
    })
    .await;
    (lab, directory, url)
}

/// The federation's own bundle, as an operator hands it to the other side's operator.
fn bootstrap(lab: &Lab, directory: &Path) -> String {
    let root = std::fs::read(lab.federation.operator_directory().join("federation-root.crt")).unwrap();
    let x509_authorities = pem::certificates_from_pem(&root).unwrap();
    let trust_domain: TrustDomain = "mesh.example".parse().unwrap();
    let bundle = Bundle { trust_domain, x509_authorities, sequence: 1, refresh_hint: None };
    let path = directory.join("bootstrap.json");
    std::fs::write(&path, bundle.to_jwks()).unwrap();
    path.display().to_string()
}

async fn fetch(go: &Program, trust_domain: &str, url: &str, how: &[&str]) -> anyhow::Result<Value> {
    let url = format!("{url}/{trust_domain}");
    go.run(&[&["fetch-bundle", "--trust-domain", trust_domain, "--url", &url], how].concat()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn go_spiffe_fetches_the_members_bundles_by_profile_https_spiffe() {
    let go = programs::go().await;
    let (mut lab, directory, url) = lab_with_endpoint(None).await;
    let bootstrap = bootstrap(&lab, directory.path());
    let how = ["--endpoint-id", ENDPOINT_ID, "--bootstrap", &bootstrap];
    for trust_domain in ["mesh.example", "east.mesh.example", "north.mesh.example"] {
        let got = fetch(&go, trust_domain, &url, &how).await.unwrap();
        assert_eq!((&got["roots"], &got["jwt"]), (&json!(1), &json!(0)), "{trust_domain}: {got}");
        assert!(got["sequence"].as_u64().unwrap() > 0, "{trust_domain}: {got}");
    }
    // A root that is being replaced is there beside the next one, under a higher sequence.
    let before = fetch(&go, "east.mesh.example", &url, &how).await.unwrap();
    lab.cluster("east").unwrap().operator().isthmus(&["rotate", "root"]).await.unwrap();
    wait::until("both roots", READY, || async {
        let got = fetch(&go, "east.mesh.example", &url, &how).await?;
        ensure!(got["roots"] == 2 && got["sequence"].as_u64() > before["sequence"].as_u64(), "{got}");
        Ok(())
    })
    .await
    .unwrap();

    // One thing differs each: whose server it is to be, and whose bundle is asked for.
    let other = ["--endpoint-id", "spiffe://mesh.example/service/federator", "--bootstrap", &bootstrap];
    let refused = fetch(&go, "east.mesh.example", &url, &other).await.unwrap_err().to_string();
    assert!(refused.contains("unexpected ID"), "{refused}");
    let refused = fetch(&go, "nobody.mesh.example", &url, &how).await.unwrap_err().to_string();
    // go-spiffe does not look at the status, but finds nothing to read.
    assert!(refused.contains("unable to parse JWKS"), "{refused}");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn go_spiffe_fetches_the_members_bundles_by_profile_https_web() {
    let go = programs::go().await;
    let files = tempfile::tempdir().unwrap();
    let roots = |name: &str| files.path().join(name).join("web-roots.pem").display().to_string();
    let (lab, _directory, url) = lab_with_endpoint(Some(&files.path().join("web"))).await;
    let got = fetch(&go, "east.mesh.example", &url, &["--web-roots", &roots("web")]).await.unwrap();
    assert_eq!(got["roots"], 1);
    Web::write(&files.path().join("other"), "127.0.0.1");
    let refused = fetch(&go, "east.mesh.example", &url, &["--web-roots", &roots("other")]).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("unknown authority"), "{refused}");
    lab.stop().await;
}

/// A trust domain outside the federation, with one workload and a go-spiffe server for its bundle.
struct Partner {
    directory: PathBuf,
    trust_domain: TrustDomain,
    authority: Authority,
}

impl Partner {
    fn new(directory: &Path, name: &str) -> Self {
        let (directory, trust_domain): (_, TrustDomain) = (directory.join(name), name.parse().unwrap());
        let authority = Authority::open_or_create(&directory.join("ca"), &trust_domain, SystemTime::now()).unwrap();
        let partner = Self { directory, trust_domain, authority };
        let bundle = Bundle {
            trust_domain: partner.trust_domain.clone(),
            x509_authorities: vec![partner.authority.root()],
            sequence: 1,
            refresh_hint: None,
        };
        std::fs::write(partner.file("bundle.json"), bundle.to_jwks()).unwrap();
        partner.issue("workload", "/workload");
        partner.issue("server", "/bundle-server");
        partner
    }

    fn file(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    /// An SVID as two PEM files.
    fn issue(&self, name: &str, path: &str) {
        let id: SpiffeId = format!("spiffe://{}{path}", self.trust_domain).parse().unwrap();
        let (key, csr) = new_key_and_csr().unwrap();
        let svid = self.authority.issue(&csr, &id, HOUR, SystemTime::now()).unwrap();
        std::fs::write(self.file(&format!("{name}.crt")), pem::certificates_to_pem(&svid.chain)).unwrap();
        std::fs::write(self.file(&format!("{name}.key")), pem::private_key_to_pem(&key)).unwrap();
    }

    /// Its go-spiffe bundle server, and its address.
    async fn serve(&self, go: &Program, profile: &str, certificate: &str, key: &str) -> (Server, String) {
        let (name, bundle) = (self.trust_domain.as_str(), self.file("bundle.json"));
        let arguments = ["serve-bundle", "--trust-domain", name, "--bundle", &bundle, "--profile", profile];
        let mut server =
            go.start(&[&arguments[..], &["--certificate", certificate, "--key", key]].concat()).await.unwrap();
        let address = server.line().await.unwrap()["address"].as_str().unwrap().to_owned();
        (server, address)
    }

    /// What its workload hears from a service of the mesh, whose bundle it fetches from the mesh's endpoint.
    async fn call(&self, go: &Program, mesh: &Mesh) -> anyhow::Result<Value> {
        let (svid, key) = (self.file("workload.crt"), self.file("workload.key"));
        let name = "outbound_.6379_._.redis-cart.shop.svc.clusterset.local";
        let who = ["dial", "--svid", &svid, "--key", &key, "--expect", REDIS];
        let whom = ["--address", &mesh.gateway, "--name", name, "--alpn", "isthmus-tcp", "--send", PING];
        let bundle = ["--url", &mesh.url, "--endpoint-id", ENDPOINT_ID, "--bootstrap", &mesh.bootstrap];
        go.run(&[&who[..], &whom, &bundle].concat()).await
    }
}

/// What the other side is told of the mesh.
struct Mesh {
    gateway: String,
    url: String,
    bootstrap: String,
}

/// Lets workloads of other trust domains call the store.
fn let_in(lab: &mut Lab, trust_domains: &[&str]) {
    let policy = json!({
        "apiVersion": "isthmus.dev/v1alpha1", "kind": "AccessPolicy",
        "metadata": { "name": "partners", "namespace": "shop" },
        "spec": { "action": "Allow", "ports": [6379], "rules": [{ "trustDomains": trust_domains }] },
    });
    let path = lab.cluster("north").unwrap().directory().join("manifests/access.yaml");
    std::fs::write(path, policy.to_string()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn go_spiffe_workloads_of_trust_domains_federated_by_configuration_call_the_mesh() {
    let go = programs::go().await;
    let (mut lab, directory, url) = lab_with_endpoint(None).await;
    let by_web = Partner::new(directory.path(), "web.example");
    let by_spiffe = Partner::new(directory.path(), "spire.example");
    let unknown = Partner::new(directory.path(), "unknown.example");
    let web = Web::write(&directory.path().join("web"), "127.0.0.1");
    let (certificate, key) = (web.certificate.display().to_string(), web.key.display().to_string());
    let (_web_server, web_address) = by_web.serve(&go, "https_web", &certificate, &key).await;
    let (certificate, key) = (by_spiffe.file("server.crt"), by_spiffe.file("server.key"));
    let (_spiffe_server, spiffe_address) = by_spiffe.serve(&go, "https_spiffe", &certificate, &key).await;

    let foreign = json!([
        { "trustDomain": "web.example", "url": format!("https://{web_address}/"),
          "profile": { "https_web": { "rootsFile": web.roots } } },
        { "trustDomain": "spire.example", "url": format!("https://{spiffe_address}/"),
          "profile": { "https_spiffe": { "endpointId": "spiffe://spire.example/bundle-server",
                                         "bootstrapBundleFile": by_spiffe.file("bundle.json") } } },
    ]);
    let north = lab.cluster("north").unwrap();
    north.configure_control_plane(&format!("foreignTrustDomains: {foreign}\n")).await.unwrap();
    north.control_plane.ready(READY).await.unwrap();
    let gateway = north.gateway_address(0).to_string();
    let socket = north.workload_api("client").display().to_string();
    let url = format!("{url}/north.mesh.example");
    let mesh = Mesh { gateway, url, bootstrap: bootstrap(&lab, directory.path()) };
    wait::until("workloads of north know both", READY, || async {
        let got = go.run(&["fetch", "--socket", &socket]).await?;
        ensure!(got["id"] == NORTH_CLIENT, "{got}");
        ensure!(got["roots"]["web.example"] == 1 && got["roots"]["spire.example"] == 1, "{got}");
        Ok(())
    })
    .await
    .unwrap();

    // Known is not welcome, from when the store's sidecar has heard of the trust domain as the client's has.
    wait::until("the store's sidecar refuses by its verdict", READY, || async {
        let answer = by_web.call(&go, &mesh).await;
        let refused = answer.as_ref().err().is_some_and(|error| error.to_string().contains("the verdict is"));
        ensure!(refused, "{answer:?}");
        Ok(())
    })
    .await
    .unwrap();
    let_in(&mut lab, &["web.example", "spire.example", "unknown.example"]);
    for partner in [&by_web, &by_spiffe] {
        let answer = wait::until("the store answers", READY, || partner.call(&go, &mesh)).await.unwrap();
        assert_eq!(answer, json!({ "peer": REDIS, "answer": "+PONG\r\n" }));
    }
    // Welcome is not known: without its roots nobody believes it.
    let refused = unknown.call(&go, &mesh).await.unwrap_err().to_string();
    assert!(refused.contains("certificate") || refused.contains("bad_certificate"), "{refused}");
    lab.stop().await;
}
