//! The online intermediate: what signs from day to day, so that the root's key is needed twice a week at most.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::CertificateDer;
use spiffe_identity::Validity;
use tracing::{info, warn};

use crate::{OpenError, disk::Disk, root::new_intermediate, signer::Signer};

/// How long an online intermediate lives: seven days.
pub const INTERMEDIATE_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

/// While a valid intermediate signs, how long until a next one is tried again.
const RETRY: Duration = Duration::from_secs(60);

/// What an intermediate's age asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// It signs, and none is needed yet.
    Nothing,
    /// Half of its life is over: make the next one.
    Prepare,
    /// A sixth of its life is left, or it is not valid at all: sign with the next one.
    Activate,
}

impl Due {
    /// What an intermediate of this validity asks for at `now`.
    pub fn of(validity: Validity, now: SystemTime) -> Self {
        let life = validity.not_after.duration_since(validity.not_before).unwrap_or_default();
        let left = validity.not_after.duration_since(now).unwrap_or_default();
        if !validity.contains(now) || left <= life / 6 {
            Self::Activate
        } else if left <= life / 2 {
            Self::Prepare
        } else {
            Self::Nothing
        }
    }
}

/// The intermediate in use and the next one.
#[derive(Default)]
pub(crate) struct Online {
    current: Option<Arc<Signer>>,
    next: Option<Arc<Signer>>,
    /// No attempt before this time.
    retry_at: Option<SystemTime>,
}

impl Online {
    /// What was stored below `root`.
    pub(crate) fn read(disk: &Disk, root: &CertificateDer<'static>) -> Self {
        let stored = |path: std::path::PathBuf| disk.intermediate(&path, root).map(Arc::new);
        Self { current: stored(disk.files.online()), next: stored(disk.files.online_next()), retry_at: None }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.current.is_none() && self.next.is_none()
    }

    /// Of the one in use.
    pub(crate) fn validity(&self) -> Option<Validity> {
        self.current.as_ref().map(|signer| signer.validity())
    }

    /// What signs at `now`, after whatever is due was done. While a valid intermediate is there, a root's key that cannot be
    /// used is an alarm and no failure.
    pub(crate) fn signer(
        &mut self,
        disk: &Disk,
        root: &CertificateDer<'static>,
        now: SystemTime,
    ) -> Result<Arc<Signer>, OpenError> {
        if self.is_due(now) {
            match self.maintain(disk, root, now) {
                // Nothing could be done when the root itself has no more time: no need to look with each request.
                Ok(()) => self.retry_at = self.next.is_none().then(|| now + RETRY),
                Err(error) => {
                    self.retry_at = Some(now + RETRY);
                    let Some(current) = self.current.as_ref().filter(|signer| signer.validity().contains(now)) else {
                        return Err(error);
                    };
                    warn!(%error, until = ?current.validity().not_after, "no next intermediate; the valid one signs on");
                }
            }
        }
        self.current.clone().ok_or(OpenError::Length(0))
    }

    fn is_due(&self, now: SystemTime) -> bool {
        let Some(current) = &self.current else { return true };
        if !current.validity().contains(now) {
            return true;
        }
        // A clock set back must not put the next attempt off for ever.
        let waits = self.retry_at.is_some_and(|at| now < at && at <= now + RETRY);
        !waits && Due::of(current.validity(), now) != Due::Nothing
    }

    /// Makes and promotes what is due.
    pub(crate) fn maintain(
        &mut self,
        disk: &Disk,
        root: &CertificateDer<'static>,
        now: SystemTime,
    ) -> Result<(), OpenError> {
        let due = self.current.as_ref().map_or(Due::Activate, |current| Due::of(current.validity(), now));
        if due == Due::Nothing {
            return Ok(());
        }
        let usable = |signer: &Arc<Signer>| signer.validity().contains(now) && signer.root() == Some(root);
        if !self.next.as_ref().is_some_and(usable) {
            let (root, not_after) = issuer(disk, root, now)?;
            let current = self.current.as_ref().filter(|current| current.validity().contains(now));
            if current.is_some_and(|current| current.validity().not_after >= not_after) {
                // It would end with the one in use: the root itself has no more time.
                return Ok(());
            }
            self.next = Some(Arc::new(make(disk, &root, now, not_after)?));
        }
        if due == Due::Activate {
            self.promote(disk);
        }
        Ok(())
    }

    /// Signs with a new one from now on, whatever the age of the one in use.
    pub(crate) fn renew(
        &mut self,
        disk: &Disk,
        root: &CertificateDer<'static>,
        now: SystemTime,
    ) -> Result<(), OpenError> {
        let (root, not_after) = issuer(disk, root, now)?;
        self.next = Some(Arc::new(make(disk, &root, now, not_after)?));
        self.promote(disk);
        Ok(())
    }

    fn promote(&mut self, disk: &Disk) {
        if let Some(next) = self.next.take() {
            disk.promote_intermediate();
            info!(trust_domain = %disk.trust_domain, until = ?next.validity().not_after, "an intermediate signs");
            self.current = Some(next);
        }
    }
}

/// The root with its key, and when an intermediate that it makes at `now` ends.
fn issuer(disk: &Disk, root: &CertificateDer<'static>, now: SystemTime) -> Result<(Signer, SystemTime), OpenError> {
    let root = root_signer(disk, root)?;
    let not_after = (now + INTERMEDIATE_LIFETIME).min(root.validity().not_after);
    Ok((root, not_after))
}

/// The only use of the root's key: it is read for this, and dropped.
fn make(disk: &Disk, root: &Signer, now: SystemTime, not_after: SystemTime) -> Result<Signer, OpenError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = new_intermediate(root, &disk.trust_domain, &key, now, not_after)?;
    let certificates: Vec<_> = std::iter::once(certificate).chain(root.certificates().iter().cloned()).collect();
    disk.store_intermediate(&disk.files.online_next(), &certificates, &key);
    Signer::new(&disk.trust_domain, certificates, key)
}

/// The root with its key.
pub(crate) fn root_signer(disk: &Disk, root: &CertificateDer<'static>) -> Result<Signer, OpenError> {
    let key = disk.key()?.ok_or_else(|| OpenError::KeyMissing {
        certificates: disk.files.certificates.clone(),
        key: disk.files.key.clone(),
    })?;
    Signer::new(&disk.trust_domain, vec![root.clone()], key)
}
