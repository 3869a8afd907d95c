//! The questions that clients ask: one name, one type, EDNS or none.

use hickory_proto::rr::{DNSClass, RecordType};

use super::{Kind, MAX_UDP_PAYLOAD, is_transfer, limit};
use crate::{
    metrics::Transport,
    zone::{Asked, Finding, Zone},
};

/// Bytes of a header (RFC 1035, section 4.1.1).
const HEADER: usize = 12;

/// QR, the operation, and TC, none of which a plain query has.
const NOT_PLAIN: u8 = 0b1111_1010;

/// In a response: it is one, from the zone's owner, cut off; and what is copied from the query.
const RESPONSE: u8 = 0x80;
const AUTHORITATIVE: u8 = 0x04;
const TRUNCATED: u8 = 0x02;
const RECURSION_DESIRED: u8 = 0x01;
const CHECKING_DISABLED: u8 = 0x10;

/// Bytes of an OPT record without options, the DO bit in its last but three (RFC 6891, section 6.1.2; RFC 3225).
const OPT: usize = 11;
const DNSSEC_OK: u8 = 0x80;

/// A pointer to the question's name.
const TO_QUESTION: [u8; 2] = [0xc0, HEADER as u8];

/// What EDNS says in a query.
struct Edns {
    payload: u16,
    dnssec_ok: bool,
}

/// A query that was read.
struct Plain<'a> {
    name: Asked,
    record_type: RecordType,
    /// Name, type and class, as they came.
    question: &'a [u8],
    edns: Option<Edns>,
}

impl<'a> Plain<'a> {
    fn read(packet: &'a [u8]) -> Option<Self> {
        let header = packet.get(..HEADER)?;
        let [.., additionals] = header.first_chunk::<HEADER>()?;
        if header[2] & NOT_PLAIN != 0 || header[4..11] != [0, 1, 0, 0, 0, 0, 0] {
            return None;
        }
        let name = Asked::read(&packet[HEADER..])?;
        let end = HEADER + name.len() + 4;
        let question = packet.get(HEADER..end)?;
        let fixed = question.last_chunk::<4>()?;
        let record_type = RecordType::from(u16::from_be_bytes([fixed[0], fixed[1]]));
        if fixed[2..] != u16::from(DNSClass::IN).to_be_bytes()
            || is_transfer(record_type)
            || matches!(record_type, RecordType::ANY | RecordType::OPT)
        {
            return None;
        }
        let edns = match (*additionals, &packet[end..]) {
            (0, []) => None,
            (1, rest) => Some(Edns::read(rest)?),
            _ => return None,
        };
        Some(Self { name, record_type, question, edns })
    }
}

impl Edns {
    /// Version 0 and no options: what has more is read with more care.
    fn read(record: &[u8]) -> Option<Self> {
        let [0, 0, 41, high, low, _, 0, flags, _, 0, 0] = *record.as_array::<OPT>()? else { return None };
        Some(Self { payload: u16::from_be_bytes([high, low]), dnssec_ok: flags & DNSSEC_OK != 0 })
    }

    fn write(&self, out: &mut Vec<u8>) {
        let [high, low] = MAX_UDP_PAYLOAD.to_be_bytes();
        let flags = if self.dnssec_ok { DNSSEC_OK } else { 0 };
        out.extend([0, 0, 41, high, low, 0, 0, flags, 0, 0, 0]);
    }
}

