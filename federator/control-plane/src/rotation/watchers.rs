//! Whom a rotation waits for, by names that an operator can find again.

use federation_api::trust::v1::Watcher;

use crate::proxies::{Kind, ProxyStatus};

/// Proxies of another cluster that one line spells out.
const SPELLED_OUT: usize = 3;

/// `cluster/west/control-plane`, with its replica where that is known.
pub(crate) fn name(watcher: &Watcher) -> String {
    let path = watcher.identity.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')).map(|(_, path)| path);
    let path = path.unwrap_or(&watcher.identity);
    if watcher.replica.is_empty() { path.to_owned() } else { format!("{path} ({})", watcher.replica) }
}

/// `sidecar cart-0`
pub(super) fn proxy_name(proxy: &ProxyStatus) -> String {
    let kind = match proxy.kind {
        Kind::Sidecar => "sidecar",
        Kind::Gateway => "gateway",
    };
    format!("{kind} {}", proxy.name)
}

/// The name with the proxies behind it that it waits for itself.
pub(crate) fn described(wanted: &str, watchers: &[Watcher]) -> String {
    let found = watchers.iter().find(|watcher| watcher.pending_count > 0 && name(watcher) == wanted);
    let Some(watcher) = found else { return wanted.to_owned() };
    let spelled: Vec<_> = watcher.pending_proxies.iter().take(SPELLED_OUT).map(String::as_str).collect();
    let more = (watcher.pending_count as usize).saturating_sub(spelled.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{wanted}: {}{more}", spelled.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watcher_is_named_with_the_proxies_it_waits_for() {
        let mut west =
            Watcher { identity: "spiffe://mesh.example/cluster/west/control-plane".to_owned(), ..Watcher::default() };
        assert_eq!(name(&west), "cluster/west/control-plane");
        west.replica = "a".to_owned();
        let west_name = name(&west);
        assert_eq!(west_name, "cluster/west/control-plane (a)");
        assert_eq!(described(&west_name, &[west.clone()]), west_name);
        west.pending_count = 5;
        west.pending_proxies = vec!["1".to_owned(), "2".to_owned(), "3".to_owned(), "4".to_owned()];
        assert_eq!(described(&west_name, &[west]), format!("{west_name}: 1, 2, 3 and 2 more"));
    }
}
