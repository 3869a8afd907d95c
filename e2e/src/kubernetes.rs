//! Real API servers side by side on loopback: etcd, kube-apiserver and kube-controller-manager for each cluster.
//!
//! ```text
//!   ApiServers::start(directory, block) ──► 127.B.2.1 etcd ◄── 127.B.2.2:6443 kube-apiserver ◄── 127.B.2.3 kube-controller-manager
//!                                                                    ▲  Deployments to pods, Services to EndpointSlices
//!   Kubelet ── binds pods to two hand-made nodes, patches their status, ends them ──┘
//! ```
//!
//! RBAC is on, and so is every admission plugin that is on by default; each cluster has its own service range. There are
//! no nodes: a [`Kubelet`] stands in for them, and for the injector that marks pods with a sidecar. Processes are children
//! that die with their owner.

mod assets;
pub mod conformance;
mod deployed;
mod kubelet;
mod lab;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::{Api, ObjectMeta, PostParams};
use kube::config::{
    AuthInfo, Cluster, Context as KubeContext, KubeConfigOptions, Kubeconfig, NamedAuthInfo, NamedCluster, NamedContext,
};
use kube::{Client, Config};

use crate::lab::network::Block;
use crate::lab::operator::Operator;
use crate::lab::process::{Plan, Process};
use crate::lab::wait;

pub use assets::Assets;
pub use deployed::{ACCOUNT, Deployed, deploy};
pub use kubelet::Kubelet;
pub use lab::KubernetesLab;

/// How long an API server may take on a busy machine.
pub const READY: Duration = Duration::from_secs(120);

/// The administrator's token: the group `system:masters`.
const ADMIN_TOKEN: &str = "lab-administrator";

/// What makes EndpointSlices of pods, pods of Deployments, and cleans up; none that needs nodes to report.
const CONTROLLERS: &str = "serviceaccount-controller,root-ca-certificate-publisher-controller,namespace-controller,\
                           garbage-collector-controller,deployment-controller,replicaset-controller,\
                           statefulset-controller,endpointslice-controller";

/// One cluster's API server with its store and controllers.
pub struct ApiServers {
    name: String,
    directory: PathBuf,
    kubectl: PathBuf,
    block: Block,
    /// etcd.
    pub etcd: Process,
    /// kube-apiserver.
    pub api_server: Process,
    /// kube-controller-manager.
    pub controllers: Process,
    /// As administrator.
    pub client: Client,
}

impl ApiServers {
    /// Starts them and waits until service accounts are made.
    ///
    /// # Errors
    /// A program is missing, ends, or is not ready in time.
    pub async fn start(name: &str, directory: &Path, assets: &Assets, block: Block) -> anyhow::Result<Self> {
        let directory = directory.join("kubernetes");
        std::fs::create_dir_all(directory.join("certificates"))?;
        let key = rcgen::KeyPair::generate()?;
        std::fs::write(directory.join("service-accounts.key"), key.serialize_pem())?;
        std::fs::write(directory.join("service-accounts.pub"), key.public_key_pem())?;
        std::fs::write(
            directory.join("tokens.csv"),
            format!("{ADMIN_TOKEN},administrator,administrator,system:masters\n"),
        )?;
        let etcd = Process::start(etcd(name, &directory, assets, block))?;
        let api_server = Process::start(api_server(name, &directory, assets, block))?;
        let certificate = directory.join("certificates/apiserver.crt");
        wait::until(&format!("{name}: the API server's certificate"), READY, || {
            let written = std::fs::read_to_string(&certificate).is_ok_and(|text| text.contains("END CERTIFICATE"));
            let log = api_server.log().display();
            let outcome = if written { Ok(()) } else { Err(format!("not written, see {log}")) };
            std::future::ready(outcome)
        })
        .await?;
        let kubeconfig = kubeconfig(name, block, &certificate, ADMIN_TOKEN);
        let file = directory.join("administrator.kubeconfig");
        std::fs::write(&file, serde_json::to_string(&kubeconfig)?)?;
        let client = client(kubeconfig).await?;
        wait::until(&format!("{name}: kube-apiserver, log {}", api_server.log().display()), READY, || {
            let namespaces: Api<Namespace> = Api::all(client.clone());
            async move { namespaces.get("kube-system").await }
        })
        .await?;
        let controllers = Process::start(controllers(name, &directory, assets, block, &file))?;
        wait::until(&format!("{name}: kube-controller-manager, log {}", controllers.log().display()), READY, || {
            let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
            async move { accounts.get("default").await }
        })
        .await?;
        let kubectl = assets.kubectl.clone();
        Ok(Self { name: name.to_owned(), directory, kubectl, block, etcd, api_server, controllers, client })
    }

