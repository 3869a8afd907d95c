//! Keeps the kernel's set of strict ports as the policies say.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{info, warn};

use crate::capture::{NftError, nft, rules};
use crate::inbound::policy::StrictPorts;
use crate::inbound::serving::Served;
use crate::metrics::Metrics;

/// The set is written again after this while it is not empty: somebody may have removed and installed the table meanwhile.
const AGAIN: Duration = Duration::from_secs(10);

/// Between two attempts when the kernel refuses.
const RETRY: Duration = Duration::from_secs(1);

/// Follows the policies until dropped. `captured`: the configuration says where plaintext is to be refused.
pub(crate) async fn follow(served: Arc<Served>, metrics: Metrics, captured: bool) {
    let mut changes = served.changes();
    let mut last: Option<StrictPorts> = None;
    loop {
        changes.borrow_and_update();
        let serving = served.load_full();
        // Before anything is known the set is left as an earlier sidecar wrote it.
        let pause = if serving.told {
            let wanted = serving.workload.policies.strict();
            let news = last.replace(wanted.clone()).as_ref() != Some(&wanted);
            if captured { keep(wanted, news, &metrics).await } else { complain(&wanted, news) }
        } else {
            None
        };
        changed_or(pause, &mut changes).await;
    }
}

/// Tells the kernel; when to do so again.
async fn keep(wanted: StrictPorts, news: bool, metrics: &Metrics) -> Option<Duration> {
    let some = wanted != StrictPorts::These([].into());
    let script = rules::strict(&wanted);
    let told = tokio::task::spawn_blocking(move || nft::run(&script)).await;
    match told.unwrap_or_else(|gone| Err(NftError::Run(std::io::Error::other(gone)))) {
        Ok(()) => {
            if some && news {
                info!(ports = ?wanted, "plaintext is refused");
            }
            some.then_some(AGAIN)
        }
        // Without strict ports there need not be a table.
        Err(_) if !some => None,
        Err(error) => {
            metrics.capture_errors.inc();
            if news {
                warn!(%error, ports = ?wanted, "strict ports cannot be captured, so plaintext reaches them");
            }
            Some(RETRY)
        }
    }
}

fn complain(wanted: &StrictPorts, news: bool) -> Option<Duration> {
    if news && *wanted != StrictPorts::These([].into()) {
        warn!(ports = ?wanted, "a policy is strict, but there is no listeners.strict: plaintext is not refused");
    }
    None
}

async fn changed_or(pause: Option<Duration>, changes: &mut watch::Receiver<()>) {
    let change = async {
        if changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    match pause {
        // Whether it changed or it is time makes no difference.
        Some(pause) => drop(tokio::time::timeout(pause, change).await),
        None => change.await,
    }
}
