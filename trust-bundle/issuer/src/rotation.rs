//! Replacing a trust domain's root: the phases of [`Rotation`], carried out on an authority's files.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use rustls_pki_types::CertificateDer;
use spiffe_identity::{Action, Pace, Phase, Rotation, Waiting};

use crate::{
    Authority, RootError,
    files::{read_if_there, remove, write_public},
};

/// A root's rotation under way. Its owner publishes what it is told to, passes on who watches and has acknowledged, and asks
/// again; the rest (making, activating and retiring roots, and coming back after a crash at any point) happens here.
#[derive(Debug)]
pub struct RootRotation {
    authority: Arc<Authority>,
    rotation: Rotation,
    path: PathBuf,
}

/// What a root's rotation asks of its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootStep {
    /// Publish these roots as the trust domain's bundle, and report the epoch with [`published`](RootRotation::published).
    Publish(Vec<CertificateDer<'static>>),
    /// Nothing yet.
    Wait(Waiting),
    /// It is over: nobody who watches trusts the old root.
    Done,
}

/// Why a rotation does not go on. Asking again is safe.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// Another rotation is under way.
    #[error("a rotation is under way already")]
    UnderWay,
    /// The next root signs already, and cannot be given up.
    #[error("the next root signs already")]
    TooLate,
    /// A root cannot be made, activated or retired.
    #[error(transparent)]
    Root(#[from] RootError),
    /// The rotation's state cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file of the state.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The rotation's state is not what was written.
    #[error("{path}: {source}")]
    State {
        /// The file of the state.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

impl RootRotation {
    /// Begins to replace the authority's root.
    ///
    /// # Errors
    /// When a rotation is under way, the operator brought the authority, or the disk cannot be written.
    pub fn begin(authority: Arc<Authority>, pace: Pace) -> Result<Self, RotateError> {
        authority.check_replaceable()?;
        let path = authority.files().rotation();
        if read_if_there(&path).map_err(|source| failed(&path, source))?.is_some() {
            return Err(RotateError::UnderWay);
        }
        let rotation = Self { authority, rotation: Rotation::new(pace), path };
        rotation.store()?;
        Ok(rotation)
    }

    /// The rotation that was under way before a restart, if there is one. Whoever watched then gets time to come back.
    ///
    /// # Errors
    /// When its state cannot be read.
    pub fn resume(authority: Arc<Authority>, now: SystemTime) -> Result<Option<Self>, RotateError> {
        let path = authority.files().rotation();
        let Some(text) = read_if_there(&path).map_err(|source| failed(&path, source))? else { return Ok(None) };
        let mut rotation: Rotation = match serde_json::from_slice(&text) {
            Ok(rotation) => rotation,
            Err(source) => return Err(RotateError::State { path, source }),
        };
        rotation.resume(now);
        Ok(Some(Self { authority, rotation, path }))
    }

    /// Gives the rotation up, as long as the next root has signed nothing: publish [`Authority::roots`] then.
    ///
    /// # Errors
    /// When it is too late for that, or the disk cannot be written. [`resume`](Self::resume) brings the rotation back then.
    pub fn cancel(self) -> Result<(), RotateError> {
        if !matches!(self.phase(), Phase::Publish | Phase::Spread { .. }) {
            return Err(RotateError::TooLate);
        }
        self.authority.discard_next_root()?;
        remove(&self.path).map_err(|source| failed(&self.path, source))
    }

    /// How far it has come.
    pub fn phase(&self) -> Phase {
        self.rotation.phase()
    }

    /// Whether the waits are skipped.
    pub fn is_emergency(&self) -> bool {
        self.rotation.is_emergency()
    }

    /// Passes something on: who is connected, has acknowledged or left, or that there is no time to wait.
    ///
    /// # Errors
    /// When the state cannot be written; what was passed on counts until the next restart.
    pub fn update(&mut self, change: impl FnOnce(&mut Rotation)) -> Result<(), RotateError> {
        change(&mut self.rotation);
        self.store()
    }

    /// The roots that were asked for are published, with this epoch.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub fn published(&mut self, epoch: u64, now: SystemTime) -> Result<(), RotateError> {
        self.update(|rotation| match rotation.phase() {
            Phase::Publish => rotation.published(epoch, now),
            Phase::Retire => rotation.retired(epoch, now),
            _ => {}
        })
    }

    /// What was published is found with this epoch: a lower one means that epochs began anew, and is waited for instead.
    /// Says whether that is so: who watches is to be passed on anew then.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub fn republished(&mut self, epoch: u64) -> Result<bool, RotateError> {
        let anew = self.rotation.republished(epoch);
        if anew {
            self.store()?;
        }
        Ok(anew)
    }

    /// Does what is due and can be done here, and says what is left to others.
    ///
    /// # Errors
    /// When a step fails. It is tried again with the next call.
    pub fn step(&mut self, now: SystemTime) -> Result<RootStep, RotateError> {
        loop {
            match self.rotation.next(now) {
                Action::Publish => self.authority.prepare_root(now)?,
                Action::Activate => {
                    self.authority.activate_root(now)?;
                    self.update(|rotation| rotation.activated(now))?;
                    continue;
                }
                Action::Retire => self.authority.retire_root()?,
                Action::Wait(waiting) => return Ok(RootStep::Wait(waiting)),
                Action::Nothing => {
                    remove(&self.path).map_err(|source| failed(&self.path, source))?;
                    return Ok(RootStep::Done);
                }
            }
            return Ok(RootStep::Publish(self.authority.roots()));
        }
    }

    fn store(&self) -> Result<(), RotateError> {
        let text = serde_json::to_string_pretty(&self.rotation);
        let text = text.map_err(|source| RotateError::State { path: self.path.clone(), source })?;
        write_public(&self.path, &text).map_err(|source| failed(&self.path, source))
    }
}

fn failed(path: &Path, source: io::Error) -> RotateError {
    RotateError::File { path: path.to_owned(), source }
}
