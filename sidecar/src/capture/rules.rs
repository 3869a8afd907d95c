//! The rules, as text for `nft -f`.

use std::collections::HashSet;
use std::fmt::{Display, Write};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::capture::{StrictCapture, Wanted};
use crate::config::CaptureConfig;
use crate::inbound::policy::StrictPorts;

/// Family and name of the table.
pub(super) const TABLE: &str = "inet isthmus";

/// Removes the table, which need not be there: adding one that exists changes nothing.
pub(super) const REMOVE: &str = "add table inet isthmus\ndelete table inet isthmus\n";

/// The set of strict ports.
pub(super) const STRICT: &str = "strict";

/// The sets of local services' addresses, by family.
pub(super) const LOCAL: [&str; 2] = ["local4", "local6"];

/// The whole table, in place of the one that is there.
pub(super) fn install(wanted: &Wanted<'_>) -> String {
    let config = wanted.config;
    let (ipv4, ipv6) = by_family(&config.ranges);
    let (excluded_ipv4, excluded_ipv6) = by_family(&config.excluded_ranges);
    let mut spare = String::new();
    rule(&mut spare, "meta skuid", &config.excluded_users, "return");
    rule(&mut spare, "ip daddr", &excluded_ipv4, "return");
    rule(&mut spare, "ip6 daddr", &excluded_ipv6, "return");
    rule(&mut spare, "meta l4proto { tcp, udp } th dport", &config.excluded_ports, "return");
    let mut redirect = String::new();
    if let Some(port) = wanted.dns_port {
        let to = format!("redirect to :{port}");
        let (resolvers4, resolvers6): (Vec<IpAddr>, Vec<IpAddr>) =
            wanted.resolvers.iter().partition(|address| address.is_ipv4());
        for protocol in ["udp", "tcp"] {
            rule(&mut redirect, &format!("{protocol} dport 53 ip daddr"), &resolvers4, &to);
            rule(&mut redirect, &format!("{protocol} dport 53 ip6 daddr"), &resolvers6, &to);
        }
    }
    let to = format!("redirect to :{}", wanted.outbound_port);
    rule(&mut redirect, "meta l4proto tcp ip daddr", &ipv4, &to);
    rule(&mut redirect, "meta l4proto tcp ip6 daddr", &ipv6, &to);
    let mut local = String::new();
    for ((set, kind), known) in LOCAL.iter().zip(["ipv4_addr", "ipv6_addr"]).zip(&wanted.local) {
        let elements = known.as_ref().map(|known| format!(" elements = {{ {known} }}")).unwrap_or_default();
        // Writing to a string does not fail.
        let _ = writeln!(local, "\tset {set} {{\n\t\ttype {kind};{elements}\n\t}}");
    }
    for (family, set) in ["ip", "ip6"].iter().zip(LOCAL) {
        let _ = writeln!(redirect, "\t\tmeta l4proto tcp {family} daddr @{set} {to}");
    }
    let mut refuse = String::new();
    rule(&mut refuse, "meta l4proto != tcp ip daddr", &ipv4, "reject with icmpx type port-unreachable");
    rule(&mut refuse, "meta l4proto != tcp ip6 daddr", &ipv6, "reject with icmpx type port-unreachable");
    let inbound = wanted.strict.as_ref().map(|strict| inbound(config, strict)).unwrap_or_default();
    format!(
        "{REMOVE}table {TABLE} {{\n{local}\
         \tchain capture {{\n\t\ttype nat hook output priority -100; policy accept;\n{spare}{redirect}\t}}\n\
         \tchain refuse {{\n\t\ttype filter hook output priority 0; policy accept;\n{spare}{refuse}\t}}\n\
         {inbound}}}\n"
    )
}

