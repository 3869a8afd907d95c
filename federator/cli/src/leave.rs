//! `isthmus leave`: every record of the cluster is withdrawn, and then its membership ends.

use serde::Serialize;

use crate::admin::Admin;
use crate::arguments::Patience;
use crate::failure::Failure;
use crate::output::Output;
use crate::wait::{Progress, until};

/// `isthmus leave -o json`
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Left {
    cluster: String,
    federation: String,
    /// False with `--no-wait`.
    left: bool,
}

/// Ends the membership, and waits until it is over.
pub(crate) async fn leave(patience: &Patience, admin: &Admin, output: &Output) -> Result<(), Failure> {
    let status = admin.status().await?;
    admin.leave().await?;
    if !patience.no_wait {
        until("leave", patience.timeout, || async {
            let status = admin.status().await?;
            if !status.joined {
                return Ok(Progress::Done(()));
            }
            let problem = status.leave_problem.unwrap_or_else(|| "its records are being withdrawn".to_owned());
            Ok(Progress::Waiting(problem))
        })
        .await?;
    }
    let left = Left { cluster: status.cluster, federation: status.federation, left: !patience.no_wait };
    output.show(&left, |_| {
        let verb = if left.left { "left" } else { "is leaving" };
        format!("cluster {} {verb} federation {}\n", left.cluster, left.federation)
    })
}
