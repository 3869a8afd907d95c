//! The zone as packets have it: names in lower case, address records without their owners.

use hickory_proto::{
    rr::{LowerName, Name, Record, RecordType},
    serialize::binary::{BinEncodable, BinEncoder, NameEncoding},
};

use super::{Finding, Node, Zone};

/// Longest name, in bytes (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 255;

/// `clusterset.local.`
const ORIGIN: &[u8] = b"\x0aclusterset\x05local\0";

/// A name of a packet, in lower case: it is its own key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct WireName(Box<[u8]>);

impl WireName {
    /// `None` for names that are not fully qualified: nobody asks for these.
    pub(super) fn of(name: &LowerName) -> Option<Self> {
        let bytes = name.to_bytes().ok()?;
        name.is_fqdn().then_some(Self(bytes.into()))
    }
}

impl std::borrow::Borrow<[u8]> for WireName {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

/// A name that was read from a packet.
pub(crate) struct Asked {
    lower: [u8; MAX_NAME],
    length: usize,
    /// Where the last two labels begin, which are the origin's if the name is in the zone.
    origin: usize,
}

impl Asked {
    /// Reads an uncompressed name that begins a slice; `None` if it is none, or has no two labels.
    pub(crate) fn read(from: &[u8]) -> Option<Self> {
        let mut lower = [0; MAX_NAME];
        let (mut at, mut last, mut origin) = (0, 0, 0);
        loop {
            let length = usize::from(*from.get(at)?);
            let end = at + 1 + length;
            // Two high bits make a pointer, which no question needs.
            if length > 63 || end > MAX_NAME {
                return None;
            }
            if length == 0 {
                lower[at] = 0;
                return (origin < last).then_some(Self { lower, length: end, origin });
            }
            // Lengths are below the letters, so they are lowered with them.
            lower[at..end].copy_from_slice(from.get(at..end)?);
            lower[at..end].make_ascii_lowercase();
            (origin, last, at) = (last, at, end);
        }
    }

    /// Bytes that the name takes.
    pub(crate) const fn len(&self) -> usize {
        self.length
    }

    /// Where the zone's own name begins in a name of the zone.
    pub(crate) const fn origin(&self) -> usize {
        self.origin
    }

    fn bytes(&self) -> &[u8] {
        &self.lower[..self.length]
    }
}

/// A, or AAAA, records of one name, in order, without the owner: all of one length.
#[derive(Debug, Clone)]
pub(crate) struct Addresses {
    encoded: Vec<u8>,
    count: usize,
}

impl Addresses {
    pub(crate) const fn count(&self) -> usize {
        self.count
    }

    /// Each record from type to data.
    pub(crate) fn records(&self) -> impl Iterator<Item = &[u8]> + Clone {
        self.encoded.chunks_exact(self.encoded.len() / self.count.max(1))
    }
}

/// A record from its type to its data.
pub(super) fn encode(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_name_encoding(NameEncoding::Uncompressed);
    // Under the root's name, which is one byte.
    let _ = Record::from_rdata(Name::root(), record.ttl, record.data.clone()).emit(&mut encoder);
    bytes.drain(..1);
    bytes
}

impl Node {
    /// With its addresses encoded.
    pub(super) fn encoded(mut self) -> Self {
        let sets = self.sets.iter().filter(|(of, _)| matches!(of, RecordType::A | RecordType::AAAA));
        let encoded = sets.map(|(of, records)| {
            let addresses = Addresses { encoded: records.iter().flat_map(encode).collect(), count: records.len() };
            (*of, addresses)
        });
        self.addresses = encoded.collect();
        self
    }
}

impl Zone {
    /// The addresses at a name. `None` for what is to be looked up with [`Zone::answer`]: records of other types.
    pub(crate) fn addresses(&self, name: &Asked, record_type: RecordType) -> Option<(Finding, Option<&Addresses>)> {
        let Some(node) = self.names.get(name.bytes()) else {
            return Some((self.unknown(name.bytes()[name.origin..] == *ORIGIN), None));
        };
        if let Some((_, addresses)) = node.addresses.iter().find(|(of, _)| *of == record_type) {
            return Some((Finding::Records, Some(addresses)));
        }
        let other = node.sets.iter().any(|(of, _)| *of == record_type);
        (!other).then_some((Finding::NoData, None))
    }

    /// The SOA record from type to data, for negative answers.
    pub(crate) fn encoded_soa(&self) -> &[u8] {
        &self.encoded_soa
    }
}
