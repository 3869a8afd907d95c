//! Replacing the cluster's keys: its root, its intermediate, its publish key, each by one command.
//!
//! ```text
//!   begin(root) ──► RootRotation (on disk) ──step──► announce roots ──► own proxies ─────┐ acknowledgements
//!                        ▲                              └──► trust-bundle ──► watchers ──┤
//!                        └───────────────────────────────────────────────────────────────┘
//!   begin(intermediate): at once            begin(publish-key): plane/publish_key.rs
//! ```
//!
//! A root's rotation waits for every proxy of the cluster, and for everybody who watches the trust-bundle with every proxy
//! behind them. It says on whom it waits, goes on after a crash at any point, and hurries only when told to.

mod watchers;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use federation_api::trust::v1::Watcher;
use serde::{Deserialize, Serialize};
use spiffe_identity::{Pace, Phase};
use svid_issuer::{RootRotation, RootStep, RotateError};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};

use crate::admin::timestamp;
use crate::authority::{self, OwnAuthority};
use crate::plane::PlaneHandle;
use crate::proxies::Proxies;
use crate::snapshot::{Snapshot, Standing};

pub(crate) use watchers::{described, name};

/// While a root is replaced, this often is looked who has acknowledged.
const STEP: Duration = Duration::from_millis(200);
/// Requests that wait.
const REQUESTS: usize = 4;

/// Which key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Key {
    /// The cluster's root.
    Root,
    /// The intermediate that signs from day to day.
    Intermediate,
    /// The key under which the cluster speaks to the federation.
    PublishKey,
}

/// How far a rotation is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RotationStatus {
    /// Of which key.
    pub key: Key,
    /// `idle`, or what it is at: `publish`, `spread`, `activate`, `drain`, `retire`, `settle`.
    pub phase: &'static str,
    /// It waits for nobody.
    pub emergency: bool,
    /// Who has to acknowledge before it goes on.
    pub waiting_for: Vec<String>,
    /// The phase does not end before this time (RFC 3339).
    pub not_before: Option<String>,
    /// They have had enough time: somebody should look.
    pub stalled: bool,
    /// Why the last step failed; it is tried again.
    pub problem: Option<String>,
}

impl RotationStatus {
    /// Nothing is replaced.
    #[must_use]
    pub fn idle(key: Key) -> Self {
        Self {
            key,
            phase: "idle",
            emergency: false,
            waiting_for: Vec::new(),
            not_before: None,
            stalled: false,
            problem: None,
        }
    }
}

/// Why a rotation does not begin, or is not given up.
#[derive(Debug, thiserror::Error)]
pub enum RotationRefused {
    /// The state does not allow it.
    #[error("{0}")]
    Conflict(String),
    /// It was tried, and failed.
    #[error("{0}")]
    Failed(String),
}

impl From<RotateError> for RotationRefused {
    fn from(error: RotateError) -> Self {
        match error {
            RotateError::UnderWay | RotateError::TooLate | RotateError::Root(svid_issuer::RootError::Brought) => {
                Self::Conflict(error.to_string())
            }
            _ => Self::Failed(error.to_string()),
        }
    }
}

enum Wish {
    Begin { emergency: bool },
    Cancel,
}

struct Request {
    wish: Wish,
    reply: oneshot::Sender<Result<(), RotationRefused>>,
}

/// The operator's side.
#[derive(Clone)]
pub struct Rotations {
    own: OwnAuthority,
    plane: PlaneHandle,
    requests: mpsc::Sender<Request>,
    root: watch::Receiver<RotationStatus>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

impl Rotations {
    /// Begins to replace a key; in an emergency waits for nobody, also when it is under way already.
    ///
    /// # Errors
    /// [`RotationRefused`]
    pub async fn begin(&self, key: Key, emergency: bool) -> Result<(), RotationRefused> {
        match key {
            Key::Root => self.ask(Wish::Begin { emergency }).await,
            Key::Intermediate => {
                let rotated = self.own.rotate_intermediate().await;
                rotated.map_err(|error| RotationRefused::Failed(format!("{error:#}")))
            }
            Key::PublishKey => {
                if self.snapshots.borrow().generation.is_none() {
                    return Err(RotationRefused::Conflict(
                        "the cluster is not a member: it has no publish key".to_owned(),
                    ));
                }
                self.plane.rotate_publish_key(emergency).map_err(RotationRefused::Conflict)
            }
        }
    }

    /// Gives a rotation up, which only a root's allows, and only before the next root signs.
    ///
    /// # Errors
    /// [`RotationRefused`]
    pub async fn cancel(&self, key: Key) -> Result<(), RotationRefused> {
        match key {
            Key::Root => self.ask(Wish::Cancel).await,
            Key::Intermediate => {
                Err(RotationRefused::Conflict("an intermediate is replaced at once: nothing is under way".to_owned()))
            }
            Key::PublishKey => Err(RotationRefused::Conflict("a grant cannot be taken back".to_owned())),
        }
    }

