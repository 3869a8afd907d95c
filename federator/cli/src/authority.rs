//! `isthmus authority`: the federation's own certificate authority, and its rotation.

use std::time::{Duration, Instant};

use federation_api::client::trust::operations::rotate_authority;
use federation_api::trust::v1::RotateAuthorityResponse;
use federation_api::trust::v1::rotate_authority_request::Step;
use jiff::Timestamp;
use serde::Serialize;
use tokio::time::sleep;

use crate::arguments::{AtService, AuthorityCommand};
use crate::failure::Failure;
use crate::operator::OperatorDirectory;
use crate::output::{Output, note, print};
use crate::time::{at_millisecond, to_the_second};

/// How long to wait until the next root is published.
const PUBLICATION: Duration = Duration::from_secs(3);

/// `-o json`
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct State {
    /// "idle", "preparing", "activating", "draining" or "retiring".
    phase: String,
    emergency: bool,
    /// The phase does not end before.
    not_before: Option<Timestamp>,
    /// Watchers that the phase waits for.
    waiting_for: Vec<String>,
}

/// Does what was asked, and tells how far the rotation is.
pub(crate) async fn authority(command: &AuthorityCommand, output: &Output) -> Result<(), Failure> {
    let (service, steps): (&AtService, &[Step]) = match command {
        AuthorityCommand::Status(service) => (service, &[Step::Show]),
        AuthorityCommand::Rotate { service, emergency: false } => (service, &[Step::Begin]),
        AuthorityCommand::Rotate { service, emergency: true } => (service, &[Step::Begin, Step::Hurry]),
        AuthorityCommand::Cancel(service) => (service, &[Step::Cancel]),
        AuthorityCommand::Renew(service) => {
            OperatorDirectory::open(&service.operator)?.renew().await?;
            return print("the operator's certificate and the federation's roots are renewed\n");
        }
    };
    let directory = OperatorDirectory::open(&service.operator)?;
    let ask = async |step| rotate_authority(directory.channel()?, step).await.map_err(|it| directory.failed(it));
    let mut state = ask(Step::Show).await?;
    for step in steps {
        // In an emergency a rotation that is under way is the one to hurry.
        if !(*step == Step::Begin && steps.len() > 1 && state.phase != "idle") {
            state = ask(*step).await?;
        }
        if state.phase == "preparing" {
            learn_both(&directory).await?;
        }
    }
    // The new root signs, and what the old one signed ends soon: the operator's own certificate first of all.
    if matches!(state.phase.as_str(), "draining" | "retiring") {
        directory.renew().await?;
        note("the operator's certificate and the federation's roots are renewed");
    }
    show(state, output)
}

/// The next root is published within moments. An operator who does not know it is cut off when it signs.
async fn learn_both(directory: &OperatorDirectory) -> Result<(), Failure> {
    let deadline = Instant::now() + PUBLICATION;
    while directory.renew().await? < 2 {
        if Instant::now() >= deadline {
            note("warning: the next root is not published yet: run `isthmus authority status` again before it signs");
            return Ok(());
        }
        sleep(PUBLICATION / 6).await;
    }
    note("the federation's next root is known here; other operators' directories need `isthmus authority renew`");
    Ok(())
}

fn show(state: RotateAuthorityResponse, output: &Output) -> Result<(), Failure> {
    let RotateAuthorityResponse { phase, waiting_for, not_before_ms, emergency } = state;
    let state = State { phase, emergency, not_before: at_millisecond(not_before_ms), waiting_for };
    output.show(&state, |_| {
        let mut text = format!("{}{}\n", state.phase, if state.emergency { ", waiting for nobody" } else { "" });
        if let Some(time) = state.not_before {
            text.push_str(&format!("not before {}\n", to_the_second(time)));
        }
        for watcher in &state.waiting_for {
            text.push_str(&format!("waiting for {}\n", crate::output::visible(watcher)));
        }
        text
    })
}
