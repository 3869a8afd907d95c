//! `isthmus export` and `isthmus unexport`.

use std::time::Duration;

use federation::ServiceId;
use serde::Serialize;
use tokio::time::Instant;

use crate::admin::Admin;
use crate::admin::wire::{Condition, Export};
use crate::arguments::ExportService;
use crate::failure::Failure;
use crate::output::Output;
use crate::wait::{Progress, until};

/// A Service whose manifest was written just before may not have been read yet: for this long a missing one is waited for.
const SERVICE_MAY_COME: Duration = Duration::from_secs(2);

/// `isthmus unexport -o json`, and `isthmus export --no-wait -o json`
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Taken<'a> {
    #[serde(flatten)]
    service: &'a ServiceId,
    exported: bool,
}

/// Exports a service; waits until the federation has accepted it.
pub(crate) async fn export(arguments: &ExportService, admin: &Admin, output: &Output) -> Result<(), Failure> {
    let service = &arguments.service;
    admin.export(service).await?;
    if arguments.patience.no_wait {
        let taken = Taken { service, exported: true };
        return output.show(&taken, |_| format!("export {service} taken\n"));
    }
    let asked = Instant::now();
    let accepted = until(&format!("export {service}"), arguments.patience.timeout, || async {
        let exports = admin.exports().await?;
        let found = exports.into_iter().find(|export| export.service() == *service);
        progress(service, found, asked.elapsed())
    })
    .await?;
    output.show(&accepted, |_| format!("export {service} accepted: {}\n", told(&accepted)))
}

/// How ready it is, and what the exporters disagree on if they do.
fn told(export: &Export) -> String {
    let worth =
        |condition: &&Condition| condition.kind == "Ready" || condition.kind == "Conflict" && condition.is_true();
    export.conditions.iter().filter(worth).map(describe).collect::<Vec<_>>().join("; ")
}

/// Takes an export back; waits until the control-plane no longer lists it.
pub(crate) async fn unexport(arguments: &ExportService, admin: &Admin, output: &Output) -> Result<(), Failure> {
    let service = &arguments.service;
    admin.unexport(service).await?;
    if !arguments.patience.no_wait {
        until(&format!("unexport {service}"), arguments.patience.timeout, || async {
            let exports = admin.exports().await?;
            Ok(match exports.iter().find(|export| export.service() == *service) {
                None => Progress::Done(()),
                Some(_) => Progress::Waiting("it is still listed among the exports".to_owned()),
            })
        })
        .await?;
    }
    let taken = Taken { service, exported: false };
    output.show(&taken, |_| format!("export {service} taken back\n"))
}

fn progress(service: &ServiceId, found: Option<Export>, waited: Duration) -> Result<Progress<Export>, Failure> {
    let Some(export) = found else {
        return Ok(Progress::Waiting("it is not listed among the exports yet".to_owned()));
    };
    let refused = |condition: &Condition| {
        Err(Failure::Export { service: service.clone(), reason: format!("not accepted: {}", describe(condition)) })
    };
    if let Some(valid) = export.condition("Valid").filter(|valid| valid.is_false()) {
        return if valid.reason == "NoService" && waited < SERVICE_MAY_COME {
            Ok(Progress::Waiting(describe(valid)))
        } else {
            refused(valid)
        };
    }
    match export.condition("Ready") {
        Some(ready) if ready.is_true() => Ok(Progress::Done(export)),
        Some(ready) if ready.is_false() && ready.reason == "Failed" => refused(ready),
        Some(ready) => Ok(Progress::Waiting(describe(ready))),
        None => Ok(Progress::Waiting("it has no condition Ready yet".to_owned())),
    }
}

/// `Ready=False (Pending): waiting for the federator`
fn describe(condition: &Condition) -> String {
    let Condition { kind, status, reason, message } = condition;
    let mut text = format!("{kind}={status}");
    if !reason.is_empty() {
        text.push_str(&format!(" ({reason})"));
    }
    if !message.is_empty() {
        text.push_str(&format!(": {message}"));
    }
    text
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn export(conditions: &[(&str, &str, &str)]) -> Option<Export> {
        let conditions = conditions.iter().map(|(kind, status, reason)| Condition {
            kind: (*kind).to_owned(),
            status: (*status).to_owned(),
            reason: (*reason).to_owned(),
            message: String::new(),
        });
        Some(Export {
            namespace: "shop".parse().unwrap(),
            name: "cart".parse().unwrap(),
            conditions: conditions.collect(),
            host: String::new(),
            created_at: None,
            endpoints: 0,
            ready: 0,
            without_sidecar: 0,
        })
    }

    fn outcome(found: Option<Export>, waited: u64) -> &'static str {
        match progress(&"shop/cart".parse().unwrap(), found, Duration::from_secs(waited)) {
            Ok(Progress::Done(_)) => "done",
            Ok(Progress::Waiting(_)) => "waiting",
            Err(_) => "refused",
        }
    }

    #[test]
    fn an_export_is_waited_for_until_it_is_ready_or_never_will_be() {
        let valid = ("Valid", "True", "Valid");
        let table = [
            (None, 0, "waiting"),
            (export(&[]), 0, "waiting"),
            (export(&[valid]), 0, "waiting"),
            (export(&[valid, ("Ready", "Unknown", "Pending")]), 10, "waiting"),
            (export(&[valid, ("Ready", "False", "Pending")]), 10, "waiting"),
            (export(&[valid, ("Ready", "False", "Failed")]), 0, "refused"),
            (export(&[valid, ("Ready", "True", "Exported")]), 0, "done"),
            (export(&[valid, ("Ready", "True", "Exported"), ("Conflict", "True", "PortConflict")]), 0, "done"),
            (export(&[("Valid", "False", "NoService")]), 0, "waiting"),
            (export(&[("Valid", "False", "NoService")]), 3, "refused"),
            (export(&[("Valid", "False", "InvalidServiceType")]), 0, "refused"),
        ];
        for (found, waited, expected) in table {
            assert_eq!(outcome(found.clone(), waited), expected, "{found:?} after {waited} s");
        }
    }
}
