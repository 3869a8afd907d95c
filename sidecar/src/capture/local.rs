//! Keeps the kernel's sets of local services' addresses as the control-plane says.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use crate::capture::{NftError, nft, rules};
use crate::metrics::Metrics;
use crate::routing::Router;

/// The sets are written again after this while they are not empty: somebody may have removed and installed the table
/// meanwhile.
const AGAIN: Duration = Duration::from_secs(10);

/// Between two attempts when the kernel refuses.
const RETRY: Duration = Duration::from_secs(1);

/// Follows what is known until dropped.
pub(crate) async fn follow(router: Router, metrics: Metrics) {
    let mut changes = router.changes();
    let mut last: Option<Arc<HashSet<IpAddr>>> = None;
    loop {
        changes.borrow_and_update();
        let table = router.table();
        // Before anything is known the sets are left as an earlier sidecar wrote them.
        let pause = if table.ranges.is_some() {
            let wanted = Arc::clone(&table.local);
            let news = last.replace(Arc::clone(&wanted)).as_ref() != Some(&wanted);
            keep(wanted, news, &metrics).await
        } else {
            None
        };
        let another = async { while changes.changed().await.is_ok() && router.table().local == table.local {} };
        match pause {
            // Whether it changed or it is time makes no difference.
            Some(pause) => drop(tokio::time::timeout(pause, another).await),
            None => another.await,
        }
    }
}

/// Tells the kernel; when to do so again.
async fn keep(wanted: Arc<HashSet<IpAddr>>, news: bool, metrics: &Metrics) -> Option<Duration> {
    let (some, services) = (!wanted.is_empty(), wanted.len());
    let script = rules::local(&wanted);
    let told = tokio::task::spawn_blocking(move || nft::run(&script)).await;
    match told.unwrap_or_else(|gone| Err(NftError::Run(std::io::Error::other(gone)))) {
        Ok(()) => {
            if some && news {
                info!(addresses = services, "local services are captured");
            }
            some.then_some(AGAIN)
        }
        // Without local services there need not be a table.
        Err(_) if !some => None,
        Err(error) => {
            metrics.capture_errors.inc();
            if news {
                warn!(%error, addresses = services, "local services cannot be captured, so traffic to them stays as it is");
            }
            Some(RETRY)
        }
    }
}
