//! From one root to the next on disk: three steps, each of which may be repeated.

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;

use super::{Authority, OpenError, Signing};
use crate::{issue::whole_seconds, online::Online};

/// Why a root is not replaced.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// The operator brought this authority, and brings its successor.
    #[error("the authority was brought by the operator, and is replaced by bringing another")]
    Brought,
    /// The root before the present one is still published.
    #[error("the last rotation has not retired its old root")]
    NotRetired,
    /// There is no next root.
    #[error("no next root was prepared")]
    NotPrepared,
    /// A file cannot be read or written.
    #[error(transparent)]
    Files(#[from] OpenError),
}

impl Authority {
    /// All roots that the trust domain's bundle publishes: the one that signs, and while it is replaced the next one or the
    /// one before.
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        let state = self.state();
        let mut roots = vec![state.root.clone()];
        for other in [&state.next_root, &state.old_root].into_iter().flatten() {
            if !roots.contains(other) {
                roots.push(other.clone());
            }
        }
        roots
    }

    /// Whether this authority makes its own roots, and none is on its way in or out.
    ///
    /// # Errors
    /// Why its root cannot be replaced now.
    pub fn check_replaceable(&self) -> Result<(), RootError> {
        let state = self.state();
        match (&state.signing, &state.old_root) {
            (Signing::Itself(_), _) => Err(RootError::Brought),
            (_, Some(_)) => Err(RootError::NotRetired),
            _ => Ok(()),
        }
    }

    /// Gives the next root up, before it has signed anything.
    ///
    /// # Errors
    /// When the disk cannot be written.
    pub fn discard_next_root(&self) -> Result<(), RootError> {
        let mut state = self.state();
        // One that was activated halfway is the present one already.
        if state.next_root.is_some() && state.next_root.as_ref() != Some(&state.root) {
            self.disk.discard_next_root()?;
            state.next_root = None;
        }
        Ok(())
    }

    /// Makes the next root, to be published beside the present one, which signs on.
    ///
    /// # Errors
    /// When the authority was brought, the last rotation is not over, or the disk cannot be written.
    pub fn prepare_root(&self, now: SystemTime) -> Result<(), RootError> {
        let mut state = self.state();
        if matches!(state.signing, Signing::Itself(_)) {
            return Err(RootError::Brought);
        }
        if state.next_root.is_some() {
            return Ok(());
        }
        if state.old_root.is_some() {
            return Err(RootError::NotRetired);
        }
        state.next_root = Some(self.disk.prepare_root(whole_seconds(now))?);
        Ok(())
    }

    /// Signs below the next root from now on, and destroys the key of the one before. Both are to be published still.
    ///
    /// # Errors
    /// When none was prepared or the disk cannot be written; the present root signs on then.
    pub fn activate_root(&self, now: SystemTime) -> Result<(), RootError> {
        let mut state = self.state();
        let Some(next) = state.next_root.clone() else {
            return if state.old_root.is_some() { Ok(()) } else { Err(RootError::NotPrepared) };
        };
        let activated = self.disk.activate_root(&next);
        if self.disk.certificates()?.first() != Some(&next) {
            return Ok(activated?);
        }
        // The certificate is in its place: whatever failed behind that is repeated with the next call.
        let not_after = spiffe_identity::validity(&next).map_err(|error| OpenError::Authority {
            position: 1,
            trust_domain: self.disk.trust_domain.clone(),
            source: error.into(),
        });
        state.not_after = not_after?.not_after;
        state.old_root = self.disk.old_root()?;
        state.root = next.clone();
        activated?;
        let mut online = Online::default();
        online.maintain(&self.disk, &next, whole_seconds(now))?;
        state.signing = Signing::Online(online);
        state.next_root = None;
        Ok(())
    }

    /// Stops publishing the root before.
    ///
    /// # Errors
    /// When the disk cannot be written.
    pub fn retire_root(&self) -> Result<(), RootError> {
        let mut state = self.state();
        self.disk.retire_root()?;
        state.old_root = None;
        Ok(())
    }
}
