//! A running control-plane, and how to ask it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use control_plane::config::Config;
use mesh_runtime::Process;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};
use tokio::task::JoinHandle;

/// Longer than anything here takes on a slow machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Program {
    pub(crate) directory: PathBuf,
    pub(crate) discovery: SocketAddr,
    pub(crate) dns: SocketAddr,
    pub(crate) process: Process,
    task: JoinHandle<anyhow::Result<()>>,
}

/// A port that was free a moment ago.
async fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

impl Program {
    pub(crate) async fn start(directory: &Path) -> Self {
        Self::start_with(directory, |_| {}).await
    }

    pub(crate) async fn start_with(directory: &Path, adjust: impl FnOnce(&mut Config)) -> Self {
        fs::create_dir_all(directory.join("manifests")).unwrap();
        let (discovery, dns) = (free_port().await, free_port().await);
        let config = format!(
            "cluster: east\nfederation: mesh.example\nstateDirectory: {root}/state\nmanifestsDirectory: \
             {root}/manifests\nimportsDirectory: {root}/imports\nadminSocket: {root}/admin.sock\ndiscovery: {{listen: \
             \"{discovery}\"}}\ndns: {{listen: [\"{dns}\"]}}\nclustersetIps: {{ipv4: 241.7.0.0/16}}\nprobes: {{interval: \
             200ms, timeout: 1s}}\n",
            root = directory.display()
        );
        let mut config: Config = serde_saphyr::from_str(&config).unwrap();
        adjust(&mut config);
        assert_eq!(mesh_runtime::Configuration::problems(&config), Vec::<String>::new());
        let process = Process::for_tests();
        let task = tokio::spawn(Box::pin(control_plane::run(config, process.clone())));
        let program = Self { directory: directory.to_owned(), discovery, dns, process, task };
        program.until("the admin socket", async |program| program.request("GET", "/v1/status", "").await.ok()).await;
        program
    }

    pub(crate) async fn stop(self) {
        self.process.trigger_drain();
        self.task.await.unwrap().unwrap();
    }

    /// Dies on the spot, as far as a task can.
    pub(crate) async fn crash(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
        // Its parts end a moment later.
        let socket = self.directory.join("admin.sock");
        let gone = async {
            while UnixStream::connect(&socket).await.is_ok() {
                tokio::task::yield_now().await
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.unwrap();
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.directory.join("manifests").join(name), text).unwrap();
    }

    pub(crate) fn import(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.directory.join("imports").join(name)).ok()
    }

    /// One HTTP request over the admin socket.
    pub(crate) async fn request(&self, method: &str, path: &str, body: &str) -> std::io::Result<(u16, Value)> {
        let mut stream = UnixStream::connect(self.directory.join("admin.sock")).await?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: \
             {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
        Ok((status, serde_json::from_str(body).unwrap_or(Value::String(body.to_owned()))))
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let (status, value) = self.request("GET", path, "").await.unwrap();
        assert_eq!(status, 200, "{value}");
        value
    }

    /// Asks again and again until there is an answer.
    pub(crate) async fn until<T>(&self, what: &str, check: impl AsyncFn(&Self) -> Option<T>) -> T {
        let found = tokio::time::timeout(PATIENCE, async {
            loop {
                if let Some(found) = check(self).await {
                    return found;
                }
                assert!(!self.task.is_finished(), "the program ended");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        match found {
            Ok(found) => found,
            Err(_) => {
                let status = self.request("GET", "/v1/status", "").await;
                panic!("{what} did not come true: {status:?}")
            }
        }
    }

    /// The import of a service, once `check` likes it.
    pub(crate) async fn until_import(&self, name: &str, check: impl Fn(&Value) -> bool) -> Value {
        let find = async |program: &Self| {
            let imports = program.get("/v1/imports").await;
            let found = imports["imports"].as_array()?.iter().find(|import| import["name"] == name)?;
            check(found).then(|| found.clone())
        };
        self.until(&format!("import {name}"), find).await
    }

    /// Joins, and waits until the program is ready.
    pub(crate) async fn join(&self, token: &str) {
        let (status, answer) = self.request("POST", "/v1/join", &format!(r#"{{"token": "{token}"}}"#)).await.unwrap();
        assert_eq!(status, 200, "{answer}");
        self.until("readiness", async |program| program.process.readiness().is_ready().then_some(())).await;
    }
}

/// A shop with one service, one endpoint with a sidecar and its export.
pub(crate) const SHOP: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {ports: [{name: grpc, port: 7070}]}
---
apiVersion: v1
kind: Pod
metadata: {name: cart-0, namespace: shop, annotations: {isthmus.dev/sidecar: "true"}}
spec: {serviceAccountName: cart, containers: []}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: cart-x, namespace: shop, labels: {kubernetes.io/service-name: cart}}
addressType: IPv4
ports: [{name: grpc, port: 17070}]
endpoints: [{addresses: [127.1.0.7], targetRef: {kind: Pod, name: cart-0}}]
"#;

pub(crate) const EXPORT: &str =
    "apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {name: cart, namespace: shop}\n";
