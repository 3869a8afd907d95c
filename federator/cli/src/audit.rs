//! `isthmus audit`: who did what, with the record's chain checked here.

use federation_api::audit::Chain;
use federation_api::client::trust::operations;
use federation_api::trust::v1::AuditEntry;
use jiff::Timestamp;
use serde::Serialize;

use crate::arguments::Audit;
use crate::failure::Failure;
use crate::operator::OperatorDirectory;
use crate::output::{Output, Tone, Toned, note};
use crate::time::{at_millisecond, to_the_second};

/// `isthmus audit -o json`
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    number: u64,
    time: Option<Timestamp>,
    who: String,
    action: String,
    subject: String,
    detail: String,
    /// Why it was not done; absent when it was.
    refused: Option<String>,
}

impl From<AuditEntry> for Listed {
    fn from(entry: AuditEntry) -> Self {
        let AuditEntry { number, time_ms, who, action, subject, detail, refused, previous: _ } = entry;
        let refused = Some(refused).filter(|reason| !reason.is_empty());
        Self { number, time: at_millisecond(time_ms), who, action, subject, detail, refused }
    }
}

/// Whether the record is whole.
pub(crate) async fn audit(arguments: &Audit, output: &Output) -> Result<bool, Failure> {
    let directory = OperatorDirectory::open(&arguments.service.operator)?;
    let (mut chain, mut broken, mut entries) = (Chain::default(), Vec::new(), Vec::new());
    let read = operations::read_audit(directory.channel()?, arguments.after, |entry| {
        broken.extend(chain.follow(&entry).err());
        entries.push(Listed::from(entry));
    });
    read.await.map_err(|status| directory.failed(status))?;
    output.show(&entries, |output| {
        let row = |entry: &Listed| {
            let (outcome, tone) = match &entry.refused {
                Some(reason) => (format!("refused: {reason}"), Tone::Bad),
                None => (entry.detail.clone(), Tone::Plain),
            };
            let time = entry.time.map(|time| to_the_second(time).to_string());
            vec![
                entry.number.to_string().into(),
                Toned::or_dash(time.unwrap_or_default()),
                Toned::or_dash(entry.who.clone()),
                entry.action.clone().into(),
                Toned::or_dash(entry.subject.clone()),
                Toned::new(outcome, tone),
            ]
        };
        output.table(&["NUMBER", "TIME", "WHO", "ACTION", "SUBJECT", "DETAIL"], entries.iter().map(row).collect())
    })?;
    for error in &broken {
        note(&format!("warning: the record is not whole: {error}"));
    }
    Ok(broken.is_empty())
}
