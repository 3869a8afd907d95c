//! One cluster of a lab: its control-plane, gateways, and pods, each an application with its sidecar.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context;
use mesh_runtime::write_atomically;

use super::binaries::Binaries;
use super::federation::Federation;
use super::manifest::{self, PodFacts};
use super::network::Block;
use super::operator::Operator;
use super::process::{Plan, Process, kill_all};
use super::{ClusterDescription, DOMAIN, NAMESPACE, READY, ServiceDescription};
use crate::client;

/// Where the lab's own client lives: a pod with a sidecar and no application.
const CLIENT: &str = "client";

/// A pod: an application behind its sidecar, or the client's sidecar alone.
#[derive(Debug)]
pub struct Pod {
    /// What manifests say of it.
    pub facts: PodFacts,
    /// Its application.
    pub application: Option<Process>,
    /// Its sidecar.
    pub sidecar: Option<Process>,
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    description: ClusterDescription,
    block: Block,
    directory: PathBuf,
    binaries: Binaries,
    /// Its control-plane.
    pub control_plane: Process,
    /// Its gateways.
    pub gateways: Vec<Process>,
    /// Its pods by service, in the order of the description; the client's is the last entry.
    pub pods: Vec<(String, Vec<Pod>)>,
}

impl Cluster {
    /// Writes the manifests and starts the control-plane, not yet joined.
    ///
    /// # Errors
    /// A file cannot be written or the process does not start.
    pub async fn start(
        directory: &Path,
        binaries: Binaries,
        block: Block,
        description: ClusterDescription,
    ) -> anyhow::Result<Self> {
        for part in ["manifests", "imports", "logs", "tokens", "config", "state"] {
            std::fs::create_dir_all(directory.join(part))?;
        }
        let pods = plan_pods(&description, block);
        let config = directory.join("config/control-plane.yaml");
        let control_plane = Plan {
            name: format!("{}/control-plane", description.name),
            program: binaries.path("control-plane"),
            arguments: vec!["--config".to_owned(), config.display().to_string()],
            log: directory.join("logs/control-plane.log"),
            health: Some((block.address(0, 2), 15021).into()),
        };
        std::fs::write(&config, control_plane_config(&description, block, directory))?;
        let cluster = Self {
            control_plane: Process::start(control_plane.in_group(block.group()))?,
            directory: directory.to_owned(),
            gateways: Vec::new(),
            description,
            binaries,
            block,
            pods,
        };
        cluster.write_manifests()?;
        super::wait::until(&format!("{}: admin socket", cluster.name()), READY, || {
            let socket = cluster.admin_socket();
            async move { tokio::net::UnixStream::connect(socket).await }
        })
        .await?;
        Ok(cluster)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.description.name
    }

    /// Its network.
    #[must_use]
    pub fn block(&self) -> Block {
        self.block
    }

    /// Where its control-plane's admin API is.
    #[must_use]
    pub fn admin_socket(&self) -> PathBuf {
        self.directory.join("admin.sock")
    }

    /// Where its control-plane answers DNS.
    #[must_use]
    pub fn dns(&self) -> SocketAddr {
        (self.block.address(0, 3), 15053).into()
    }

    /// A gateway's address for other clusters.
    #[must_use]
    pub fn gateway_address(&self, number: u8) -> SocketAddr {
        (self.block.address(0, 11 + number), 15443).into()
    }

    /// The client's explicit proxy.
    #[must_use]
    pub fn client_proxy(&self) -> SocketAddr {
        (self.block.address(1, 250), 15001).into()
    }

    /// Where a pod's sidecar offers the SPIFFE Workload API.
    #[must_use]
    pub fn workload_api(&self, pod: &str) -> PathBuf {
        self.directory.join(format!("{pod}.sock"))
    }

    /// Where ServiceImports are written.
    #[must_use]
    pub fn imports_directory(&self) -> PathBuf {
        self.directory.join("imports")
    }

    /// The operator's command for this cluster.
    #[must_use]
    pub fn operator(&self) -> Operator {
        Operator::new(self.binaries.path("isthmus"), self.admin_socket())
    }

    /// The operator's program.
    #[must_use]
    pub fn isthmus(&self) -> PathBuf {
        self.binaries.path("isthmus")
    }

