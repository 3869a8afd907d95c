//! The HTTP/2 sessions of one path.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use tokio::sync::watch;

use crate::hang_up::HangUp;
use crate::outbound::replay::RequestBody;
use crate::session::dial::DialError;
use crate::session::peer::Peer;

/// Requests in flight on every session of a path from which on one more session is opened.
const BUSY: usize = 64;

/// Sessions of one path at most. More would only share the same endpoint's sidecar.
const MAX_SESSIONS: usize = 4;

/// A session is replaced at about this age, so that endpoints that came later get their share.
const LIFETIME: Duration = Duration::from_secs(300);

/// Part of the lifetime by which sessions differ, so that they are not replaced all at once.
const JITTER: f64 = 0.5;

fn lifetime() -> Duration {
    LIFETIME.mul_f64(1.0 + JITTER * (2.0 * rand::random::<f64>() - 1.0))
}

/// One HTTP/2 session to a sidecar.
pub(crate) struct Session {
    pub(crate) sender: SendRequest<RequestBody<Incoming>>,
    pub(crate) peer: Arc<Peer>,
    /// None of one in memory.
    hang_up: Option<HangUp>,
    /// Requests in flight.
    load: AtomicUsize,
    /// Since the last look for idle ones.
    used: AtomicBool,
    /// From then on another one takes its place.
    expires: Instant,
    retired: AtomicBool,
}

impl Session {
    pub(crate) fn new(
        sender: SendRequest<RequestBody<Incoming>>,
        peer: Arc<Peer>,
        hang_up: Option<HangUp>,
    ) -> Arc<Self> {
        Arc::new(Self {
            sender,
            peer,
            hang_up,
            load: AtomicUsize::new(0),
            used: AtomicBool::new(true),
            expires: Instant::now() + lifetime(),
            retired: AtomicBool::new(false),
        })
    }

    fn lease(self: &Arc<Self>, reused: bool) -> Lease {
        self.load.fetch_add(1, Ordering::Relaxed);
        self.used.store(true, Ordering::Relaxed);
        Lease { session: Arc::clone(self), reused }
    }

    /// Takes requests: neither its own task nor the kernel knows of an end.
    fn is_open(&self) -> bool {
        self.sender.is_ready() && !self.hang_up.as_ref().is_some_and(HangUp::seen)
    }

    /// Another one should take its place; requests on it go on.
    fn is_old(&self, now: Instant) -> bool {
        self.retired.load(Ordering::Relaxed) || now >= self.expires
    }

    pub(crate) fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Session").field("peer", &self.peer).field("load", &self.load).finish_non_exhaustive()
    }
}

/// A place on a session, until dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    session: Arc<Session>,
    /// The session was open before: that it was closed meanwhile says nothing about the path.
    pub(crate) reused: bool,
}

impl Lease {
    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    pub(crate) fn peer(&self) -> &Arc<Peer> {
        &self.session.peer
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.session.load.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How an attempt to open a session went, once it has ended.
pub(crate) type Opened = Option<Result<Arc<Session>, Arc<DialError>>>;

/// A session that is being opened, shared by all who wait for it.
#[derive(Clone, Debug)]
pub(crate) struct Opening(watch::Receiver<Opened>);

impl Opening {
    /// Waits for it.
    pub(crate) async fn lease(mut self) -> Result<Lease, Arc<DialError>> {
        let opened = self.0.wait_for(Option::is_some).await.map(|opened| opened.clone());
        match opened {
            Ok(Some(Ok(session))) => Ok(session.lease(false)),
            Ok(Some(Err(error))) => Err(error),
            Ok(None) | Err(_) => Err(Arc::new(DialError::Stopped)),
        }
    }
}

/// The sessions of one path.
#[derive(Debug)]
pub(crate) struct Sessions {
    live: Vec<Arc<Session>>,
    opening: Option<watch::Receiver<Opened>>,
    /// When the path was last led to another slot.
    turned: Instant,
}

impl Default for Sessions {
    fn default() -> Self {
        Self { live: Vec::new(), opening: None, turned: Instant::now() }
    }
}

/// What a request finds.
pub(crate) enum Checkout {
    /// A place on an open session; `open_more` when all are busy and the caller should open another one.
    Ready {
        lease: Lease,
        /// Whoever gets this opens one more session, without waiting for it.
        open_more: Option<watch::Sender<Opened>>,
    },
    /// Somebody opens one already.
    Wait(Opening),
    /// The caller opens one, and tells the sender.
    Open(watch::Sender<Opened>, Opening),
}

impl Sessions {
    /// The least loaded session, or the way to get one.
    pub(crate) fn checkout(&mut self) -> Checkout {
        self.live.retain(|session| session.is_open());
        let now = Instant::now();
        // One that should be replaced serves until its replacement is there.
        let least = self.live.iter().min_by_key(|session| (session.is_old(now), session.load()));
        if let Some(session) = least {
            let lease = session.lease(true);
            let busy = session.load() > BUSY && self.live.len() < MAX_SESSIONS;
            let more = (busy || session.is_old(now)) && self.opening.is_none();
            return Checkout::Ready { lease, open_more: more.then(|| self.start_opening().0) };
        }
        match &self.opening {
            Some(opening) => Checkout::Wait(Opening(opening.clone())),
            None => {
                let (sender, opening) = self.start_opening();
                Checkout::Open(sender, opening)
            }
        }
    }

    fn start_opening(&mut self) -> (watch::Sender<Opened>, Opening) {
        let (sender, receiver) = watch::channel(None);
        self.opening = Some(receiver.clone());
        (sender, Opening(receiver))
    }

    /// The attempt to open one has ended.
    pub(crate) fn opened(&mut self, session: Option<Arc<Session>>) {
        self.opening = None;
        if session.is_some() {
            let now = Instant::now();
            self.live.retain(|session| !session.is_old(now));
        }
        self.live.extend(session);
    }

    /// Retires every session, unless that happened less than `pause` ago or is still under way.
    pub(crate) fn turn(&mut self, now: Instant, pause: Duration) -> bool {
        let due = now.saturating_duration_since(self.turned) >= pause
            && self.opening.is_none()
            && !self.live.iter().any(|session| session.is_old(now));
        if due {
            self.turned = now;
            self.live.iter().for_each(|session| session.retired.store(true, Ordering::Relaxed));
        }
        due
    }

    /// Lets sessions go that nobody used since the last call.
    pub(crate) fn close_idle(&mut self) {
        self.live.retain(|session| {
            let used = session.used.swap(false, Ordering::Relaxed);
            session.is_open() && (used || session.load() > 0)
        });
    }

    /// The open sessions.
    pub(crate) fn live(&self) -> &[Arc<Session>] {
        &self.live
    }
}
