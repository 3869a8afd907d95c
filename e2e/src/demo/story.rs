//! The story, chapter by chapter.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use http::{HeaderMap, HeaderValue, Method};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::faults::Faults;
use super::screen::Screen;
use super::table;
use crate::client;
use crate::lab::binaries::Binaries;
use crate::lab::shop_federation::shop_federation;
use crate::lab::{ClusterDescription, Lab, NAMESPACE, READY, wait};
use crate::load::Load;
use crate::shop::proxy::Others;
use crate::shop::v1::GetCartRequest;
use crate::shop::v1::cart_client::CartClient;

/// No fault may need longer to be hidden.
const LONGEST_MOVE: std::time::Duration = std::time::Duration::from_secs(3);

/// Tells the whole story; the lab still runs when this returns.
///
/// # Errors
/// Something was not as expected; the error says what.
pub async fn tell(screen: &mut Screen, directory: &Path) -> anyhow::Result<Lab> {
    let mut lab = bring_up(screen, directory, shop_federation()).await?;
    export(screen, &mut lab).await?;
    names(screen, &mut lab).await?;
    calls(screen, &mut lab).await?;
    let rows = break_things(screen, &mut lab).await?;
    status(screen, &mut lab).await?;
    unexport(screen, &mut lab).await?;
    screen.chapter("what callers saw");
    table::print(screen, &rows);
    for row in &rows {
        ensure!(row.impact.failed.is_empty(), "{}: {} requests failed", row.fault, row.impact.failed.len());
        ensure!(row.impact.time_to_move <= LONGEST_MOVE, "{}: took {:?} to move", row.fault, row.impact.time_to_move);
    }
    Ok(lab)
}

/// Three clusters join one federation.
///
/// # Errors
/// A process does not start or a join is refused.
pub async fn bring_up(screen: &mut Screen, directory: &Path, clusters: Vec<ClusterDescription>) -> anyhow::Result<Lab> {
    screen.chapter("a federation, and three clusters that join it");
    screen.command("trust-bundle init --federation mesh.example …");
    let mut lab = Lab::start(directory, Binaries::build()?).await?;
    screen.command("isthmus token create --cluster east --namespace shop --address-range 127.…/16 | isthmus join -");
    lab.add(clusters).await?;
    let processes: usize = lab.clusters.iter_mut().map(|cluster| cluster.processes().count()).sum();
    screen.good(&format!("{} processes in 3 clusters are ready, every cluster with its own root", processes + 2));
    Ok(lab)
}

/// Every service is exported where it runs, and arrives everywhere.
///
/// # Errors
/// An export is refused or does not arrive.
pub async fn export(screen: &mut Screen, lab: &mut Lab) -> anyhow::Result<()> {
    screen.chapter("every service is exported where it runs");
    for (cluster, services) in shop_federation().into_iter().map(|cluster| (cluster.name, cluster.services)) {
        let operator = lab.cluster(cluster)?.operator();
        for service in services {
            operator.isthmus(&["export", &format!("{NAMESPACE}/{}", service.name)]).await?;
        }
    }
    screen.command("isthmus export shop/frontend");
    let expected: usize = shop_federation().iter().map(|cluster| cluster.services.len()).sum();
    for cluster in &lab.clusters {
        let operator = cluster.operator();
        wait::until("every import is there", READY, || async {
            let imports: serde_json::Value = operator.json(&["get", "imports"]).await?;
            let found = imported_clusters(&imports);
            ensure!(found == expected, "{found} of {expected} exports have arrived: {imports}");
            Ok(())
        })
        .await?;
    }
    let operator = lab.cluster("east")?.operator();
    screen.command("isthmus get imports");
    screen.fact(&operator.isthmus(&["get", "imports"]).await?);
    Ok(())
}

/// How many (service, exporting cluster) pairs a list of imports has.
#[must_use]
pub fn imported_clusters(imports: &serde_json::Value) -> usize {
    let list = imports.as_array().or_else(|| imports["imports"].as_array()).or_else(|| imports["items"].as_array());
    let clusters = list.into_iter().flatten().filter_map(|import| import["clusters"].as_array());
    clusters.map(Vec::len).sum()
}

async fn names(screen: &mut Screen, lab: &mut Lab) -> anyhow::Result<()> {
    screen.chapter("a name that every cluster resolves");
    let east = lab.cluster("east")?;
    let host = format!("checkoutservice.{NAMESPACE}.svc.clusterset.local");
    let server = east.dns().to_string();
    screen.command(&format!("isthmus dig {host} --server {server}"));
    let answer = east.operator().isthmus(&["dig", &host, "--server", &server]).await?;
    ensure!(answer.contains("241."), "no clusterset IP in {answer}");
    screen.fact(&answer);
    Ok(())
}

