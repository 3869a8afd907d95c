//! The cluster's own certificate authority at work: opened as configured, looked after, and announced.
//!
//! ```text
//!   sealed in the state directory, or brought ──► Authority ──► SVIDs, the control-plane's own among them
//!                                                     │ roots()
//!                                                     └──► root.crt (pins of proxies), Input::OwnRoots (bundle)
//! ```
//!
//! Upkeep that fails changes nothing that is valid: the certificate in use goes on, and `status` raises an alarm.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use mesh_tls::{Identity, new_key_and_csr};
use rustls_pki_types::CertificateDer;
use spiffe_identity::{SpiffeId, TrustDomain, pem};
use svid_issuer::{Authority, AuthorityFiles, SealingKey};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::config::Config;
use crate::discovery::{CONTROL_PLANE_ACCOUNT, SYSTEM_NAMESPACE};
use crate::reconciler::Input;
use crate::state::StateDirectory;

/// The authority and the own certificate are looked at this often.
const UPKEEP: Duration = Duration::from_secs(60);
/// The pins of the cluster's proxies.
const ROOT_FILE: &str = "root.crt";

/// How the authority is, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityStatus {
    /// Published roots: two while one is replaced.
    pub roots: usize,
    /// Until when it can sign.
    pub not_after: SystemTime,
    /// Until when the intermediate in use is valid.
    pub intermediate_not_after: Option<SystemTime>,
    /// What upkeep failed at last.
    pub problem: Option<String>,
}

/// Opens the authority that the configuration names; makes one in the state directory where there is none. Blocks on the
/// disk.
///
/// # Errors
/// The files cannot be used, or are not there though they are named.
pub fn open(config: &Config, trust_domain: &TrustDomain, now: SystemTime) -> anyhow::Result<Authority> {
    let seal = config.authority.sealing_key_file.as_ref().map(|path| {
        SealingKey::from_file(path).with_context(|| format!("authority.sealingKeyFile: {}", path.display()))
    });
    let seal = seal.transpose()?;
    if let (Some(certificates), Some(key)) = (&config.authority.certificate_file, &config.authority.key_file) {
        let files = AuthorityFiles { certificates: certificates.clone(), key: key.clone() };
        let opened = match seal {
            Some(seal) => Authority::open_sealed(&files, trust_domain, seal),
            None => Authority::open_files(&files, trust_domain),
        };
        return opened.context("authority.certificateFile");
    }
    let files = AuthorityFiles::in_directory(&config.state_directory);
    let opened = match seal {
        Some(seal) => Authority::open_or_create_sealed(&files, trust_domain, seal, now),
        None => Authority::open_or_create_files(&files, trust_domain, now),
    };
    Ok(opened?)
}

/// The roots to publish, in an order that does not depend on which of them signs.
#[must_use]
pub fn roots(authority: &Authority) -> Vec<CertificateDer<'static>> {
    let mut roots = authority.roots();
    roots.sort_unstable_by(|a, b| a.as_ref().cmp(b.as_ref()));
    roots
}

/// Writes the pins of the cluster's proxies. Blocks on the disk.
///
/// # Errors
/// The file cannot be written.
pub fn write_pins(authority: &Authority, state: &StateDirectory) -> anyhow::Result<()> {
    Ok(state.write_public(ROOT_FILE, pem::certificates_to_pem(&roots(authority)).as_bytes())?)
}

/// The authority with what hangs on it. Clones share it.
#[derive(Clone)]
pub struct OwnAuthority {
    authority: Arc<Authority>,
    identity: Identity,
    svid_lifetime: Duration,
    state: StateDirectory,
    inputs: mpsc::Sender<Input>,
    problem: watch::Sender<Option<String>>,
}

impl OwnAuthority {
    /// Takes the authority over, and issues the control-plane's own SVID.
    ///
    /// # Errors
    /// The SVID cannot be issued.
    pub fn new(
        authority: Arc<Authority>,
        svid_lifetime: Duration,
        state: StateDirectory,
        inputs: mpsc::Sender<Input>,
    ) -> anyhow::Result<Self> {
        let (identity, problem) = (Identity::empty(), watch::Sender::new(None));
        let own = Self { authority, identity, svid_lifetime, state, inputs, problem };
        own.renew_own()?;
        Ok(own)
    }

    /// The authority.
    #[must_use]
    pub fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }

    /// The control-plane's own SVID; replaced while it is used.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// How it is.
    #[must_use]
    pub fn status(&self) -> AuthorityStatus {
        AuthorityStatus {
            roots: self.authority.roots().len(),
            not_after: self.authority.not_after(),
            intermediate_not_after: self.authority.intermediate_validity().map(|validity| validity.not_after),
            problem: self.problem.borrow().clone(),
        }
    }

    /// Issues the control-plane's own SVID anew.
    ///
    /// # Errors
    /// The authority cannot sign now; the one before stays in use.
    pub fn renew_own(&self) -> anyhow::Result<()> {
        let id = SpiffeId::workload(self.authority.trust_domain(), SYSTEM_NAMESPACE, CONTROL_PLANE_ACCOUNT)?;
        let (key, csr) = new_key_and_csr()?;
        let svid = self.authority.issue(&csr, &id, self.svid_lifetime, SystemTime::now())?;
        self.identity.replace(svid.chain, key)?;
        Ok(())
    }

    /// Tells proxies and the federation which roots there are.
    ///
    /// # Errors
    /// The pins cannot be written: a proxy that starts anew would not know the next root.
    pub async fn announce(&self) -> anyhow::Result<()> {
        let (authority, state) = (Arc::clone(&self.authority), self.state.clone());
        tokio::task::spawn_blocking(move || write_pins(&authority, &state)).await??;
        // The reconciler lives as long as the program.
        let _ = self.inputs.send(Input::OwnRoots(roots(&self.authority))).await;
        Ok(())
    }

    /// Makes another intermediate, and signs with it from now on.
    ///
    /// # Errors
    /// The root's key is not at hand, or the operator brought the chain; the one before signs on.
    pub async fn rotate_intermediate(&self) -> anyhow::Result<()> {
        let own = self.clone();
        tokio::task::spawn_blocking(move || {
            own.authority.renew_intermediate(SystemTime::now())?;
            own.renew_own()
        })
        .await?
    }

    /// Looks after the authority and the own SVID for ever.
    pub async fn keep(self) {
        loop {
            tokio::time::sleep(UPKEEP.min(self.svid_lifetime / 8)).await;
            let own = self.clone();
            let outcome = tokio::task::spawn_blocking(move || own.look_after()).await;
            let problem = match outcome {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(format!("{error:#}")),
                Err(error) => Some(error.to_string()),
            };
            self.problem.send_if_modified(|known| {
                let changed = *known != problem;
                match &problem {
                    Some(problem) if changed => warn!(problem, "the authority's upkeep fails; what is valid goes on"),
                    None if changed => info!("the authority's upkeep is well again"),
                    _ => {}
                }
                *known = problem;
                changed
            });
        }
    }

    fn look_after(&self) -> anyhow::Result<()> {
        self.authority.maintain(SystemTime::now()).context("no next intermediate")?;
        let left = self.identity.not_after().and_then(|end| end.duration_since(SystemTime::now()).ok());
        if left.unwrap_or_default() < self.svid_lifetime / 2 {
            self.renew_own().context("the own SVID is not renewed")?;
        }
        Ok(())
    }
}
