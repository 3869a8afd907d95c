//! From the membership root to the publish keys.

use std::time::SystemTime;

use federation::delegation::{Delegation, HostPattern, NamespaceSet};
use federation::{ClusterName, FederationDomain};
use prost::Message as _;

use super::{Grant, MAX_DELEGATED, MAX_GRANTS, MemberError, VerifiedMember};
use crate::convert::{ConvertError, at_most, shown};
use crate::record::v1::{self as wire, Signed};
use crate::signing::{PublicKey, Purpose};
use crate::unix;

/// The membership root's word inside a token or a member, verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedDelegation {
    /// The federation.
    pub federation: FederationDomain,
    /// Who may become a member.
    pub cluster: ClusterName,
    /// The membership's generation.
    pub generation: u64,
    /// The token's public key.
    pub token: PublicKey,
    /// When the token can no longer be used.
    pub expires: SystemTime,
    namespaces: NamespaceSet,
    address_ranges: Vec<ipnet::IpNet>,
    host_names: Vec<HostPattern>,
}

/// Verifies a membership under the root's public key. `now` is given where a token is turned into a membership; later
/// it is `None`, since a membership outlives its token.
///
/// # Errors
/// [`MemberError`] names the first part that does not hold.
pub fn verify_member(
    root: &PublicKey,
    federation: &FederationDomain,
    member: &wire::Member,
    now: Option<SystemTime>,
) -> Result<VerifiedMember, MemberError> {
    let delegation = member.delegation.as_ref().ok_or(MemberError::Missing("delegation"))?;
    let delegation = verify_delegation(root, delegation)?;
    if delegation.federation != *federation {
        return Err(MemberError::Federation { part: "delegation", found: delegation.federation.to_string() });
    }
    if now.is_some_and(|now| now >= delegation.expires) {
        return Err(MemberError::Expired);
    }
    at_most("grants", &member.grants, MAX_GRANTS)?;
    let (grants, joined) = verify_grants(&delegation, &member.grants)?;
    Ok(VerifiedMember {
        federation: delegation.federation,
        cluster: delegation.cluster,
        generation: delegation.generation,
        delegation: Delegation {
            namespaces: delegation.namespaces,
            address_ranges: delegation.address_ranges,
            host_names: delegation.host_names,
            joined,
        },
        token: delegation.token,
        expires: delegation.expires,
        grants,
    })
}

/// Verifies the delegation of a token under the root's public key.
///
/// # Errors
/// [`MemberError`] says what does not hold.
pub fn verify_delegation(root: &PublicKey, signed: &Signed) -> Result<VerifiedDelegation, MemberError> {
    const PART: &str = "delegation";
    if !root.verifies(Purpose::Delegation, signed) {
        return Err(MemberError::Signature(PART));
    }
    let delegation = wire::Delegation::decode(signed.message.as_ref()).map_err(|_| MemberError::Decode(PART))?;
    let within = |error: ConvertError| error.within(PART);
    let name = |field: &'static str, error| within(ConvertError::new(field, error));
    Ok(VerifiedDelegation {
        federation: delegation.federation.parse().map_err(|error| name("federation", error))?,
        cluster: delegation.cluster.parse().map_err(|error| name("cluster", error))?,
        generation: delegation.generation,
        token: PublicKey::from_bytes(&delegation.token_public_key)
            .map_err(|source| MemberError::Key { part: PART, source })?,
        expires: unix::from_milliseconds(delegation.expires_at_ms),
        namespaces: namespaces(&delegation.namespaces).map_err(within)?,
        address_ranges: address_ranges(&delegation.address_ranges).map_err(within)?,
        host_names: host_names(&delegation.host_names).map_err(within)?,
    })
}

fn namespaces(texts: &[String]) -> Result<NamespaceSet, ConvertError> {
    at_most("namespaces", texts, MAX_DELEGATED)?;
    if texts.iter().any(|text| text == "*") {
        return Ok(NamespaceSet::All);
    }
    let parse = |text: &String| text.parse().map_err(|error| ConvertError::new("namespaces", error));
    texts.iter().map(parse).collect::<Result<_, _>>().map(NamespaceSet::Some)
}

fn address_ranges(texts: &[String]) -> Result<Vec<ipnet::IpNet>, ConvertError> {
    at_most("address_ranges", texts, MAX_DELEGATED)?;
    let problem = |text: &String| ConvertError::new("address_ranges", format!("{} is no CIDR range", shown(text)));
    texts.iter().map(|text| text.parse().map_err(|_| problem(text))).collect()
}

fn host_names(texts: &[String]) -> Result<Vec<HostPattern>, ConvertError> {
    at_most("host_names", texts, MAX_DELEGATED)?;
    let check = |text: &String| {
        let host = text.strip_prefix("*.").unwrap_or(text).to_ascii_lowercase();
        crate::convert::object_name("host_names", host).map(|_| HostPattern::new(text))
    };
    texts.iter().map(check).collect()
}

/// The publish keys, oldest first, and when the member joined.
fn verify_grants(delegation: &VerifiedDelegation, grants: &[Signed]) -> Result<(Vec<Grant>, SystemTime), MemberError> {
    let mut keys: Vec<Grant> = Vec::with_capacity(grants.len());
    let mut joined = None;
    for (index, signed) in grants.iter().enumerate() {
        let signer = keys.last().map_or(delegation.token, |grant| grant.key);
        if !signer.verifies(Purpose::PublishKeyGrant, signed) {
            return Err(MemberError::Signature("grant"));
        }
        let grant = wire::PublishKeyGrant::decode(signed.message.as_ref()).map_err(|_| MemberError::Decode("grant"))?;
        if grant.federation != delegation.federation.as_str() {
            return Err(MemberError::Federation { part: "grant", found: shown(&grant.federation) });
        }
        if grant.cluster != delegation.cluster.as_str() || grant.generation != delegation.generation {
            return Err(MemberError::Grant(index));
        }
        let follows = keys.last().map_or(grant.after_sequence == 0, |before| grant.after_sequence > before.after);
        if !follows {
            return Err(MemberError::AfterSequence(index));
        }
        let key = PublicKey::from_bytes(&grant.publish_public_key)
            .map_err(|source| MemberError::Key { part: "grant", source })?;
        keys.push(Grant { key, after: grant.after_sequence });
        joined.get_or_insert(unix::from_milliseconds(grant.joined_at_ms));
    }
    Ok((keys, joined.ok_or(MemberError::Missing("grants"))?))
}