    /// How far each is.
    #[must_use]
    pub fn status(&self) -> Vec<RotationStatus> {
        let publish_key = self.plane.publish_key_rotation();
        vec![self.root.borrow().clone(), RotationStatus::idle(Key::Intermediate), publish_key]
    }

    async fn ask(&self, wish: Wish) -> Result<(), RotationRefused> {
        let gone = || RotationRefused::Failed("the program is ending".to_owned());
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request { wish, reply }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// The task's side: carries a root's rotation through.
pub struct Rotator {
    own: OwnAuthority,
    pace: Pace,
    proxies: Proxies,
    plane: PlaneHandle,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    requests: mpsc::Receiver<Request>,
    status: watch::Sender<RotationStatus>,
    rotation: Option<RootRotation>,
    /// Who watches, with the epoch that each has acknowledged; gone ones are not in it.
    seen: BTreeMap<String, Option<u64>>,
}

/// What has happened to a watcher.
enum News {
    Connected(String),
    Acknowledged(String, u64),
    Disconnected(String),
}

impl Rotator {
    /// Carries on with what is on disk, once it runs.
    #[must_use]
    pub fn new(
        own: OwnAuthority,
        pace: Pace,
        proxies: Proxies,
        plane: PlaneHandle,
        snapshots: watch::Receiver<Arc<Snapshot>>,
    ) -> (Self, Rotations) {
        let (sender, requests) = mpsc::channel(REQUESTS);
        let (status, root) = watch::channel(RotationStatus::idle(Key::Root));
        let handle =
            Rotations { own: own.clone(), plane: plane.clone(), requests: sender, root, snapshots: snapshots.clone() };
        let seen = BTreeMap::new();
        (Self { own, pace, proxies, plane, snapshots, requests, status, rotation: None, seen }, handle)
    }

    /// Runs until nobody can ask for anything any more.
    pub async fn run(mut self) {
        self.resume();
        loop {
            let request = tokio::select! {
                request = self.requests.recv() => match request {
                    Some(request) => Some(request),
                    None => return,
                },
                () = tokio::time::sleep(STEP), if self.rotation.is_some() => None,
            };
            if let Some(Request { wish, reply }) = request {
                // Whoever asked may have gone away.
                let _ = reply.send(self.fulfil(wish).await);
            }
            if self.rotation.is_some()
                && let Err(error) = Box::pin(self.advance()).await
            {
                warn!(%error, "the root's rotation does not go on");
                self.status.send_modify(|status| status.problem = Some(error.to_string()));
            }
        }
    }

    fn resume(&mut self) {
        match RootRotation::resume(Arc::clone(self.own.authority()), SystemTime::now()) {
            Ok(rotation) => self.rotation = rotation,
            Err(error) => {
                warn!(%error, "a root's rotation cannot be taken up again");
                self.status.send_modify(|status| status.problem = Some(error.to_string()));
            }
        }
        self.plane.watch_watchers(self.rotation.is_some());
    }

    async fn fulfil(&mut self, wish: Wish) -> Result<(), RotationRefused> {
        match (wish, &mut self.rotation) {
            (Wish::Begin { emergency: true }, Some(rotation)) => Ok(rotation.update(spiffe_identity::Rotation::hurry)?),
            (Wish::Begin { emergency: false }, Some(_)) => Err(RotateError::UnderWay.into()),
            (Wish::Begin { emergency }, None) => {
                let mut rotation = RootRotation::begin(Arc::clone(self.own.authority()), self.pace)?;
                if emergency {
                    rotation.update(spiffe_identity::Rotation::hurry)?;
                }
                info!(emergency, "the cluster's root is being replaced");
                self.seen.clear();
                self.rotation = Some(rotation);
                self.plane.watch_watchers(true);
                Ok(())
            }
            (Wish::Cancel, None) => Err(RotationRefused::Conflict("no rotation is under way".to_owned())),
            (Wish::Cancel, Some(_)) => self.cancel().await,
        }
    }

    async fn cancel(&mut self) -> Result<(), RotationRefused> {
        let Some(rotation) = self.rotation.take() else { return Ok(()) };
        if let Err(error) = rotation.cancel() {
            self.resume();
            return Err(error.into());
        }
        info!("the root's rotation is given up");
        self.ended();
        self.own.announce().await.map_err(|error| RotationRefused::Failed(format!("{error:#}")))
    }

    fn ended(&mut self) {
        self.seen.clear();
        self.plane.watch_watchers(false);
        self.status.send_replace(RotationStatus::idle(Key::Root));
    }

    /// Takes in who has acknowledged, and does what is due.
    async fn advance(&mut self) -> anyhow::Result<()> {
        let Some(rotation) = self.rotation.take() else { return Ok(()) };
        let (snapshot, watchers) = (self.snapshots.borrow().clone(), self.plane.watchers());
        let emergency = rotation.is_emergency();
        if snapshot.generation.is_some() && watchers.is_none() && !emergency {
            self.show(&rotation, vec!["trust-bundle, to say who watches".to_owned()], None, false);
            self.rotation = Some(rotation);
            return Ok(());
        }
        let watchers = watchers.unwrap_or_default();
        let news = self.news(&rotation, &snapshot, &watchers);
        let signed_before = self.own.authority().root();
        let (rotation, step) = tokio::task::spawn_blocking(move || carry_on(rotation, news)).await?;
        let rotation = self.rotation.insert(rotation);
        if self.own.authority().root() != signed_before {
            info!("the next root signs");
            self.own.renew_own()?;
        }
        match step? {
            RootStep::Publish(_) => {
                let roots = authority::roots(self.own.authority());
                if snapshot.own_bundle.roots != roots {
                    self.own.announce().await?;
                } else if let Some(epoch) = published(&snapshot, emergency) {
                    rotation.published(epoch, SystemTime::now())?;
                }
                self.show_phase(Vec::new(), None, false);
            }
            RootStep::Wait(waiting) => {
                // A trust-bundle that went back to a backup counts its epochs anew.
                if let Some(epoch) = snapshot.own_bundle.published
                    && rotation.republished(epoch)?
                {
                    warn!(epoch, "the trust state has begun anew: who has acknowledged is asked anew");
                    self.seen.clear();
                }
                let names = waiting.watchers.into_iter().map(|name| described(&name, &watchers)).collect();
                self.show_phase(names, waiting.until, waiting.stalled);
            }
            RootStep::Done => {
                info!("the cluster's root is replaced");
                self.rotation = None;
                self.ended();
            }
        }
        Ok(())
    }

    /// What has changed among those who must know the roots: the cluster's own proxies, and everybody who watches.
    fn news(&mut self, rotation: &RootRotation, snapshot: &Snapshot, watchers: &[Watcher]) -> Vec<News> {
        let epoch = match rotation.phase() {
            Phase::Spread { epoch, .. } | Phase::Settle { epoch, .. } => Some(epoch),
            _ => None,
        };
        let mut present = BTreeMap::new();
        for proxy in self.proxies.connected() {
            let knows = proxy.trust.bundle >= snapshot.own_bundle.sequence;
            present.insert(watchers::proxy_name(&proxy), epoch.filter(|_| knows));
        }
        let own = self.plane.own_identity();
        for watcher in watchers.iter().filter(|watcher| watcher.connected && Some(&watcher.identity) != own.as_ref()) {
            let knows = watcher.pending_count == 0;
            present.insert(name(watcher), Some(watcher.acknowledged).filter(|_| knows));
        }
        let mut news = Vec::new();
        for (name, acknowledged) in &present {
            let known = self.seen.get(name);
            if known.is_none() {
                news.push(News::Connected(name.clone()));
            }
            if let Some(epoch) = acknowledged.filter(|_| known != Some(acknowledged)) {
                news.push(News::Acknowledged(name.clone(), epoch));
            }
        }
        let gone = self.seen.keys().filter(|name| !present.contains_key(*name));
        news.extend(gone.cloned().map(News::Disconnected));
        self.seen = present;
        news
    }

    fn show_phase(&self, waiting_for: Vec<String>, until: Option<SystemTime>, stalled: bool) {
        if let Some(rotation) = &self.rotation {
            self.show(rotation, waiting_for, until, stalled);
        }
    }

    fn show(&self, rotation: &RootRotation, waiting_for: Vec<String>, until: Option<SystemTime>, stalled: bool) {
        let status = RotationStatus {
            key: Key::Root,
            phase: match rotation.phase() {
                Phase::Publish => "publish",
                Phase::Spread { .. } => "spread",
                Phase::Activate => "activate",
                Phase::Drain { .. } => "drain",
                Phase::Retire => "retire",
                Phase::Settle { .. } => "settle",
                Phase::Done => "idle",
            },
            emergency: rotation.is_emergency(),
            waiting_for,
            not_before: until.map(timestamp),
            stalled,
            problem: None,
        };
        self.status.send_if_modified(|known| {
            let changed = *known != status;
            if known.phase != status.phase {
                info!(phase = status.phase, "the root's rotation goes on");
            }
            *known = status;
            changed
        });
    }
}

fn carry_on(mut rotation: RootRotation, news: Vec<News>) -> (RootRotation, Result<RootStep, RotateError>) {
    let now = SystemTime::now();
    let told = if news.is_empty() {
        Ok(())
    } else {
        rotation.update(|rotation| {
            for it in news {
                match it {
                    News::Connected(name) => rotation.connected(&name),
                    News::Acknowledged(name, epoch) => rotation.acknowledged(&name, epoch),
                    News::Disconnected(name) => rotation.disconnected(&name, now),
                }
            }
        })
    };
    let step = told.and_then(|()| rotation.step(now));
    (rotation, step)
}

/// The epoch with which everybody can know the roots that are announced; `None` while the federation does not have them.
fn published(snapshot: &Snapshot, emergency: bool) -> Option<u64> {
    if snapshot.generation.is_none() {
        return Some(0);
    }
    let takes = snapshot.trust_bundle.connected && snapshot.standing == Standing::Good;
    // In an emergency a federation that cannot be told, or does not listen, is not waited for.
    snapshot.own_bundle.published.or((emergency && !takes).then_some(snapshot.trust_epoch))
}