    /// The whole folder of the cluster: configuration, manifests, state, logs.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes a token and hands it to the control-plane, with the operator's own commands.
    ///
    /// # Errors
    /// Either command's, or the control-plane does not become ready.
    pub async fn join(&mut self, federation: &Federation) -> anyhow::Result<()> {
        let token = federation.token(self.name(), &self.block.range()).await?;
        self.operator().isthmus(&["join", &token]).await?;
        self.control_plane.ready(READY).await
    }

    /// Gives the control-plane more lines of configuration, and starts it again.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn configure_control_plane(&mut self, more: &str) -> anyhow::Result<()> {
        let path = self.directory.join("config/control-plane.yaml");
        let text = control_plane_config(&self.description, self.block, &self.directory) + more;
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
        self.control_plane.kill().await?;
        self.control_plane.restart()?;
        let socket = self.admin_socket();
        super::wait::until("the admin socket", READY, || tokio::net::UnixStream::connect(&socket)).await?;
        Ok(())
    }

    /// Starts gateways and pods, and waits until all are ready.
    ///
    /// # Errors
    /// One of them does not become ready.
    pub async fn start_proxies(&mut self) -> anyhow::Result<()> {
        for number in 0..self.description.gateways {
            self.write_token("isthmus-system", "east-west-gateway").await?;
            let plan = self.gateway_plan(number)?;
            self.gateways.push(Process::start(plan.in_group(self.block.group()))?);
        }
        for service in 0..self.pods.len() {
            for pod in 0..self.pods[service].1.len() {
                self.start_pod(service, pod).await?;
            }
        }
        for gateway in &mut self.gateways {
            gateway.ready(READY).await?;
        }
        for (_, pods) in &mut self.pods {
            for sidecar in pods.iter_mut().filter_map(|pod| pod.sidecar.as_mut()) {
                sidecar.ready(READY).await?;
            }
        }
        Ok(())
    }

    async fn start_pod(&mut self, service: usize, pod: usize) -> anyhow::Result<()> {
        let account = self.pods[service].1[pod].facts.service_account.clone();
        self.write_token(NAMESPACE, &account).await?;
        let facts = self.pods[service].1[pod].facts.clone();
        let group = self.block.group();
        let sidecar = Process::start(self.sidecar_plan(&facts)?.in_group(group))?;
        let application = match self.description.services.get(service) {
            Some(description) => Some(Process::start(self.application_plan(description, &facts).in_group(group))?),
            None => None,
        };
        let pod = &mut self.pods[service].1[pod];
        (pod.sidecar, pod.application) = (Some(sidecar), application);
        Ok(())
    }

    /// A service-account token from the control-plane, in a file.
    async fn write_token(&self, namespace: &str, account: &str) -> anyhow::Result<()> {
        let body = serde_json::json!({ "namespace": namespace, "serviceAccount": account, "expiresSeconds": 3600 });
        let answer = client::post_json(&self.admin_socket(), "/v1/service-account-tokens", &body).await?;
        let token = answer["token"].as_str().context("the answer has no token")?;
        Ok(write_atomically(&self.token_file(namespace, account), token.as_bytes(), 0o600)?)
    }

    fn token_file(&self, namespace: &str, account: &str) -> PathBuf {
        self.directory.join("tokens").join(format!("{namespace}-{account}"))
    }

    /// The pods of a service.
    ///
    /// # Errors
    /// The cluster has no such service.
    pub fn pods_of(&mut self, service: &str) -> anyhow::Result<&mut Vec<Pod>> {
        let name = self.description.name;
        let found = self.pods.iter_mut().find(|(known, _)| known == service).map(|(_, pods)| pods);
        found.with_context(|| format!("cluster {name} has no service {service}"))
    }

    /// SIGKILL to every pod of some services at once, applications and sidecars; then the controllers notice.
    ///
    /// # Errors
    /// One did not run.
    pub async fn kill_pods(&mut self, services: &[&str]) -> anyhow::Result<()> {
        let doomed = self.pods.iter_mut().filter(|(service, _)| services.contains(&service.as_str()));
        let pods = doomed.flat_map(|(_, pods)| pods.iter_mut());
        kill_all(pods.flat_map(|pod| [&mut pod.application, &mut pod.sidecar].into_iter().flatten())).await?;
        services.iter().try_for_each(|service| self.write_endpoints(service, false))
    }

    /// Starts every pod of a service again; the controllers find them ready once they are.
    ///
    /// # Errors
    /// One does not become ready.
    pub async fn restart_pods(&mut self, service: &str) -> anyhow::Result<()> {
        for pod in self.pods_of(service)? {
            for process in [&mut pod.application, &mut pod.sidecar].into_iter().flatten() {
                process.restart()?;
            }
        }
        for pod in self.pods_of(service)? {
            if let Some(sidecar) = &mut pod.sidecar {
                sidecar.ready(READY).await?;
            }
        }
        self.write_endpoints(service, true)
    }

    /// SIGKILL to every process of the cluster.
    ///
    /// # Errors
    /// One did not run.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        kill_all(self.processes()).await
    }

    /// Starts every process of the cluster again and waits until all are ready.
    ///
    /// # Errors
    /// One does not become ready.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        for process in self.processes() {
            process.restart()?;
        }
        for process in self.processes() {
            process.ready(READY).await?;
        }
        Ok(())
    }

    /// Every process of the cluster.
    pub fn processes(&mut self) -> impl Iterator<Item = &mut Process> {
        let pods = self.pods.iter_mut().flat_map(|(_, pods)| pods.iter_mut());
        let of_pods = pods.flat_map(|pod| pod.application.as_mut().into_iter().chain(pod.sidecar.as_mut()));
        std::iter::once(&mut self.control_plane).chain(self.gateways.iter_mut()).chain(of_pods)
    }

    /// SIGTERM to every process, and waits for them.
    pub async fn stop(&mut self) {
        for process in self.processes() {
            process.signal(rustix::process::Signal::TERM);
        }
        for process in self.processes() {
            process.stop().await;
        }
    }

    fn write_manifests(&self) -> anyhow::Result<()> {
        self.write_manifest("cluster", &manifest::cluster(&self.description))?;
        for service in &self.description.services {
            self.write_manifest(&format!("service-{}", service.name), &manifest::service(service))?;
            self.write_endpoints(service.name, true)?;
        }
        for (service, pods) in &self.pods {
            for pod in pods {
                let text = manifest::pod(&self.description, &pod.facts, service);
                self.write_manifest(&format!("pod-{}", pod.facts.name), &text)?;
            }
        }
        Ok(())
    }

    /// Writes a service's EndpointSlice with all its pods ready, or none.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_endpoints(&self, service: &str, ready: bool) -> anyhow::Result<()> {
        let description = self.description.services.iter().find(|known| known.name == service);
        let description = description.with_context(|| format!("no service {service}"))?;
        let pods = self.pods.iter().find(|(known, _)| known == service).map(|(_, pods)| pods.as_slice());
        let facts: Vec<_> = pods.unwrap_or_default().iter().map(|pod| (pod.facts.clone(), ready)).collect();
        let text = manifest::endpoint_slice(&self.description, description, &facts);
        self.write_manifest(&format!("endpoints-{service}"), &text)
    }

    fn write_manifest(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.directory.join("manifests").join(format!("{name}.yaml"));
        write_atomically(&path, text.as_bytes(), 0o644).with_context(|| path.display().to_string())
    }

    fn gateway_plan(&self, number: u8) -> anyhow::Result<Plan> {
        let address = self.block.address(0, 11 + number);
        let name = format!("gw-{}", number + 1);
        let ClusterDescription { region, zone, .. } = &self.description;
        let config = format!(
            "{runtime}name: {name}\nlisten: [\"{address}:15443\"]\nadvertise: {{address: {address}}}\n\
             locality: {{region: {region}, zone: {zone}}}\n{egress}{discovery}stateDirectory: {state}\n",
            runtime = runtime(address, self.description.collector),
            egress = if self.description.egress_restricted {
                format!("egress: {{listen: [\"{address}:15444\"], address: {address}}}\n")
            } else {
                String::new()
            },
            discovery = self.discovery("isthmus-system", "east-west-gateway"),
            state = self.directory.join("state").join(&name).display(),
        );
        self.plan(&name, "east-west-gateway", &config, address)
    }

    fn sidecar_plan(&self, pod: &PodFacts) -> anyhow::Result<Plan> {
        let address = pod.address;
        let name = format!("sidecar-{}", pod.name);
        let config = format!(
            "{runtime}workload: {{name: {pod}, addresses: [{address}]}}\n{discovery}\
             listeners: {{outbound: [\"{address}:15001\"], inbound: [\"{address}:15008\"]}}\nstateDirectory: {state}\n\
             workloadApi: {{socket: {socket}}}\n",
            runtime = runtime(address, self.description.collector),
            pod = pod.name,
            discovery = self.discovery(NAMESPACE, &pod.service_account),
            state = self.directory.join("state").join(&name).display(),
            socket = self.workload_api(&pod.name).display(),
        );
        self.plan(&name, "sidecar", &config, address)
    }

    fn discovery(&self, namespace: &str, account: &str) -> String {
        format!(
            "discovery:\n  addresses: [\"{address}:15010\"]\n  trustDomain: {cluster}.{DOMAIN}\n  rootFile: {root}\n  \
             tokenFile: {token}\n",
            address = self.block.address(0, 2),
            cluster = self.description.name,
            root = self.directory.join("state/control-plane/root.crt").display(),
            token = self.token_file(namespace, account).display(),
        )
    }

    fn plan(&self, name: &str, program: &str, config: &str, health: impl Into<IpAddr>) -> anyhow::Result<Plan> {
        let path = self.directory.join("config").join(format!("{name}.yaml"));
        std::fs::write(&path, config).with_context(|| path.display().to_string())?;
        Ok(Plan {
            name: format!("{}/{name}", self.description.name),
            program: self.binaries.path(program),
            arguments: vec!["--config".to_owned(), path.display().to_string()],
            log: self.directory.join("logs").join(format!("{name}.log")),
            health: Some((health.into(), 15021).into()),
        })
    }

    fn application_plan(&self, service: &ServiceDescription, pod: &PodFacts) -> Plan {
        let role = clap::ValueEnum::to_possible_value(&service.role);
        let role = role.map(|role| role.get_name().to_owned()).unwrap_or_default();
        let arguments = [
            ("--role", role),
            ("--listen", format!("{}:{}", pod.address, service.target_port)),
            ("--instance", format!("{}/{}", self.description.name, pod.name)),
            ("--proxy", format!("{}:15001", pod.address)),
            ("--namespace", NAMESPACE.to_owned()),
        ];
        Plan {
            name: format!("{}/{}", self.description.name, pod.name),
            program: self.binaries.path("shop"),
            arguments: arguments.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect(),
            log: self.directory.join("logs").join(format!("{}.log", pod.name)),
            health: None,
        }
    }
}

