//! What a record says, parsed.

use federation::{Export, Gateway, HeadlessEndpoint, RecordKey, ServiceId};

use crate::convert::{ConvertError, MAX_GATEWAYS, each, slice_from_wire, slice_to_wire};
use crate::record::v1 as wire;
use crate::record::v1::statement::Payload as Wire;
use crate::records::Head;

/// A slice of a headless service's endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The service.
    pub service: ServiceId,
    /// The slice's name, an object name.
    pub name: String,
    /// Its endpoints.
    pub endpoints: Vec<HeadlessEndpoint>,
}

/// A record's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// An exported service.
    Export(Box<Export>),
    /// Endpoints of a headless service.
    Slice(Slice),
    /// The cluster's gateways.
    Gateways(Vec<Gateway>),
    /// The trust bundle of the cluster's trust domain.
    Bundle {
        /// The trust domain.
        trust_domain: String,
        /// A SPIFFE bundle: a JWKS document.
        jwks: Vec<u8>,
    },
    /// What the cluster's live records are.
    Heads(Vec<Head>),
    /// The key has no value any more.
    Withdrawal,
    /// Of a later version: kept and relayed, its meaning ignored.
    Unknown,
}

impl Payload {
    /// Whether a record of this key may carry it.
    #[must_use]
    pub fn agrees_with(&self, key: &RecordKey) -> bool {
        match (key, self) {
            (RecordKey::Heads | RecordKey::Bundle, Self::Withdrawal) => false,
            // Nothing else can be said of a membership, and what a later version says of it must not pass for nothing.
            (RecordKey::Membership, payload) => *payload == Self::Withdrawal,
            (_, Self::Withdrawal | Self::Unknown)
            | (RecordKey::Gateways, Self::Gateways(_))
            | (RecordKey::Bundle, Self::Bundle { .. })
            | (RecordKey::Heads, Self::Heads(_)) => true,
            (RecordKey::Export(service), Self::Export(export)) => export.service == *service,
            (RecordKey::Slice(service, name), Self::Slice(slice)) => slice.service == *service && slice.name == *name,
            _ => false,
        }
    }

    /// Its kind's name, for messages and metrics.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Export(_) => "export",
            Self::Slice(_) => "slice",
            Self::Gateways(_) => "gateways",
            Self::Bundle { .. } => "bundle",
            Self::Heads(_) => "heads",
            Self::Withdrawal => "withdrawal",
            Self::Unknown => "unknown",
        }
    }

    pub(crate) fn to_wire(&self) -> Option<Wire> {
        Some(match self {
            Self::Export(export) => Wire::Export(export.as_ref().into()),
            Self::Slice(slice) => Wire::Slice(slice_to_wire(slice)),
            Self::Gateways(gateways) => {
                Wire::Gateways(wire::Gateways { gateways: gateways.iter().map(Into::into).collect() })
            }
            Self::Bundle { trust_domain, jwks } => {
                Wire::Bundle(wire::Bundle { trust_domain: trust_domain.clone(), jwks: jwks.clone() })
            }
            Self::Heads(heads) => Wire::Heads(wire::Heads { heads: heads.iter().map(Into::into).collect() }),
            Self::Withdrawal => Wire::Withdrawal(wire::Withdrawal {}),
            Self::Unknown => return None,
        })
    }

    pub(crate) fn from_wire(payload: Option<Wire>) -> Result<Self, ConvertError> {
        Ok(match payload {
            Some(Wire::Export(export)) => {
                Self::Export(Box::new(Export::try_from(export).map_err(|error| error.within("export"))?))
            }
            Some(Wire::Slice(slice)) => Self::Slice(slice_from_wire(slice).map_err(|error| error.within("slice"))?),
            Some(Wire::Gateways(gateways)) => Self::Gateways(unique_gateways(gateways.gateways)?),
            Some(Wire::Bundle(bundle)) => Self::Bundle { trust_domain: bundle.trust_domain, jwks: bundle.jwks },
            Some(Wire::Heads(heads)) => Self::Heads(Head::list_from_wire(heads)?),
            Some(Wire::Withdrawal(wire::Withdrawal {})) => Self::Withdrawal,
            None => Self::Unknown,
        })
    }
}

fn unique_gateways(gateways: Vec<wire::Gateway>) -> Result<Vec<Gateway>, ConvertError> {
    let gateways = each("gateways.gateways", gateways, MAX_GATEWAYS, Gateway::try_from)?;
    let mut names: Vec<_> = gateways.iter().map(|gateway| &gateway.name).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(ConvertError::new("gateways.gateways", format!("{} is there twice", pair[0]))),
        None => Ok(gateways),
    }
}
