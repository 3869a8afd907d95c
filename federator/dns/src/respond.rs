//! A packet in, a packet out: the protocol around the zone, pure.
//!
//! Questions for addresses, nearly all there are, are answered from encoded records without an allocation ([`plain`]);
//! everything else goes through hickory. Both ways give the same answers.

mod plain;

use std::{iter, net::SocketAddr};

use hickory_proto::{
    ProtoError,
    op::{Edns, Header, HeaderCounts, MessageType, Metadata, OpCode, ResponseCode},
    rr::{DNSClass, LowerName, RData, Record, RecordType},
    serialize::binary::{BinDecodable, BinDecoder, BinEncodable, BinEncoder},
};
use hickory_server::{net::xfer::Protocol, server::Request, zone_handler::MessageResponseBuilder};
use prometheus_client::encoding::EncodeLabelValue;

use crate::{
    metrics::Transport,
    zone::{Answer, Finding, Zone},
};

/// Largest UDP response, in bytes: fits every path without fragments (DNS flag day 2020).
const MAX_UDP_PAYLOAD: u16 = 1232;

/// Largest UDP response to a query without EDNS (RFC 1035, section 4.2.1).
const PLAIN_UDP_PAYLOAD: u16 = 512;

/// SRV records whose targets' addresses are added; beyond, clients ask for those they choose.
const ADDITIONAL_TARGETS: usize = 16;

/// How a query was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Kind {
    /// With records.
    Records,
    /// The name exists without such records.
    NoData,
    /// The name does not exist.
    NoSuchName,
    /// Unknown before the first sync.
    NotSynced,
    /// Outside the zone, or nothing that this server does.
    Refused,
    /// The query could not be read.
    Malformed,
    /// An operation other than a query.
    NotImplemented,
    /// An EDNS version above 0.
    BadVersion,
    /// The answer could not be written.
    Failed,
}

impl Kind {
    /// In the order of their numbers.
    pub(crate) const ALL: [Self; 9] = [
        Self::Records,
        Self::NoData,
        Self::NoSuchName,
        Self::NotSynced,
        Self::Refused,
        Self::Malformed,
        Self::NotImplemented,
        Self::BadVersion,
        Self::Failed,
    ];
}

impl From<Finding> for Kind {
    fn from(finding: Finding) -> Self {
        match finding {
            Finding::Records => Self::Records,
            Finding::NoData => Self::NoData,
            Finding::NoSuchName => Self::NoSuchName,
            Finding::NotSynced => Self::NotSynced,
            Finding::OutsideZone => Self::Refused,
        }
    }
}

/// Answers a packet from a zone. The response replaces what is in `out`; `None` if there is to be none, because the
/// packet is too short for a header, or a response itself.
pub fn respond(
    zone: &Zone,
    packet: &[u8],
    source: SocketAddr,
    transport: Transport,
    out: &mut Vec<u8>,
) -> Option<Kind> {
    if let Some(kind) = plain::respond(zone, packet, transport, out) {
        return Some(kind);
    }
    respond_fully(zone, packet, source, transport, out)
}

/// [`respond`] for every question.
fn respond_fully(
    zone: &Zone,
    packet: &[u8],
    source: SocketAddr,
    transport: Transport,
    out: &mut Vec<u8>,
) -> Option<Kind> {
    out.clear();
    let header = Header::read(&mut BinDecoder::new(packet)).ok()?;
    if header.metadata.message_type != MessageType::Query {
        return None;
    }
    if header.metadata.op_code != OpCode::Query {
        return bare(&header.metadata, ResponseCode::NotImp, Kind::NotImplemented, out);
    }
    // Checked before the rest is read, since room is made for as many questions as the header claims.
    if header.counts.queries != 1 {
        return bare(&header.metadata, ResponseCode::FormErr, Kind::Malformed, out);
    }
    let protocol = match transport {
        Transport::Udp => Protocol::Udp,
        Transport::Tcp => Protocol::Tcp,
    };
    let Ok(request) = Request::from_bytes(packet.to_vec(), source, protocol) else {
        return bare(&header.metadata, ResponseCode::FormErr, Kind::Malformed, out);
    };
    match write(zone, &request, transport, out) {
        Ok(kind) => Some(kind),
        Err(error) => {
            tracing::debug!(%error, src.addr = %source, "could not write a DNS response");
            bare(&header.metadata, ResponseCode::ServFail, Kind::Failed, out)
        }
    }
}