/// Answers a plain query for addresses; `None`, with nothing of use in `out`, for every other packet.
pub(super) fn respond(zone: &Zone, packet: &[u8], transport: Transport, out: &mut Vec<u8>) -> Option<Kind> {
    let query = Plain::read(packet)?;
    let (finding, addresses) = zone.addresses(&query.name, query.record_type)?;
    out.clear();
    out.extend_from_slice(&packet[..HEADER]);
    out.extend_from_slice(query.question);
    let edns_size = query.edns.as_ref().map_or(0, |_| OPT);
    let room = usize::from(limit(transport, query.edns.as_ref().map(|edns| edns.payload))) - edns_size;
    let (mut answers, mut authorities, mut truncated) = (0, 0, false);
    match (finding, addresses) {
        (Finding::Records, Some(addresses)) => {
            // Another record first for each query, as in the other way.
            let id = usize::from(u16::from_be_bytes([packet[0], packet[1]]));
            let start = id.checked_rem(addresses.count()).unwrap_or(0);
            let (before, after) = (addresses.records().take(start), addresses.records().skip(start));
            for record in after.chain(before) {
                out.extend(TO_QUESTION);
                out.extend_from_slice(record);
            }
            answers = addresses.count();
            if out.len() > room || answers > usize::from(u16::MAX) {
                (answers, truncated) = (0, true);
                out.truncate(HEADER + query.question.len());
            }
        }
        (Finding::NoData | Finding::NoSuchName, _) => {
            // The origin is the end of the name, and its pointer has 14 bits: names are short enough.
            let origin = u16::try_from(HEADER + query.name.origin()).ok()?;
            out.extend((0xc000 | origin).to_be_bytes());
            out.extend_from_slice(zone.encoded_soa());
            authorities = 1;
        }
        _ => {}
    }
    if let Some(edns) = &query.edns {
        edns.write(out);
    }
    let authoritative = !matches!(finding, Finding::OutsideZone | Finding::NotSynced);
    out[2] = RESPONSE
        | (packet[2] & RECURSION_DESIRED)
        | if authoritative { AUTHORITATIVE } else { 0 }
        | if truncated { TRUNCATED } else { 0 };
    out[3] = (packet[3] & CHECKING_DISABLED) | finding.response_code().low();
    out[6..8].copy_from_slice(&u16::try_from(answers).unwrap_or_default().to_be_bytes());
    out[9] = authorities;
    Some(finding.into())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::net::{IpAddr, SocketAddr};

    use hickory_proto::{
        op::{Edns as FullEdns, Message, MessageType, OpCode, Query},
        rr::Name,
    };
    use proptest::prelude::*;

    use super::*;
    use crate::zone::{HeadlessEndpoint, ZoneContents, ZoneKind, ZonePort, ZoneService};

    fn zone(synced: bool, endpoints: u8) -> Zone {
        let endpoint = |number: u8| HeadlessEndpoint {
            cluster: "east".to_owned(),
            hostname: Some(format!("db-{number}")),
            addresses: vec![IpAddr::from([10, 0, 0, number]), IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, number.into()])],
            ready: true,
        };
        let service = |name: &str, kind| ZoneService {
            namespace: "shop".parse().unwrap(),
            name: name.parse().unwrap(),
            kind,
            ports: vec![ZonePort { name: "http".to_owned(), protocol: federation::Protocol::Tcp, port: 80 }],
        };
        Zone::build(&ZoneContents {
            services: vec![
                service("web", ZoneKind::ClusterSetIp { vips: vec![IpAddr::from([241, 0, 0, 1])] }),
                service("db", ZoneKind::Headless { endpoints: (0..endpoints).map(endpoint).collect() }),
            ],
            namespaces: vec!["empty".parse().unwrap()],
            serial: 7,
            synced,
            ..ZoneContents::default()
        })
    }

    fn names() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec![
            "web.shop.svc.clusterset.local.",
            "wEb.SHOP.svc.ClusterSet.local.",
            "db.shop.svc.clusterset.local.",
            "db-3.east.db.shop.svc.clusterset.local.",
            "east.db.shop.svc.clusterset.local.",
            "_http._tcp.web.shop.svc.clusterset.local.",
            "_tcp.web.shop.svc.clusterset.local.",
            "missing.shop.svc.clusterset.local.",
            "empty.svc.clusterset.local.",
            "dns-version.clusterset.local.",
            "clusterset.local.",
            "xclusterset.local.",
            "web.shop.svc.cluster.local.",
            "local.",
            ".",
        ])
    }

    fn types() -> impl Strategy<Value = RecordType> {
        use RecordType::{A, AAAA, ANY, AXFR, MX, NS, SOA, SRV, TXT};
        prop::sample::select(vec![A, AAAA, SRV, SOA, NS, TXT, MX, ANY, AXFR])
    }

    proptest! {
        #[test]
        fn both_ways_answer_alike(
            name in names(), record_type in types(), id in any::<u16>(), flags in any::<(bool, bool, bool, bool)>(),
            payload in prop::option::of(any::<u16>()), endpoints in 0..120_u8, synced in any::<bool>(),
        ) {
            let (recursion, checking, dnssec, tcp) = flags;
            let mut query = Message::new(id, MessageType::Query, OpCode::Query);
            query.metadata.recursion_desired = recursion;
            query.metadata.checking_disabled = checking;
            query.add_query(Query::query(name.parse::<Name>().unwrap(), record_type));
            if let Some(payload) = payload {
                let mut edns = FullEdns::new();
                edns.set_max_payload(payload).set_version(0).set_dnssec_ok(dnssec);
                query.set_edns(edns);
            }
            let transport = if tcp { Transport::Tcp } else { Transport::Udp };
            let zone = zone(synced, endpoints);
            let (packet, source) = (query.to_vec().unwrap(), SocketAddr::from(([127, 0, 0, 1], 5353)));
            let (mut plain, mut full) = (Vec::new(), Vec::new());
            let fully = super::super::respond_fully(&zone, &packet, source, transport, &mut full);
            match respond(&zone, &packet, transport, &mut plain) {
                Some(kind) => {
                    prop_assert_eq!(Some(kind), fully);
                    prop_assert_eq!(Message::from_vec(&plain).unwrap(), Message::from_vec(&full).unwrap());
                    prop_assert!(plain.len() <= usize::from(limit(transport, payload)));
                }
                None => {
                    let short = name.matches('.').count() < 2 || name == ".";
                    let address = matches!(record_type, RecordType::A | RecordType::AAAA);
                    prop_assert!(short || !address, "an address is asked for and not found at once");
                }
            }
        }
    }
}
