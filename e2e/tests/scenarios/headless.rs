//! Every endpoint of a headless service has a name and an address of its own in every cluster.

use std::net::SocketAddr;

use anyhow::ensure;
use e2e::client;
use e2e::lab::operator::Operator;
use e2e::lab::shop_federation::shop_federation;
use e2e::lab::{ClusterDescription, NAMESPACE, READY, wait};
use http::{HeaderMap, Method};

use crate::stage::Stage;

const SERVICE: &str = "web";

/// A headless service over the frontends of a cluster, each with a host name or without.
fn manifest(pods: &[(&str, String, Option<&str>)]) -> String {
    let endpoint = |(pod, address, hostname): &(&str, String, Option<&str>)| {
        let hostname = hostname.map(|hostname| format!("hostname: {hostname}, ")).unwrap_or_default();
        format!(
            "- {{addresses: [{address}], {hostname}conditions: {{ready: true}}, targetRef: {{kind: Pod, name: {pod}, \
             namespace: {NAMESPACE}}}}}\n"
        )
    };
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {SERVICE}, namespace: {NAMESPACE}}}\nspec:\n  clusterIP: None\n  \
         ports: [{{name: http, port: 80, targetPort: 8080}}]\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {SERVICE}-x, namespace: {NAMESPACE}, labels: {{kubernetes.io/service-name: {SERVICE}}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints:\n{}",
        pods.iter().map(endpoint).collect::<String>()
    )
}

/// West with two frontends that have host names, north with one that has none; east calls.
async fn set() -> (Stage, String) {
    let mut clusters: Vec<ClusterDescription> = shop_federation();
    let frontend = clusters[0].services[0].clone();
    for (cluster, replicas) in clusters.iter_mut().zip([0, 2, 1]) {
        cluster.services = vec![e2e::lab::ServiceDescription { replicas, ..frontend.clone() }];
        cluster.gateways = 1;
    }
    let mut stage = Stage::bare().await;
    stage.lab.add(clusters).await.unwrap();
    let north = address(&mut stage, "north", 0);
    let [first, second] = [0, 1].map(|pod| address(&mut stage, "west", pod));
    let west = [("frontend-0", first, Some("web-0")), ("frontend-1", second, Some("web-1"))];
    write(&mut stage, "west", &manifest(&west));
    write(&mut stage, "north", &manifest(&[("frontend-0", north.clone(), None)]));
    for cluster in ["west", "north"] {
        let operator = stage.lab.cluster(cluster).unwrap().operator();
        operator.isthmus(&["export", &format!("{NAMESPACE}/{SERVICE}")]).await.unwrap();
    }
    (stage, north)
}

fn address(stage: &mut Stage, cluster: &str, pod: usize) -> String {
    stage.lab.cluster(cluster).unwrap().pods_of("frontend").unwrap()[pod].facts.address.to_string()
}

fn write(stage: &mut Stage, cluster: &str, text: &str) {
    let directory = stage.lab.cluster(cluster).unwrap().directory().join("manifests");
    std::fs::write(directory.join("headless.yaml"), text).unwrap();
}

fn host(below: &str) -> String {
    let dot = if below.is_empty() { "" } else { "." };
    format!("{below}{dot}{SERVICE}.{NAMESPACE}.svc.clusterset.local")
}

/// What `dig` says, sorted.
async fn dig(server: SocketAddr, name: &str, kind: &str) -> anyhow::Result<Vec<String>> {
    let (at, port) = (format!("@{}", server.ip()), server.port().to_string());
    let told = Operator::run("dig".as_ref(), &[&at, "-p", &port, "+time=2", "+short", name, kind]).await?;
    let mut lines: Vec<String> = told.lines().map(str::to_owned).collect();
    lines.sort();
    Ok(lines)
}

async fn until_addresses(server: SocketAddr, name: &str, count: usize) -> Vec<String> {
    wait::until(&format!("{count} addresses of {name}"), READY, || async {
        let found = dig(server, name, "A").await?;
        ensure!(found.len() == count, "{found:?}");
        Ok(found)
    })
    .await
    .unwrap()
}

/// Who answers a request for a URL's host: `<cluster>/<pod>`, or the status.
async fn answered(proxy: SocketAddr, host: &str) -> Result<String, u16> {
    let url = format!("http://{host}/healthz");
    let answer = client::by_proxy(proxy, Method::GET, &url, &HeaderMap::new()).await.unwrap();
    if answer.status.is_success() { Ok(answer.body.trim().to_owned()) } else { Err(answer.status.as_u16()) }
}