    /// The cluster's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The administrator's kubeconfig file; its context has the cluster's name.
    #[must_use]
    pub fn administrator(&self) -> PathBuf {
        self.directory.join("administrator.kubeconfig")
    }

    /// Where etcd answers.
    #[must_use]
    pub fn etcd_endpoint(&self) -> String {
        format!("http://{}:2379", self.block.address(2, 1))
    }

    /// `kubectl` as administrator; returns what it printed.
    ///
    /// # Errors
    /// It failed; the error has what it wrote.
    pub async fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let file = self.administrator().display().to_string();
        let mut all = vec!["--kubeconfig", file.as_str()];
        all.extend(arguments);
        Operator::run(&self.kubectl, &all).await
    }

    /// Applies a Kustomize folder on the server's side, with unknown fields refused.
    ///
    /// # Errors
    /// As [`ApiServers::kubectl`].
    pub async fn apply(&self, folder: &Path) -> anyhow::Result<String> {
        let folder = folder.display().to_string();
        self.kubectl(&["apply", "--server-side", "--validate=strict", "-k", &folder]).await
    }

    /// Makes a namespace unless it is there.
    ///
    /// # Errors
    /// The API server's.
    pub async fn namespace(&self, name: &str) -> anyhow::Result<()> {
        let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let namespace = Namespace { metadata, ..Namespace::default() };
        match namespaces.create(&PostParams::default(), &namespace).await {
            Ok(_) => Ok(()),
            Err(error) if already_there(&error) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// A token of a service account for an audience; none: the API server's own.
    ///
    /// # Errors
    /// The API server's.
    pub async fn token(&self, namespace: &str, account: &str, audience: Option<&str>) -> anyhow::Result<String> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let audiences = audience.map(|audience| vec![audience.to_owned()]);
        let spec = TokenRequestSpec { audiences, expiration_seconds: Some(3600), ..TokenRequestSpec::default() };
        let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        let answer = accounts.create_token_request(account, &PostParams::default(), &request).await?;
        answer.status.and_then(|status| status.token).context("a token request without an answer")
    }

    /// A kubeconfig file of a service account: what its pod would have.
    ///
    /// # Errors
    /// As [`ApiServers::token`], or the file cannot be written.
    pub async fn account_kubeconfig(&self, namespace: &str, account: &str) -> anyhow::Result<PathBuf> {
        let token = self.token(namespace, account, None).await?;
        let certificate = self.directory.join("certificates/apiserver.crt");
        let file = self.directory.join(format!("{namespace}-{account}.kubeconfig"));
        std::fs::write(&file, serde_json::to_string(&kubeconfig(&self.name, self.block, &certificate, &token))?)?;
        Ok(file)
    }

    /// A client of a service account.
    ///
    /// # Errors
    /// As [`ApiServers::token`].
    pub async fn account_client(&self, namespace: &str, account: &str) -> anyhow::Result<Client> {
        let file = self.account_kubeconfig(namespace, account).await?;
        client(Kubeconfig::read_from(file)?).await
    }

    /// Ends the three processes.
    pub async fn stop(&mut self) {
        for process in [&mut self.controllers, &mut self.api_server, &mut self.etcd] {
            process.stop().await;
        }
    }
}

/// Whether an object could not be made because it is there.
#[must_use]
pub fn already_there(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_already_exists())
}

/// Whether an object could not be found.
#[must_use]
pub fn not_there(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found())
}

/// How much garbage an API server lets gather, in hundredths of what it keeps: four times the default.
const GARBAGE: &str = "GOGC=400";

