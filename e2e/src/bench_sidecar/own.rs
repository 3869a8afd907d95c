//! Our own pair, as a cluster made it: a control-plane hands out identities and state, and is then ended; the sidecars under
//! test start from what is on disk.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{captured, load::Target};
use crate::{
    lab::{ClusterDescription, Lab, NAMESPACE, READY, ServiceDescription, binaries::Binaries, wait},
    shop::Role,
};

/// Where the application of each pod listens.
pub(super) const APPLICATION: u16 = 8080;

/// The services: the load's three kinds, by the protocol that their port declares.
const SERVICES: [(&str, Role, u16, &str); 3] =
    [("web", Role::Frontend, 80, "http"), ("calls", Role::Frontend, 81, "http2"), ("bytes", Role::Frontend, 82, "tcp")];

/// An answer that takes longer is asked for again.
const GREETING: Duration = Duration::from_secs(2);

/// What the cluster has left.
pub(super) struct Own {
    directory: PathBuf,
    /// The client's sidecar takes captured connections here.
    pub(super) outbound: SocketAddr,
    /// The clusterset addresses: HTTP/1.1, HTTP/2, raw TCP.
    pub(super) targets: [Target; 3],
}

impl Own {
    /// Runs a cluster until the client's sidecar knows the three services.
    pub(super) async fn prepare(directory: &Path) -> anyhow::Result<Self> {
        let services = SERVICES.map(|(name, role, port, port_name)| ServiceDescription {
            name,
            role,
            port,
            target_port: APPLICATION,
            port_name,
            replicas: 1,
        });
        let description = ClusterDescription {
            name: "east",
            region: "eu",
            zone: "eu-a",
            gateways: 0,
            egress_restricted: false,
            services: services.to_vec(),
            collector: None,
        };
        let mut lab = Lab::start(directory, Binaries::beside_this_program()?).await?;
        lab.add(vec![description]).await?;
        let east = lab.cluster("east")?;
        let operator = east.operator();
        for (name, ..) in SERVICES {
            operator.isthmus(&["export", &format!("{NAMESPACE}/{name}")]).await?;
        }
        let mut targets = Vec::new();
        for (name, _, port, _) in SERVICES {
            let address = wait::until(name, READY, || async {
                let imports: serde_json::Value = operator.json(&["get", "imports"]).await?;
                vip(&imports, name).with_context(|| format!("no address for {name} in {imports}"))
            })
            .await?;
            let host = format!("{name}.{NAMESPACE}.svc.clusterset.local");
            targets.push(Target { address: (address, port).into(), host });
        }
        let outbound = east.client_proxy();
        let targets = <[Target; 3]>::try_from(targets).map_err(|_| anyhow::anyhow!("there are three services"))?;
        let own = Self { directory: east.directory().to_owned(), outbound, targets };
        captured::redirect(&own.redirects([outbound; 3])?)?;
        for target in &own.targets {
            wait::until(&target.host, READY, || async { timeout(GREETING, greeted(target)).await? }).await?;
        }
        own.until_written().await?;
        lab.stop().await;
        Ok(own)
    }

    /// Waits until the sidecars have on disk what they know.
    async fn until_written(&self) -> anyhow::Result<()> {
        for (target, (name, ..)) in self.targets.iter().zip(SERVICES) {
            for pod in ["client".to_owned(), format!("{name}-0")] {
                let path = self.directory.join(format!("state/sidecar-{pod}/state"));
                wait::until(&format!("{} in {}", target.host, path.display()), READY, || async {
                    let state = fs::read(&path)?;
                    let there = state.windows(target.host.len()).any(|window| window == target.host.as_bytes());
                    ensure!(there, "it is not there");
                    Ok(())
                })
                .await?;
            }
        }
        Ok(())
    }

    /// Leads each target to an address.
    pub(super) fn redirects(&self, to: [SocketAddr; 3]) -> anyhow::Result<captured::Redirects> {
        let ips = self.targets.iter().map(|target| match target.address {
            SocketAddr::V4(address) => Ok(*address.ip()),
            SocketAddr::V6(_) => anyhow::bail!("{} is no IPv4 address", target.address),
        });
        Ok(ips.collect::<anyhow::Result<Vec<Ipv4Addr>>>()?.into_iter().zip(to).collect())
    }

    /// The sidecars' commands: the client's first, then the server's of HTTP/1.1, HTTP/2 and raw TCP.
    pub(super) fn commands(&self, sidecar: &Path) -> anyhow::Result<Vec<Command>> {
        let pods = std::iter::once("client".to_owned()).chain(SERVICES.map(|(name, ..)| format!("{name}-0")));
        pods.map(|pod| {
            let path = self.directory.join(format!("config/sidecar-{pod}.yaml"));
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let quiet = text.replace("log: {format: text}", "log: {format: text, filter: error}");
            ensure!(quiet.contains("filter: error"), "{}: no log to silence", path.display());
            fs::write(&path, quiet.replace("filter: error, filter: error", "filter: error"))?;
            let mut command = Command::new(sidecar);
            command.arg("--config").arg(path).env("TOKIO_WORKER_THREADS", "1");
            Ok(command)
        })
        .collect()
    }
}

fn vip(imports: &serde_json::Value, name: &str) -> Option<Ipv4Addr> {
    let list = imports.as_array().or_else(|| imports["imports"].as_array()).or_else(|| imports["items"].as_array())?;
    let import = list.iter().find(|import| import["name"] == name)?;
    import["ips"].as_array()?.iter().find_map(|ip| ip.as_str()?.parse().ok())
}

/// A captured connection is answered by somebody, whatever it says: then its service is known.
async fn greeted(target: &Target) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(target.address).await?;
    let request = format!("GET /healthz HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", target.host);
    stream.write_all(request.as_bytes()).await?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await?;
    ensure!(&answer == b"HTTP/", "answered {answer:?}");
    Ok(())
}
