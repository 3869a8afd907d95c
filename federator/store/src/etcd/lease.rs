//! The task that keeps leases alive: one stream for all of them.

use std::collections::HashMap;
use std::sync::Arc;

use etcd_client::{LeaseKeepAliveResponse, LeaseKeepAliveStream, LeaseKeeper};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::fault::Fault;
use super::members::{ATTEMPT, Link, Members};
use crate::LeaseId;

/// How many keep-alives may wait for the task.
const QUEUE: usize = 1024;

/// One keep-alive: the answer is whether the lease lives.
type Asked = (i64, oneshot::Sender<Result<(), Fault>>);

/// The task's handle; it ends with the last clone.
#[derive(Debug, Clone)]
pub(super) struct LeaseKeeping(mpsc::Sender<Asked>);

impl LeaseKeeping {
    /// Starts the task.
    pub(super) fn start(members: Arc<Members>) -> Self {
        let (sender, requests) = mpsc::channel(QUEUE);
        // It is awaited by nobody: it ends when the last handle is dropped, and holds nothing that must be put away.
        tokio::spawn(keep(members, requests));
        Self(sender)
    }

    /// One attempt to keep a lease alive.
    pub(super) async fn keep_alive(&self, lease: LeaseId) -> Result<(), Fault> {
        let (reply, answer) = oneshot::channel();
        let lost = || Fault::Unknown("the stream of keep-alives broke".into());
        self.0.send((lease.number().cast_signed(), reply)).await.map_err(|_| lost())?;
        answer.await.unwrap_or_else(|_| Err(lost()))
    }
}

async fn keep(members: Arc<Members>, mut requests: mpsc::Receiver<Asked>) {
    while let Some((lease, reply)) = requests.recv().await {
        let mut link = match members.link().await {
            Ok(link) => link,
            Err(fault) => {
                let _ = reply.send(Err(fault));
                continue;
            }
        };
        // Opening the stream is the first keep-alive on it.
        let opened = match timeout(ATTEMPT, link.client.lease_keep_alive(lease)).await {
            Ok(opened) => opened.map_err(Fault::from),
            Err(elapsed) => Err(Fault::Unknown(Box::new(elapsed))),
        };
        match opened {
            Ok((keeper, stream)) => {
                let _ = reply.send(Ok(()));
                if let Err(fault) = serve(keeper, stream, &mut requests).await {
                    fail(&members, &link, &fault);
                }
            }
            Err(fault) => {
                if fault.is_transient() {
                    fail(&members, &link, &fault);
                }
                let _ = reply.send(Err(fault));
            }
        }
    }
}

fn fail(members: &Members, link: &Link, fault: &Fault) {
    members.metrics.failed("keep_alive", fault);
    members.give_up(link, fault);
}

/// Passes keep-alives and their answers on until the stream breaks or falls silent; those without an answer then fail.
async fn serve(
    mut keeper: LeaseKeeper,
    mut stream: LeaseKeepAliveStream,
    requests: &mut mpsc::Receiver<Asked>,
) -> Result<(), Fault> {
    let mut waiting: HashMap<i64, Vec<oneshot::Sender<Result<(), Fault>>>> = HashMap::new();
    let mut silent_at = Instant::now() + ATTEMPT;
    loop {
        tokio::select! {
            asked = requests.recv() => {
                let Some((lease, reply)) = asked else { return Ok(()) };
                if waiting.is_empty() {
                    silent_at = Instant::now() + ATTEMPT;
                }
                waiting.entry(lease).or_default().push(reply);
                keeper.id = lease;
                timeout(ATTEMPT, keeper.keep_alive()).await.map_err(|elapsed| Fault::Unknown(Box::new(elapsed)))??;
            }
            answer = stream.message() => {
                silent_at = Instant::now() + ATTEMPT;
                match answer? {
                    Some(answer) => tell(&mut waiting, &answer),
                    None => return Err(Fault::Unknown("the stream of keep-alives ended".into())),
                }
            }
            () = sleep_until(silent_at), if !waiting.is_empty() => {
                return Err(Fault::Unknown("keep-alives are not answered".into()));
            }
        }
    }
}

fn tell(waiting: &mut HashMap<i64, Vec<oneshot::Sender<Result<(), Fault>>>>, answer: &LeaseKeepAliveResponse) {
    for reply in waiting.remove(&answer.id()).into_iter().flatten() {
        let _ = reply.send(if answer.ttl() > 0 { Ok(()) } else { Err(Fault::LeaseNotFound) });
    }
}