/// What `curl` reads through a tunnel to a host when it asks there for another one, and the status.
async fn tunnelled(proxy: SocketAddr, host: &str, asked: &str) -> String {
    let (proxy, url, field) = (format!("http://{proxy}"), format!("http://{host}/healthz"), format!("host: {asked}"));
    let arguments = ["-sS", "-p", "--proxy", &proxy, "-H", &field, "-w", "%{http_code}", &url];
    Operator::run("curl".as_ref(), &arguments).await.unwrap()
}

async fn until_answered(proxy: SocketAddr, host: &str, by: &str) {
    wait::until(&format!("{by} answers for {host}"), READY, || async {
        let found = answered(proxy, host).await;
        ensure!(found.as_deref() == Ok(by), "{found:?}");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_headless_services_endpoints_are_called_one_by_one_from_other_clusters() {
    let (mut stage, north) = set().await;
    let (dns, proxy) = (stage.lab.cluster("east").unwrap().dns(), stage.lab.cluster("east").unwrap().client_proxy());
    let dashed = format!("{}.north", north.replace('.', "-"));
    let called = [("web-0.west", "west/frontend-0"), ("web-1.west", "west/frontend-1"), (&dashed, "north/frontend-0")];

    let all = until_addresses(dns, &host(""), 3).await;
    assert!(all.iter().all(|address| address.starts_with("241.")), "pod addresses mean nothing here: {all:?}");
    let mut each = Vec::new();
    for (below, _) in called {
        each.extend(until_addresses(dns, &host(below), 1).await);
    }
    let services = dig(dns, &host("_http._tcp"), "SRV").await.unwrap();
    assert_eq!(services.len(), 3, "{services:?}");
    assert!(services.iter().any(|record| record.ends_with(&format!(" 80 {}.", host("web-0.west")))), "{services:?}");

    let imports: serde_json::Value =
        stage.lab.cluster("east").unwrap().operator().json(&["get", "imports"]).await.unwrap();
    let import = imports.as_array().unwrap().iter().find(|it| it["name"] == SERVICE);
    let shown = import.unwrap()["endpoints"].as_array().unwrap();
    assert!(
        shown.iter().any(|it| it["host"] == host("web-0.west").as_str() && it["ips"][0] == each[0].as_str()),
        "{shown:?}"
    );

    for ((below, by), address) in called.into_iter().zip(&each) {
        assert!(all.contains(address));
        until_answered(proxy, &host(below), by).await;
        for _ in 0..5 {
            assert_eq!(answered(proxy, &host(below)).await.as_deref(), Ok(by), "by name");
            assert_eq!(answered(proxy, address).await.as_deref(), Ok(by), "by address");
        }
    }
    // The service's name resolves to each of them: an application that uses it reached one, and asks that one for it.
    assert_eq!(tunnelled(proxy, &host("web-0.west"), &host("")).await, "west/frontend-0\n200");
    let misdirected = tunnelled(proxy, &host("web-0.west"), &host("web-1.west")).await;
    assert!(misdirected.ends_with("421"), "{misdirected}");
    let within = stage.lab.cluster("west").unwrap().client_proxy();
    until_answered(within, &host("web-1.west"), "west/frontend-1").await;

    // A dead endpoint is not another one's to stand in for; the others do not notice.
    for pod in stage.lab.cluster("west").unwrap().pods_of("frontend").unwrap().iter_mut().take(1) {
        for process in [&mut pod.application, &mut pod.sidecar].into_iter().flatten() {
            process.kill().await.unwrap();
        }
    }
    assert!(answered(proxy, &host("web-0.west")).await.is_err());
    assert_eq!(answered(proxy, &host("web-1.west")).await.as_deref(), Ok("west/frontend-1"));
    let left = [("frontend-1", address(&mut stage, "west", 1), Some("web-1"))];
    write(&mut stage, "west", &manifest(&left));
    until_addresses(dns, &host("web-0.west"), 0).await;

    // It comes back elsewhere under its name, and callers find it where it was; a control-plane that restarts agrees.
    let moved = [("frontend-1", address(&mut stage, "west", 1), Some("web-0"))];
    write(&mut stage, "west", &manifest(&moved));
    assert_eq!(until_addresses(dns, &host("web-0.west"), 1).await, each[..1]);
    until_answered(proxy, &host("web-0.west"), "west/frontend-1").await;
    let east = stage.lab.cluster("east").unwrap();
    east.control_plane.kill().await.unwrap();
    east.control_plane.restart().unwrap();
    east.control_plane.ready(READY).await.unwrap();
    assert_eq!(until_addresses(dns, &host("web-0.west"), 1).await, each[..1]);
    assert_eq!(until_addresses(dns, &host(&dashed), 1).await, each[2..]);
    stage.end().await;
}