fn runtime(address: impl Into<IpAddr>, collector: Option<SocketAddr>) -> String {
    let address = address.into();
    let plumbing = format!("admin: \"{address}:15020\", health: \"{address}:15021\", log: {{format: text}}");
    match collector {
        Some(collector) => format!("runtime: {{{plumbing}, otlp: {{endpoint: \"http://{collector}\"}}}}\n"),
        None => format!("runtime: {{{plumbing}}}\n"),
    }
}

fn control_plane_config(description: &ClusterDescription, block: Block, directory: &Path) -> String {
    let state = directory.join("state/control-plane");
    format!(
        "{runtime}cluster: {cluster}\nfederation: {DOMAIN}\nstateDirectory: {state}\nmanifestsDirectory: {manifests}\n\
         importsDirectory: {imports}\nadminSocket: {socket}\ndiscovery: {{listen: \"{address}:15010\"}}\n\
         dns: {{listen: [\"{dns}:15053\"]}}\nprobes: {{interval: 2s, timeout: 1s}}\n\
         egressRestricted: {egress_restricted}\n",
        egress_restricted = description.egress_restricted,
        runtime = runtime(block.address(0, 2), description.collector),
        cluster = description.name,
        state = state.display(),
        manifests = directory.join("manifests").display(),
        imports = directory.join("imports").display(),
        socket = directory.join("admin.sock").display(),
        address = block.address(0, 2),
        dns = block.address(0, 3),
    )
}

/// Every service's pods at 127.x.1.1 and on, and the client's at 127.x.1.250.
fn plan_pods(description: &ClusterDescription, block: Block) -> Vec<(String, Vec<Pod>)> {
    let mut next = 0;
    let mut pods: Vec<_> = description
        .services
        .iter()
        .map(|service| {
            let of_service = (0..service.replicas).map(|number| {
                next += 1;
                pod(format!("{}-{number}", service.name), service.name, block, next)
            });
            (service.name.to_owned(), of_service.collect())
        })
        .collect();
    pods.push((CLIENT.to_owned(), vec![pod(CLIENT.to_owned(), CLIENT, block, 250)]));
    pods
}

fn pod(name: String, account: &str, block: Block, number: u8) -> Pod {
    let facts = PodFacts { name, address: block.address(1, number), service_account: account.to_owned() };
    Pod { facts, application: None, sidecar: None }
}