/// Plaintext to strict ports. What was connected before a port became strict is reset; what comes from the machine itself, the
/// sidecar's own connections to the application among it, does not pass here.
fn inbound(config: &CaptureConfig, strict: &StrictCapture) -> String {
    let (probes4, probes6) = by_family(&config.probe_sources);
    let mut ports: Vec<u16> = strict.own_ports.iter().chain(&config.excluded_ports).copied().collect();
    ports.sort_unstable();
    ports.dedup();
    let mut spare = String::new();
    rule(&mut spare, "ip saddr", &probes4, "return");
    rule(&mut spare, "ip6 saddr", &probes6, "return");
    rule(&mut spare, "tcp dport", &ports, "return");
    let elements = strict.known.as_ref().map(|known| format!("\t\telements = {{ {known} }}\n")).unwrap_or_default();
    let port = strict.port;
    format!(
        "\tset {STRICT} {{\n\t\ttype inet_service; flags interval;\n{elements}\t}}\n\
         \tchain inbound {{\n\t\ttype nat hook prerouting priority -100; policy accept;\n{spare}\
         \t\ttcp dport @{STRICT} redirect to :{port}\n\t}}\n\
         \tchain connected {{\n\t\ttype filter hook input priority 0; policy accept;\n\
         \t\tiifname \"lo\" return\n{spare}\
         \t\tct direction original tcp dport @{STRICT} reject with tcp reset\n\t}}\n"
    )
}

/// Replaces the addresses of local services, in one transaction.
pub(super) fn local(addresses: &HashSet<IpAddr>) -> String {
    let (ipv4, ipv6): (Vec<&IpAddr>, Vec<&IpAddr>) = addresses.iter().partition(|address| address.is_ipv4());
    let mut script = String::new();
    for (set, mut addresses) in LOCAL.into_iter().zip([ipv4, ipv6]) {
        addresses.sort_unstable();
        // Writing to a string does not fail.
        let _ = writeln!(script, "flush set {TABLE} {set}");
        if !addresses.is_empty() {
            let texts: Vec<String> = addresses.into_iter().map(ToString::to_string).collect();
            let _ = writeln!(script, "add element {TABLE} {set} {{ {} }}", texts.join(", "));
        }
    }
    script
}

