//! The federation's keys, and who owns them.
//!
//! | key | owner |
//! | --- | --- |
//! | `members/<cluster>`, `departures/<cluster>`, `bundles/<trust domain>`, `quarantine`, `tokens/<hash>` | trust-bundle |
//! | `audit/<number>`, `audit-head`, `watchers/<replica>/<watch>` (lease), `authority/…` | trust-bundle |
//! | `exports/<namespace>/<service>/<cluster>`, `slices/…`, `gateways/<cluster>`, `heads/<cluster>`, `epochs/<cluster>`, `alive/<cluster>`, `collected` | federator |
//!
//! The parts are DNS names and hashes, so no part can hold a `/`; the functions take parsed names and do not check again.

/// Before every `members/<cluster>`.
pub const MEMBERS: &str = "members/";
/// Before every `exports/<namespace>/<service>/<cluster>`.
pub const EXPORTS: &str = "exports/";
/// Before every `slices/<namespace>/<service>/<cluster>/<slice>`.
pub const SLICES: &str = "slices/";
/// Before every `heads/<cluster>`.
pub const HEADS: &str = "heads/";
/// Before every `epochs/<cluster>`.
pub const EPOCHS: &str = "epochs/";
/// The key of the revision up to which the federator has deleted records that nobody needs any more.
pub const COLLECTED: &str = "collected";
/// Before every `gateways/<cluster>`.
pub const GATEWAYS: &str = "gateways/";
/// Before every `alive/<cluster>`.
pub const ALIVE: &str = "alive/";
/// Before every `bundles/<trust domain>`.
pub const BUNDLES: &str = "bundles/";
/// The key of the deny-list.
pub const QUARANTINE: &str = "quarantine";
/// Before every `tokens/<hash>`.
pub const TOKENS: &str = "tokens/";
/// Before every `departures/<cluster>`.
pub const DEPARTURES: &str = "departures/";
/// Before every `audit/<number>`.
pub const AUDIT: &str = "audit/";
/// The key that says where the audit record ends.
pub const AUDIT_HEAD: &str = "audit-head";
/// Before every `watchers/<replica>/<watch>`.
pub const WATCHERS: &str = "watchers/";
/// The key that says how the federation's own authority stands.
pub const AUTHORITY_STATE: &str = "authority/state";
/// The key that says how far the rotation of that authority is.
pub const AUTHORITY_STATUS: &str = "authority/status";
/// The key of what an operator wants of that authority.
pub const AUTHORITY_WISH: &str = "authority/wish";
/// The key that lives with the replica that drives that authority's rotation.
pub const AUTHORITY_DRIVER: &str = "authority/driver";

/// The key of a member cluster.
pub fn member(cluster: &str) -> String {
    format!("{MEMBERS}{cluster}")
}

/// The key of one cluster's export of a service.
pub fn export(namespace: &str, service: &str, cluster: &str) -> String {
    format!("{EXPORTS}{namespace}/{service}/{cluster}")
}

/// The prefix of a namespace's exports.
pub fn exports_of_namespace(namespace: &str) -> String {
    format!("{EXPORTS}{namespace}/")
}

/// The prefix of a service's exports, one for each cluster that exports it.
pub fn exports_of_service(namespace: &str, service: &str) -> String {
    format!("{EXPORTS}{namespace}/{service}/")
}

/// The key of one slice of a cluster's headless service.
pub fn slice(namespace: &str, service: &str, cluster: &str, slice: &str) -> String {
    format!("{SLICES}{namespace}/{service}/{cluster}/{slice}")
}

/// The key of what a cluster says its live records are.
pub fn heads(cluster: &str) -> String {
    format!("{HEADS}{cluster}")
}

/// The key of the epoch that fences a cluster's older publishing sessions.
pub fn epoch(cluster: &str) -> String {
    format!("{EPOCHS}{cluster}")
}

/// The key of a cluster's gateways.
pub fn gateway(cluster: &str) -> String {
    format!("{GATEWAYS}{cluster}")
}

/// The key that lives as long as a cluster's session.
pub fn alive(cluster: &str) -> String {
    format!("{ALIVE}{cluster}")
}

/// The key of a trust domain's bundle.
pub fn bundle(trust_domain: &str) -> String {
    format!("{BUNDLES}{trust_domain}")
}

/// The key of a join token, by the hash of its secret.
pub fn token(hash: &str) -> String {
    format!("{TOKENS}{hash}")
}

/// The key by which a member left.
pub fn departure(cluster: &str) -> String {
    format!("{DEPARTURES}{cluster}")
}

/// The key of an entry of the audit record; keys are ordered as their numbers are.
pub fn audit(number: u64) -> String {
    format!("{AUDIT}{number:020}")
}

/// The key of one watch at a replica of trust-bundle.
pub fn watcher(replica: &str, watch: u64) -> String {
    format!("{WATCHERS}{replica}/{watch:016x}")
}

/// What an export's key says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportKey<'a> {
    /// The service's namespace.
    pub namespace: &'a str,
    /// The service's name.
    pub service: &'a str,
    /// The exporting cluster.
    pub cluster: &'a str,
}

/// The parts of an `exports/…` key; `None` for any other key.
pub fn parse_export(key: &str) -> Option<ExportKey<'_>> {
    let mut parts = key.strip_prefix(EXPORTS)?.split('/');
    let parsed = ExportKey { namespace: parts.next()?, service: parts.next()?, cluster: parts.next()? };
    let whole = parts.next().is_none();
    let filled = [parsed.namespace, parsed.service, parsed.cluster].iter().all(|part| !part.is_empty());
    (whole && filled).then_some(parsed)
}

/// The one part of a key below `prefix` (one of [`MEMBERS`], [`GATEWAYS`], [`ALIVE`], [`BUNDLES`], [`TOKENS`]); `None`
/// for any other key.
pub fn name_below<'a>(prefix: &str, key: &'a str) -> Option<&'a str> {
    key.strip_prefix(prefix).filter(|name| !name.is_empty() && !name.contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_keys_parse_back() {
        let key = export("shop", "cart", "east");
        assert_eq!(key, "exports/shop/cart/east");
        assert_eq!(parse_export(&key), Some(ExportKey { namespace: "shop", service: "cart", cluster: "east" }));
        assert!(key.starts_with(&exports_of_service("shop", "cart")));
        assert!(key.starts_with(&exports_of_namespace("shop")));
        for (prefix, key) in [
            (MEMBERS, member("east")),
            (GATEWAYS, gateway("east")),
            (ALIVE, alive("east")),
            (BUNDLES, bundle("east")),
            (TOKENS, token("east")),
        ] {
            assert_eq!(name_below(prefix, &key), Some("east"), "{key}");
        }
    }

    #[test]
    fn other_keys_do_not_parse() {
        for key in ["exports/shop/cart", "exports/shop/cart/east/x", "exports//cart/east", "members/east", ""] {
            assert_eq!(parse_export(key), None, "{key}");
        }
        for key in ["members/", "members/a/b", "alive/a"] {
            assert_eq!(name_below(MEMBERS, key), None, "{key}");
        }
    }

    #[test]
    fn a_prefix_does_not_reach_into_a_longer_name() {
        assert!(!export("shop", "cart-2", "east").starts_with(&exports_of_service("shop", "cart")));
        assert!(!export("shop-2", "cart", "east").starts_with(&exports_of_namespace("shop")));
    }
}