/// A response of a header alone.
fn bare(request: &Metadata, code: ResponseCode, kind: Kind, out: &mut Vec<u8>) -> Option<Kind> {
    out.clear();
    let mut metadata = Metadata::response_from_request(request);
    metadata.response_code = code;
    let header = Header { metadata, counts: HeaderCounts::default() };
    header.emit(&mut BinEncoder::new(out)).ok().map(|()| kind)
}

/// What goes into a response besides the question.
struct Response<'a> {
    metadata: Metadata,
    answer: Answer<'a>,
    edns: Option<Edns>,
    limit: u16,
}

fn write(zone: &Zone, request: &Request, transport: Transport, out: &mut Vec<u8>) -> Result<Kind, ProtoError> {
    let mut metadata = Metadata::response_from_request(&request.metadata);
    let edns = request.edns.as_ref().map(|asked| {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP_PAYLOAD).set_version(0).set_dnssec_ok(asked.flags().dnssec_ok);
        edns
    });
    let limit = limit(transport, request.edns.as_ref().map(Edns::max_payload));
    let nothing = Answer { finding: Finding::OutsideZone, records: &[], soa: None };
    let (kind, answer) = match request.queries.queries() {
        _ if request.version() > 0 => {
            metadata.response_code = ResponseCode::BADVERS;
            (Kind::BadVersion, nothing)
        }
        [query] if query.query_class() == DNSClass::IN && !is_transfer(query.query_type()) => {
            let answer = zone.answer(query.name(), query.query_type());
            metadata.response_code = answer.finding.response_code();
            metadata.authoritative = !matches!(answer.finding, Finding::OutsideZone | Finding::NotSynced);
            (answer.finding.into(), answer)
        }
        _ => {
            metadata.response_code = ResponseCode::Refused;
            (Kind::Refused, nothing)
        }
    };
    let response = Response { metadata, answer, edns, limit };
    let additionals: Vec<&Record> = additionals(zone, answer.records).collect();
    if encode(request, &response, answer.records, &additionals, out)? && !additionals.is_empty() {
        encode(request, &response, answer.records, &[], out)?;
    }
    if transport == Transport::Udp && is_truncated(out) {
        // Part of a record set is of no use, and would leave no room for EDNS: say only that it did not fit.
        metadata.truncation = true;
        encode(request, &Response { metadata, ..response }, &[], &[], out)?;
    }
    Ok(kind)
}

/// Bytes that a response may have; `payload` is what EDNS says.
fn limit(transport: Transport, payload: Option<u16>) -> u16 {
    match (transport, payload) {
        (Transport::Tcp, _) => u16::MAX,
        (Transport::Udp, Some(payload)) => payload.clamp(PLAIN_UDP_PAYLOAD, MAX_UDP_PAYLOAD),
        (Transport::Udp, None) => PLAIN_UDP_PAYLOAD,
    }
}

const fn is_transfer(record_type: RecordType) -> bool {
    matches!(record_type, RecordType::AXFR | RecordType::IXFR)
}

/// The addresses of the targets of a few SRV records.
fn additionals<'a>(zone: &'a Zone, records: &'a [Record]) -> impl Iterator<Item = &'a Record> {
    let records = if records.len() <= ADDITIONAL_TARGETS { records } else { &[] };
    let mut targets: Vec<LowerName> = records
        .iter()
        .filter_map(|record| match &record.data {
            RData::SRV(srv) => Some(LowerName::from(&srv.target)),
            _ => None,
        })
        .collect();
    targets.sort_unstable();
    targets.dedup();
    targets.into_iter().flat_map(move |target| {
        [RecordType::A, RecordType::AAAA].into_iter().flat_map(move |of| zone.answer(&target, of).records)
    })
}

/// Writes a response; whether something did not fit.
fn encode(
    request: &Request,
    response: &Response<'_>,
    records: &[Record],
    additionals: &[&Record],
    out: &mut Vec<u8>,
) -> Result<bool, ProtoError> {
    out.clear();
    // Another record first for each query: many clients take the first and never look at the others.
    let start = usize::from(response.metadata.id).checked_rem(records.len()).unwrap_or(0);
    let (before, after) = records.split_at(start);
    let mut message = MessageResponseBuilder::from_message_request(request).build(
        response.metadata,
        after.iter().chain(before),
        iter::empty(),
        response.answer.soa,
        additionals.iter().copied(),
    );
    if let Some(edns) = &response.edns {
        message.set_edns(edns);
    }
    let mut encoder = BinEncoder::new(out);
    encoder.set_max_size(response.limit);
    Ok(message.destructive_emit(&mut encoder)?.truncation)
}

/// The TC bit of an encoded message.
fn is_truncated(message: &[u8]) -> bool {
    message.get(2).is_some_and(|flags| flags & 0b10 != 0)
}