/// Replaces the strict ports, in one transaction.
pub(super) fn strict(ports: &StrictPorts) -> String {
    let elements = match ports {
        StrictPorts::All => "1-65535".to_owned(),
        StrictPorts::These(ports) => ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    let flush = format!("flush set {TABLE} {STRICT}\n");
    if elements.is_empty() { flush } else { format!("{flush}add element {TABLE} {STRICT} {{ {elements} }}\n") }
}

/// One rule with a set of values; none without values.
fn rule(chain: &mut String, matching: &str, values: &[impl Display], action: &str) {
    if values.is_empty() {
        return;
    }
    let values: Vec<String> = values.iter().map(ToString::to_string).collect();
    // Writing to a string does not fail.
    let _ = writeln!(chain, "\t\t{matching} {{ {} }} {action}", values.join(", "));
}

/// Ranges of each family, those within others left out: a set's intervals may not overlap.
fn by_family(ranges: &[IpNet]) -> (Vec<IpNet>, Vec<IpNet>) {
    IpNet::aggregate(&ranges.to_vec()).into_iter().partition(|range| matches!(range, IpNet::V4(_)))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn the_table_names_what_is_captured_and_what_is_left_alone() {
        let config = CaptureConfig {
            ranges: vec![
                "241.0.0.0/8".parse().unwrap(),
                "fd00:241::/64".parse().unwrap(),
                "241.7.0.0/16".parse().unwrap(),
            ],
            excluded_ranges: vec!["241.9.0.0/16".parse().unwrap()],
            excluded_ports: vec![22, 9090],
            excluded_users: vec![1337],
            probe_sources: vec![],
        };
        let resolvers = vec!["10.0.0.53".parse().unwrap(), "fd00::53".parse().unwrap()];
        let local = [Some("10.96.0.7".to_owned()), None];
        let text = install(&Wanted {
            config: &config,
            outbound_port: 15001,
            dns_port: Some(15053),
            resolvers,
            strict: None,
            local,
        });
        let expected = "add table inet isthmus
delete table inet isthmus
table inet isthmus {
\tset local4 {
\t\ttype ipv4_addr; elements = { 10.96.0.7 }
\t}
\tset local6 {
\t\ttype ipv6_addr;
\t}
\tchain capture {
\t\ttype nat hook output priority -100; policy accept;
\t\tmeta skuid { 1337 } return
\t\tip daddr { 241.9.0.0/16 } return
\t\tmeta l4proto { tcp, udp } th dport { 22, 9090 } return
\t\tudp dport 53 ip daddr { 10.0.0.53 } redirect to :15053
\t\tudp dport 53 ip6 daddr { fd00::53 } redirect to :15053
\t\ttcp dport 53 ip daddr { 10.0.0.53 } redirect to :15053
\t\ttcp dport 53 ip6 daddr { fd00::53 } redirect to :15053
\t\tmeta l4proto tcp ip daddr { 241.0.0.0/8 } redirect to :15001
\t\tmeta l4proto tcp ip6 daddr { fd00:241::/64 } redirect to :15001
\t\tmeta l4proto tcp ip daddr @local4 redirect to :15001
\t\tmeta l4proto tcp ip6 daddr @local6 redirect to :15001
\t}
\tchain refuse {
\t\ttype filter hook output priority 0; policy accept;
\t\tmeta skuid { 1337 } return
\t\tip daddr { 241.9.0.0/16 } return
\t\tmeta l4proto { tcp, udp } th dport { 22, 9090 } return
\t\tmeta l4proto != tcp ip daddr { 241.0.0.0/8 } reject with icmpx type port-unreachable
\t\tmeta l4proto != tcp ip6 daddr { fd00:241::/64 } reject with icmpx type port-unreachable
\t}
}
";
        assert_eq!(text, expected);
    }

    #[test]
    fn nothing_is_said_of_what_is_not_asked_for() {
        let config = CaptureConfig::default();
        let text = install(&Wanted {
            config: &config,
            outbound_port: 15001,
            dns_port: None,
            resolvers: vec![],
            strict: None,
            local: [None, None],
        });
        assert!(!text.contains("ip6 daddr {") && !text.contains("dport") && !text.contains("{  }"), "{text}");
    }

    #[test]
    fn strict_ports_are_captured_but_not_from_where_probes_come_nor_at_the_sidecars_own_ports() {
        let probe_sources = vec!["10.0.0.1/32".parse().unwrap()];
        let config = CaptureConfig { probe_sources, excluded_ports: vec![22], ..CaptureConfig::default() };
        let strict = StrictCapture { port: 15006, own_ports: vec![15006, 15008], known: Some("80, 443".to_owned()) };
        let text = inbound(&config, &strict);
        let expected = "\tset strict {
\t\ttype inet_service; flags interval;
\t\telements = { 80, 443 }
\t}
\tchain inbound {
\t\ttype nat hook prerouting priority -100; policy accept;
\t\tip saddr { 10.0.0.1/32 } return
\t\ttcp dport { 22, 15006, 15008 } return
\t\ttcp dport @strict redirect to :15006
\t}
\tchain connected {
\t\ttype filter hook input priority 0; policy accept;
\t\tiifname \"lo\" return
\t\tip saddr { 10.0.0.1/32 } return
\t\ttcp dport { 22, 15006, 15008 } return
\t\tct direction original tcp dport @strict reject with tcp reset
\t}
";
        assert_eq!(text, expected);
    }

    #[test]
    fn the_addresses_of_local_services_are_replaced_as_a_whole() {
        let addresses = ["10.96.0.9", "10.96.0.7", "fd00:96::7"].map(|text| text.parse().unwrap());
        let expected = "flush set inet isthmus local4
add element inet isthmus local4 { 10.96.0.7, 10.96.0.9 }
flush set inet isthmus local6
add element inet isthmus local6 { fd00:96::7 }
";
        assert_eq!(local(&addresses.into()), expected);
        assert!(!local(&HashSet::new()).contains("add"));
    }

    #[test]
    fn the_strict_ports_are_replaced_as_a_whole() {
        let these = StrictPorts::These([443, 80].into());
        assert_eq!(
            super::strict(&these),
            "flush set inet isthmus strict\nadd element inet isthmus strict { 80, 443 }\n"
        );
        assert_eq!(super::strict(&StrictPorts::These([].into())), "flush set inet isthmus strict\n");
        assert!(super::strict(&StrictPorts::All).contains("{ 1-65535 }"));
    }
}
