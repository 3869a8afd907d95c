//! Byte streams that never rest, through the mesh and back: what is measured on them is the last byte that came through.
//!
//! ```text
//!   Stream ──'w' every 5 ms──► sidecar ═══ mesh ═══ sidecar ──► Ticker      each side hears whose byte it is, and when
//!          ◄──'e' every 5 ms──                               ◄──
//!   Calls: a new stream every 20 ms, ended after the first byte that comes back
//! ```

pub mod lab;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::shop::proxy::tunnel;

/// Between two bytes of a stream.
pub const TICK: Duration = Duration::from_millis(5);
/// Between the beginnings of two calls.
const CALL_EVERY: Duration = Duration::from_millis(20);
/// A call that has no answer by now has failed.
const CALL: Duration = Duration::from_secs(5);

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// When a byte of each kind was heard last: microseconds since the start, 0 for never.
#[derive(Debug)]
struct Heard([AtomicU64; 256]);

impl Heard {
    fn new() -> Arc<Self> {
        Arc::new(Self(std::array::from_fn(|_| AtomicU64::new(0))))
    }

    fn note(&self, bytes: &[u8]) {
        let now = u64::try_from(START.elapsed().as_micros()).unwrap_or(u64::MAX).max(1);
        for byte in bytes {
            if let Some(last) = self.0.get(usize::from(*byte)) {
                last.store(now, Ordering::Relaxed);
            }
        }
    }

    fn last(&self, whose: u8) -> Option<Instant> {
        let micros = self.0.get(usize::from(whose))?.load(Ordering::Relaxed);
        (micros > 0).then(|| *START + Duration::from_micros(micros))
    }
}

/// An application that says its byte on every connection, and hears who says theirs.
#[derive(Debug)]
pub struct Ticker {
    heard: Arc<Heard>,
    serving: JoinHandle<()>,
}

impl Ticker {
    /// Listens until dropped.
    ///
    /// # Errors
    /// The address is taken.
    pub async fn listen(address: SocketAddr, own: u8) -> io::Result<Self> {
        LazyLock::force(&START);
        let (heard, listener) = (Heard::new(), TcpListener::bind(address).await?);
        let hearing = Arc::clone(&heard);
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                        connections.spawn(exchange(stream, own, Arc::clone(&hearing)));
                    },
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(Self { heard, serving })
    }

    /// When a byte of somebody was heard last.
    #[must_use]
    pub fn last(&self, whose: u8) -> Option<Instant> {
        self.heard.last(whose)
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A client's stream.
#[derive(Debug)]
pub struct Stream {
    heard: Arc<Heard>,
    exchanging: JoinHandle<()>,
}

impl Stream {
    /// Opens one through a sidecar's explicit proxy.
    ///
    /// # Errors
    /// The proxy refuses.
    pub async fn open(proxy: SocketAddr, authority: &str, own: u8) -> io::Result<Self> {
        LazyLock::force(&START);
        let stream = timeout(CALL, tunnel(proxy, authority)).await??;
        let heard = Heard::new();
        Ok(Self { exchanging: tokio::spawn(exchange(stream, own, Arc::clone(&heard))), heard })
    }

    /// When a byte of somebody was heard last.
    #[must_use]
    pub fn last(&self, whose: u8) -> Option<Instant> {
        self.heard.last(whose)
    }

    /// It has ended.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.exchanging.is_finished()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.exchanging.abort();
    }
}

/// Until either direction ends.
async fn exchange(mut stream: TcpStream, own: u8, heard: Arc<Heard>) {
    // Without it the next byte is fine too.
    let _ = stream.set_nodelay(true);
    let (mut reading, mut writing) = stream.split();
    let saying = async {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while writing.write_all(&[own]).await.is_ok() {
            ticks.tick().await;
        }
    };
    let hearing = async {
        let mut bytes = [0; 4096];
        loop {
            match reading.read(&mut bytes).await {
                Ok(count @ 1..) => heard.note(&bytes[..count]),
                _ => return,
            }
        }
    };
    tokio::select! {
        () = saying => {}
        () = hearing => {}
    }
}

/// What came of one call.
#[derive(Debug, Clone)]
pub struct Call {
    /// When it began.
    pub began: Instant,
    /// When it ended.
    pub ended: Instant,
    /// A byte came back, or what went wrong.
    pub outcome: Result<(), String>,
}

/// New streams, one after the other, each a mutual TLS session of its own between two sidecars.
#[derive(Debug)]
pub struct Calls {
    calls: Arc<Mutex<Vec<Call>>>,
    driver: JoinHandle<()>,
}

impl Calls {
    /// Calls until dropped.
    #[must_use]
    pub fn start(proxy: SocketAddr, authority: String, own: u8) -> Self {
        let calls = Arc::<Mutex<Vec<Call>>>::default();
        let log = Arc::clone(&calls);
        let driver = tokio::spawn(async move {
            let mut ticks = interval(CALL_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut under_way = JoinSet::new();
            loop {
                ticks.tick().await;
                while under_way.try_join_next().is_some() {}
                let (log, authority) = (Arc::clone(&log), authority.clone());
                under_way.spawn(async move {
                    let began = Instant::now();
                    let outcome = match timeout(CALL, call(proxy, &authority, own)).await {
                        Ok(outcome) => outcome.map_err(|error| error.to_string()),
                        Err(late) => Err(late.to_string()),
                    };
                    let call = Call { began, ended: Instant::now(), outcome };
                    log.lock().unwrap_or_else(PoisonError::into_inner).push(call);
                });
            }
        });
        Self { calls, driver }
    }

    /// Those that began at or after a moment and have ended.
    #[must_use]
    pub fn since(&self, moment: Instant) -> Vec<Call> {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.iter().filter(|call| call.began >= moment).cloned().collect()
    }

    /// When the last byte came back.
    #[must_use]
    pub fn last_answer(&self) -> Option<Instant> {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.iter().filter(|call| call.outcome.is_ok()).map(|call| call.ended).max()
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

async fn call(proxy: SocketAddr, authority: &str, own: u8) -> io::Result<()> {
    let mut stream = tunnel(proxy, authority).await?;
    stream.write_all(&[own]).await?;
    stream.read_u8().await.map(drop)
}
