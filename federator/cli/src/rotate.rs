//! `isthmus rotate`: replaces one of the cluster's keys, or tells how far that is.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::admin::Admin;
use crate::admin::wire::Rotation;
use crate::arguments::{Rotate, RotateWhat};
use crate::failure::Failure;
use crate::output::{Output, Tone, Toned, note, visible};
use crate::wait::{Progress, until};

/// `isthmus rotate -o json`
#[derive(Debug, Serialize)]
struct Report<'a> {
    rotations: &'a [Rotation],
}

/// Begins, hurries or gives up a rotation; with `--wait` stays until it is over.
pub(crate) async fn rotate(arguments: &Rotate, admin: &Admin, output: &Output) -> Result<(), Failure> {
    let Some(key) = arguments.what.key() else {
        let rotations = admin.rotations().await?;
        return output.show(&Report { rotations: &rotations }, |output| table(&rotations, output));
    };
    let mut rotations = if arguments.cancel {
        admin.cancel_rotation(key).await?
    } else {
        admin.rotate(key, arguments.emergency).await?
    };
    if arguments.wait {
        rotations = until_idle(key, arguments.timeout, admin).await?;
    }
    output.show(&Report { rotations: &rotations }, |output| match (arguments.cancel, arguments.what) {
        (true, _) => format!("rotation of {key} given up\n"),
        (false, _) if arguments.wait || arguments.what == RotateWhat::Intermediate => format!("{key} replaced\n"),
        _ => table(&rotations, output),
    })
}

/// Each phase is told as it comes, with whom it waits for.
async fn until_idle(key: &str, patience: Duration, admin: &Admin) -> Result<Vec<Rotation>, Failure> {
    let last = std::cell::RefCell::new(String::new());
    until(&format!("rotate {key}"), patience, || async {
        let rotations = admin.rotations().await?;
        let Some(rotation) = rotations.iter().find(|rotation| rotation.key == key) else {
            return Ok(Progress::Waiting("the control-plane does not know of it".to_owned()));
        };
        if rotation.phase == "idle" {
            return match &rotation.problem {
                Some(problem) => Err(Failure::Rotation { key: key.to_owned(), problem: problem.clone() }),
                None => Ok(Progress::Done(rotations)),
            };
        }
        let told = told(rotation);
        if *last.borrow() != told {
            note(&format!("{key}: {}", visible(&told)));
            last.replace(told.clone());
        }
        Ok(Progress::Waiting(told))
    })
    .await
}

/// `spread: waits for cluster/west/control-plane`
pub(crate) fn told(rotation: &Rotation) -> String {
    let mut told = rotation.phase.clone();
    if rotation.emergency {
        told.push_str(" (emergency)");
    }
    if !rotation.waiting_for.is_empty() {
        let verb = if rotation.stalled { "stalled, waits" } else { "waits" };
        told.push_str(&format!(": {verb} for {}", rotation.waiting_for.join("; ")));
    }
    if let Some(until) = rotation.not_before.filter(|until| *until > Timestamp::now()) {
        told.push_str(&format!(", not before {until}"));
    }
    if let Some(problem) = &rotation.problem {
        told.push_str(&format!(": {problem}"));
    }
    told
}

fn table(rotations: &[Rotation], output: &Output) -> String {
    let rows = rotations.iter().map(|rotation| {
        let tone = match rotation {
            Rotation { problem: Some(_), .. } => Tone::Bad,
            Rotation { stalled: true, .. } => Tone::Doubtful,
            _ => Tone::Plain,
        };
        vec![
            rotation.key.clone().into(),
            Toned::new(rotation.phase.clone(), tone),
            Toned::or_dash(rotation.waiting_for.join("; ")),
            Toned::or_dash(rotation.not_before.map(|until| until.to_string()).unwrap_or_default()),
            Toned::or_dash(rotation.problem.clone().unwrap_or_default()),
        ]
    });
    output.table(&["KEY", "PHASE", "WAITS FOR", "NOT BEFORE", "PROBLEM"], rows.collect())
}
