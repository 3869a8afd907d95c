//! `isthmus members`: the federation's members as the trust-bundle has them, each verified here.

use federation_api::client::trust::operations;
use federation_api::trust::v1::MemberState;
use federation_api::verify::verify_member;
use jiff::Timestamp;
use serde::Serialize;

use crate::arguments::AtService;
use crate::failure::Failure;
use crate::operator::OperatorDirectory;
use crate::output::{Output, Tone, Toned};
use crate::time::to_the_second;

/// `isthmus members -o json`
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    cluster: String,
    generation: u64,
    joined: Option<Timestamp>,
    /// How many publish keys it has had.
    publish_keys: usize,
    /// "connected", "away", "quarantined", or "forged" for one that the membership root did not make.
    state: &'static str,
    has_bundle: bool,
    watchers: usize,
    proxies: u32,
    pending_proxies: u32,
}

/// Whether all of them are members indeed.
pub(crate) async fn members(arguments: &AtService, output: &Output) -> Result<bool, Failure> {
    let directory = OperatorDirectory::open(&arguments.operator)?;
    let members = operations::list_members(directory.channel()?).await.map_err(|status| directory.failed(status))?;
    let root = directory.membership_root_public()?;
    let describe = |state: &MemberState| {
        let connected: Vec<_> = state.watchers.iter().filter(|watcher| watcher.connected).collect();
        let member = state.member.as_ref();
        let verified = member.and_then(|it| verify_member(&root, &directory.file.federation, it, None).ok());
        let standing = match (&verified, state.quarantined, connected.is_empty()) {
            (None, ..) => "forged",
            (_, true, _) => "quarantined",
            (_, _, true) => "away",
            _ => "connected",
        };
        Listed {
            cluster: verified.as_ref().map_or_else(|| "?".to_owned(), |it| it.cluster().to_string()),
            generation: verified.as_ref().map_or(0, |it| it.generation()),
            joined: verified.as_ref().and_then(|it| Timestamp::try_from(it.joined()).ok()),
            publish_keys: verified.as_ref().map_or(0, |it| it.publish_keys()),
            state: standing,
            has_bundle: state.bundle.is_some(),
            watchers: connected.len(),
            proxies: connected.iter().map(|watcher| watcher.connected_count).sum(),
            pending_proxies: connected.iter().map(|watcher| watcher.pending_count).sum(),
        }
    };
    let members: Vec<_> = members.iter().map(describe).collect();
    output.show(&members, |output| {
        let row = |member: &Listed| {
            let tone = match member.state {
                "connected" => Tone::Good,
                "away" => Tone::Doubtful,
                _ => Tone::Bad,
            };
            let joined = member.joined.map(|time| to_the_second(time).to_string());
            vec![
                member.cluster.clone().into(),
                Toned::new(member.state, tone),
                member.generation.to_string().into(),
                Toned::or_dash(joined.unwrap_or_default()),
                member.publish_keys.to_string().into(),
                (if member.has_bundle { "yes" } else { "no" }).into(),
                format!("{}/{}", member.proxies.saturating_sub(member.pending_proxies), member.proxies).into(),
            ]
        };
        let header = ["CLUSTER", "STATE", "GENERATION", "JOINED", "KEYS", "BUNDLE", "PROXIES UP TO DATE"];
        output.table(&header, members.iter().map(row).collect())
    })?;
    Ok(members.iter().all(|member| member.state != "forged"))
}
