//! The parts of a server name, borrowed: what a lookup needs of [`federation::sni::Sni`], without its allocations.

/// `outbound_.<port>_.<subset>_.<host>` in lower case. Cluster and host are not checked, for they are only compared with ones that were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ServerName<'a> {
    pub(crate) port: u16,
    pub(crate) cluster: Option<&'a str>,
    pub(crate) slot: Option<u16>,
    /// Without a trailing dot.
    pub(crate) host: &'a str,
}

impl<'a> ServerName<'a> {
    /// The parts of a name; `None` when it has others.
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let (port, rest) = text.strip_prefix("outbound_.")?.split_once("_.")?;
        let (subset, host) = rest.split_once("_.")?;
        let (cluster, slot) = parse_subset(subset)?;
        let port = parse_decimal(port).filter(|port| *port > 0)?;
        Some(Self { port, cluster, slot, host: host.strip_suffix('.').unwrap_or(host) })
    }
}

fn parse_subset(text: &str) -> Option<(Option<&str>, Option<u16>)> {
    if text.is_empty() {
        return Some((None, None));
    }
    let rest = text.strip_prefix("c-")?;
    match rest.split_once(".e-") {
        None => Some((Some(rest), None)),
        Some((cluster, slot)) => Some((Some(cluster), Some(parse_decimal(slot)?))),
    }
}

/// One spelling per number: no sign, no leading zero.
fn parse_decimal(text: &str) -> Option<u16> {
    let canonical = text == "0" || (!text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit()));
    canonical.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use federation::sni::{Sni, Subset};
    use proptest::prelude::*;

    use super::*;

    fn near_names() -> impl Strategy<Value = String> {
        let port = prop_oneof!["[0-9]{0,6}", "[-+a0]{0,2}[0-9]{1,3}"];
        let subset = prop_oneof!["", "c-[a-z0-9-]{0,8}", "c-[a-z]{1,4}\\.e-[0-9]{0,6}", "[a-z.-]{0,6}"];
        let host = prop_oneof!["[a-z0-9-]{0,5}\\.[a-z0-9-]{0,5}\\.svc\\.clusterset\\.local\\.?", "[a-z._]{0,12}"];
        let prefix = prop_oneof![9 => Just("outbound_."), 1 => Just("outbound.")];
        (prefix, port, subset, host)
            .prop_map(|(prefix, port, subset, host)| format!("{prefix}{port}_.{subset}_.{host}"))
    }

    proptest! {
        /// It accepts whatever the full parser accepts, with the same parts.
        #[test]
        fn it_reads_what_the_full_parser_reads(text in prop_oneof![near_names(), "[ -~]{0,40}"]) {
            if let Ok(full) = text.to_ascii_lowercase().parse::<Sni>() {
                let lower = text.to_ascii_lowercase();
                let name = ServerName::parse(&lower);
                let host = full.host.to_string();
                let (cluster, slot) = match &full.subset {
                    Subset::Any => (None, None),
                    Subset::Cluster(cluster) => (Some(cluster.as_str()), None),
                    Subset::Slot(cluster, slot) => (Some(cluster.as_str()), Some(*slot)),
                };
                prop_assert_eq!(name, Some(ServerName { port: full.port, cluster, slot, host: &host }));
            }
        }
    }
}
