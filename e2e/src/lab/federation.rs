//! trust-bundle and federator of a lab.

use std::path::{Path, PathBuf};

use super::binaries::Binaries;
use super::network::Block;
use super::operator::Operator;
use super::process::{Plan, Process, kill_all};
use super::{DOMAIN, READY};

/// The federation's shared services, on the embedded store.
#[derive(Debug)]
pub struct Federation {
    /// trust-bundle.
    pub trust_bundle: Process,
    /// federator.
    pub federator: Process,
    operator: PathBuf,
    binaries: Binaries,
}

impl Federation {
    /// Makes a federation as an operator would, and starts its services.
    ///
    /// # Errors
    /// `trust-bundle init` fails or a service does not become ready.
    pub async fn start(directory: &Path, binaries: &Binaries, block: Block) -> anyhow::Result<Self> {
        let home = directory.join("federation");
        std::fs::create_dir_all(home.join("logs"))?;
        let (trust, exports) = (block.address(0, 1), block.address(0, 2));
        make(&home.join("keys"), binaries, &format!("{trust}:15012"), &format!("{exports}:15012")).await?;
        let keys = home.join("keys");
        let common = |address| {
            format!(
                "runtime: {{admin: \"{address}:15020\", health: \"{address}:15021\", log: {{format: text}}}}\n\
                 listen: \"{address}:15012\"\n"
            )
        };
        let trust_config = format!(
            "{}serviceDirectory: {}\nstore: {{embedded: {{file: {}}}}}\n",
            common(trust),
            keys.join("service").display(),
            home.join("trust.redb").display(),
        );
        let state = home.join("federator-state");
        std::fs::create_dir_all(&state)?;
        let exports_config = format!(
            "{}serviceDirectory: {}\nstateDirectory: {}\nstore: {{embedded: {{file: {}}}}}\nheartbeatInterval: 1s\n",
            common(exports),
            keys.join("federator").display(),
            state.display(),
            home.join("exports.redb").display(),
        );
        let start = |name: &str, config: String, address| -> anyhow::Result<Process> {
            let path = home.join(format!("{name}.yaml"));
            std::fs::write(&path, config)?;
            Process::start(Plan {
                name: name.to_owned(),
                program: binaries.path(name),
                arguments: vec!["--config".to_owned(), path.display().to_string()],
                log: home.join("logs").join(format!("{name}.log")),
                health: Some((address, 15021).into()),
            })
        };
        let mut trust_bundle = start("trust-bundle", trust_config, trust)?;
        trust_bundle.ready(READY).await?;
        let mut federator = start("federator", exports_config, exports)?;
        federator.ready(READY).await?;
        Ok(Self { trust_bundle, federator, operator: keys.join("operator"), binaries: binaries.clone() })
    }

    /// The operator's keys.
    #[must_use]
    pub fn operator_directory(&self) -> &Path {
        &self.operator
    }

    /// Makes a join token, offline, with `isthmus token create`.
    ///
    /// # Errors
    /// The command's.
    pub async fn token(&self, cluster: &str, address_range: &str) -> anyhow::Result<String> {
        let directory = self.operator.display().to_string();
        let arguments = [
            "token",
            "create",
            "--operator",
            &directory,
            "--cluster",
            cluster,
            "--namespace",
            super::NAMESPACE,
            "--address-range",
            address_range,
        ];
        Ok(Operator::run(&self.binaries.path("isthmus"), &arguments).await?.trim().to_owned())
    }

    /// Kills both services.
    ///
    /// # Errors
    /// One of them did not run.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        kill_all([&mut self.federator, &mut self.trust_bundle]).await
    }

    /// Starts both services again.
    ///
    /// # Errors
    /// One of them does not become ready.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.trust_bundle.restart()?;
        self.federator.restart()?;
        self.trust_bundle.ready(READY).await?;
        self.federator.ready(READY).await
    }

    /// Ends both.
    pub async fn stop(&mut self) {
        self.federator.stop().await;
        self.trust_bundle.stop().await;
    }
}

/// `trust-bundle init`, as the operator of a new federation types it.
async fn make(keys: &Path, binaries: &Binaries, trust: &str, exports: &str) -> anyhow::Result<()> {
    let keys = keys.display().to_string();
    let arguments = ["init", "--dir", &keys, "--federation", DOMAIN];
    let addresses = ["--trust-bundle-address", trust, "--federator-address", exports];
    Operator::run(&binaries.path("trust-bundle"), &[&arguments[..], &addresses].concat()).await?;
    Ok(())
}