async fn client(kubeconfig: Kubeconfig) -> anyhow::Result<Client> {
    // Several tests of one process may be first.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

fn kubeconfig(name: &str, block: Block, certificate: &Path, token: &str) -> Kubeconfig {
    let cluster = Cluster {
        server: Some(format!("https://{}:6443", block.address(2, 2))),
        certificate_authority: Some(certificate.display().to_string()),
        ..Cluster::default()
    };
    let user = AuthInfo { token: Some(token.to_owned().into()), ..AuthInfo::default() };
    let (version, kind) = (Some("v1".to_owned()), Some("Config".to_owned()));
    let context = KubeContext { cluster: name.to_owned(), user: Some(name.to_owned()), ..KubeContext::default() };
    Kubeconfig {
        clusters: vec![NamedCluster { name: name.to_owned(), cluster: Some(cluster), ..NamedCluster::default() }],
        auth_infos: vec![NamedAuthInfo { name: name.to_owned(), auth_info: Some(user), ..NamedAuthInfo::default() }],
        contexts: vec![NamedContext { name: name.to_owned(), context: Some(context), ..NamedContext::default() }],
        current_context: Some(name.to_owned()),
        api_version: version,
        kind,
        ..Kubeconfig::default()
    }
}

fn plan(name: &str, program: &str, path: PathBuf, directory: &Path, arguments: &[String]) -> Plan {
    Plan {
        name: format!("{name}/{program}"),
        program: path,
        arguments: arguments.to_vec(),
        log: directory.join(format!("{program}.log")),
        health: None,
    }
}

fn etcd(name: &str, directory: &Path, assets: &Assets, block: Block) -> Plan {
    let (client, peer) =
        (format!("http://{}:2379", block.address(2, 1)), format!("http://{}:2380", block.address(2, 1)));
    let arguments = [
        format!("--data-dir={}", directory.join("etcd").display()),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
        // Nothing of a lab is to survive the machine.
        "--unsafe-no-fsync".to_owned(),
    ];
    plan(name, "etcd", assets.etcd.clone(), directory, &arguments)
}

fn api_server(name: &str, directory: &Path, assets: &Assets, block: Block) -> Plan {
    let address = block.address(2, 2);
    let keys = directory.join("service-accounts").display().to_string();
    let arguments = [
        format!("--etcd-servers=http://{}:2379", block.address(2, 1)),
        format!("--bind-address={address}"),
        format!("--advertise-address={address}"),
        "--secure-port=6443".to_owned(),
        format!("--cert-dir={}", directory.join("certificates").display()),
        format!("--token-auth-file={}", directory.join("tokens.csv").display()),
        "--authorization-mode=RBAC".to_owned(),
        // Of both families, IPv4 first.
        format!("--service-cluster-ip-range={},fd00:{:x}::/112", block.services(), block.number()),
        format!("--service-account-issuer=https://{name}.lab.example"),
        format!("--service-account-signing-key-file={keys}.key"),
        format!("--service-account-key-file={keys}.pub"),
        // It refuses a loopback address for the Service `kubernetes`, which nobody calls here.
        "--endpoint-reconciler-type=none".to_owned(),
    ];
    // Several API servers share the machine, and each would spend much of a burst on collecting the garbage of its small heap.
    let run = [GARBAGE.to_owned(), assets.api_server.display().to_string()];
    let arguments: Vec<String> = run.into_iter().chain(arguments).collect();
    plan(name, "kube-apiserver", PathBuf::from("env"), directory, &arguments)
}

fn controllers(name: &str, directory: &Path, assets: &Assets, block: Block, kubeconfig: &Path) -> Plan {
    let arguments = [
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--bind-address={}", block.address(2, 3)),
        format!("--cert-dir={}", directory.join("controller-certificates").display()),
        format!("--root-ca-file={}", directory.join("certificates/apiserver.crt").display()),
        format!("--service-account-private-key-file={}", directory.join("service-accounts.key").display()),
        format!("--controllers={CONTROLLERS}"),
        "--leader-elect=false".to_owned(),
        "--kube-api-qps=200".to_owned(),
        "--kube-api-burst=400".to_owned(),
    ];
    plan(name, "kube-controller-manager", assets.controllers.clone(), directory, &arguments)
}