async fn calls(screen: &mut Screen, lab: &mut Lab) -> anyhow::Result<()> {
    let proxy = lab.cluster("east")?.client_proxy();
    screen.chapter("a local call");
    let others = Others { proxy: Some(proxy), namespace: NAMESPACE.to_owned() };
    let frontend = others.authority("frontend", 80);
    let traced =
        HeaderMap::from_iter([(http::HeaderName::from_static("isthmus-trace"), HeaderValue::from_static("1"))]);
    let url = format!("http://{frontend}/healthz");
    screen.command(&format!("curl --proxy http://{proxy} -H 'isthmus-trace: 1' {url}"));
    let answer = client::by_proxy(proxy, Method::GET, &url, &traced).await?;
    ensure!(answer.body.starts_with("east/"), "answered by {}", answer.body);
    tell_path(screen, answer.headers.get("isthmus-path"))?;

    screen.chapter("a call across clusters");
    let mut cart = CartClient::new(others.channel("cartservice", 7070)?);
    let mut request = tonic::Request::new(GetCartRequest { user_id: "demo".to_owned() });
    request.metadata_mut().insert("isthmus-trace", tonic::metadata::MetadataValue::from_static("1"));
    let begun = std::time::Instant::now();
    let answer = cart.get_cart(request).await?;
    screen.fact(&format!("cartservice.GetCart, gRPC, {:.1} ms", begun.elapsed().as_secs_f64() * 1000.0));
    tell_path(screen, answer.metadata().as_ref().get("isthmus-path"))?;
    let served = answer.into_inner().served;
    let caller = &served.first().context("the cart names nobody")?.caller;
    ensure!(caller.starts_with("spiffe://east.mesh.example/"), "the cart saw {caller:?} calling");
    screen.good(&format!("the application saw the caller's own identity, {caller}"));

    screen.chapter("a page view, a purchase, an order: five services in three clusters");
    for (method, path) in [(Method::POST, "/cart?product=KAYAK"), (Method::GET, "/"), (Method::POST, "/checkout")] {
        screen.command(&format!("curl -X {method} --proxy http://{proxy} http://{frontend}{path}"));
        let answer = client::by_proxy(proxy, method, &format!("http://{frontend}{path}"), &HeaderMap::new()).await?;
        ensure!(answer.status.is_success(), "{}: {}", answer.status, answer.body);
        let served = answer.body.lines().filter(|line| line.contains("served by") || line.contains("order"));
        screen.fact(&served.map(|line| line.replace("<p>", "").replace("</p>", "")).collect::<Vec<_>>().join("\n"));
    }
    Ok(())
}

fn tell_path(screen: &mut Screen, path: Option<&HeaderValue>) -> anyhow::Result<()> {
    let path = path.context("the sidecar told no path")?.to_str()?;
    path.split("; ").for_each(|part| screen.fact(part));
    Ok(())
}

async fn break_things(screen: &mut Screen, lab: &mut Lab) -> anyhow::Result<Vec<table::Row>> {
    screen.chapter("200 requests a second from east: half HTTP GET, half gRPC");
    let load = Load::start(lab.cluster("east")?.client_proxy(), NAMESPACE)?;
    let mut faults = Faults { lab, load, screen, rows: Vec::new() };
    faults.warm_up().await?;
    faults.local_endpoints().await?;
    faults.gateway().await?;
    faults.cluster().await?;
    faults.federation().await?;
    faults.local_endpoints_return().await?;
    Ok(faults.rows)
}

/// After everything was repaired, every cluster is measured to be reachable again.
async fn status(screen: &mut Screen, lab: &mut Lab) -> anyhow::Result<()> {
    screen.chapter("what east measures of the others, after the repairs");
    let operator = lab.cluster("east")?.operator();
    screen.command("isthmus status");
    let status = wait::until("status is healthy", READY, || async { operator.isthmus(&["status"]).await }).await?;
    screen.fact(&status);
    Ok(())
}

async fn unexport(screen: &mut Screen, lab: &mut Lab) -> anyhow::Result<()> {
    screen.chapter("unexported means unreachable");
    let north = lab.cluster("north")?;
    let gateway = north.gateway_address(0);
    let sni = format!("outbound_.5050_.c-north_.checkoutservice.{NAMESPACE}.svc.clusterset.local");
    let before = first_record(gateway, &sni).await?;
    ensure!(before == FirstRecord::Handshake, "an exported service answers a made-up client with {before:?}");
    screen.good("while exported, a hand-made SNI reaches the workload's own TLS");
    screen.command("isthmus unexport shop/checkoutservice");
    north.operator().isthmus(&["unexport", &format!("{NAMESPACE}/checkoutservice")]).await?;
    wait::until("the gateway refuses the name", READY, || async {
        let answer = first_record(gateway, &sni).await?;
        ensure!(answer == FirstRecord::Alert(UNRECOGNIZED_NAME), "the gateway still answers {answer:?}");
        Ok(())
    })
    .await?;
    screen.good("after it, the same SNI gets the TLS alert unrecognized_name");
    Ok(())
}

/// RFC 8446, section 6.2.
pub const UNRECOGNIZED_NAME: u8 = 112;

/// What a server's first TLS record is.
#[derive(Debug, PartialEq, Eq)]
pub enum FirstRecord {
    /// A handshake message: somebody with keys answers.
    Handshake,
    /// An alert with this description.
    Alert(u8),
}

/// Sends a genuine ClientHello with a made-up SNI and looks at what comes back.
///
/// # Errors
/// The connection, or an answer that is no TLS.
pub async fn first_record(address: SocketAddr, sni: &str) -> anyhow::Result<FirstRecord> {
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let mut hello = Vec::new();
    rustls::ClientConnection::new(Arc::new(config), ServerName::try_from(sni.to_owned())?)?.write_tls(&mut hello)?;
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(&hello).await?;
    let mut record = [0; 7];
    tokio::time::timeout(READY, stream.read_exact(&mut record)).await??;
    match record {
        [0x16, ..] => Ok(FirstRecord::Handshake),
        [0x15, .., description] => Ok(FirstRecord::Alert(description)),
        other => anyhow::bail!("no TLS record: {other:02x?}"),
    }
}
