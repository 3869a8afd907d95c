//! What a receiver holds of every trust domain, and which newer bundle may take an older one's place.

use std::collections::{BTreeMap, HashSet};

use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::{AuthorityError, Bundle, MAX_AUTHORITIES, TrustDomain, certificate::parse, check_authority};

/// The most trust domains a set holds, forgotten ones included.
pub const MAX_TRUST_DOMAINS: usize = 1000;

/// The last good bundle of each trust domain with the highest sequence ever accepted: what is kept in memory, and on disk
/// (it is serialisable) so that a restart cannot be used to roll anybody back.
///
/// - A sequence only grows. A lower one is refused, and so is the same one with other roots: somebody speaks with two tongues.
/// - Sequence 0 means that the publisher does not count (the standard allows that). Such bundles replace each other until a
///   first counted one arrives; from then on an uncounted one is a lower one.
/// - 2^64−1 is refused: no bundle could ever follow it.
/// - No public key may be a root's of two trust domains, or the one who holds it could speak for both. Who came first keeps it.
/// - A refused bundle changes nothing: the last good one stays in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Record>", into = "Vec<Record>")]
pub struct BundleSet {
    domains: BTreeMap<TrustDomain, Held>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    /// The last accepted one, and so the one with the highest sequence.
    bundle: Bundle,
    /// The public keys of its roots, as DER.
    keys: HashSet<Vec<u8>>,
    /// Kept only to recognise older ones and other ones of the same sequence.
    forgotten: bool,
}

/// What an accepted bundle changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// The first bundle of its trust domain, or the first since it was forgotten.
    New,
    /// The roots are others than before.
    Changed,
    /// The roots are the same; sequence and refresh hint may be newer.
    Unchanged,
}

/// Why a bundle does not take the place of the one that is held.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OfferError {
    /// An older bundle, from a replay or a restored backup.
    #[error("the bundle of {trust_domain} has sequence {offered}, below {highest}, the highest seen")]
    Older {
        /// Whose bundle it is.
        trust_domain: TrustDomain,
        /// The highest sequence accepted so far.
        highest: u64,
        /// The sequence of the refused bundle.
        offered: u64,
    },
    /// Other roots under a sequence that was seen before.
    #[error("the bundle of {trust_domain} has other roots than the one seen before under the same sequence {sequence}")]
    Equivocation {
        /// Whose bundle it is.
        trust_domain: TrustDomain,
        /// The sequence of both.
        sequence: u64,
    },
    /// The highest number there is.
    #[error("the bundle of {0} has sequence 2^64-1, which no bundle could follow")]
    LastSequence(TrustDomain),
    /// A root's key is already another trust domain's.
    #[error("the bundle of {trust_domain} holds a key that is a root's of {owner}")]
    SharedKey {
        /// Whose bundle is refused.
        trust_domain: TrustDomain,
        /// Whose key it is.
        owner: TrustDomain,
    },
    /// More than [`MAX_AUTHORITIES`] roots.
    #[error("the bundle of {trust_domain} has {roots} roots, more than 16")]
    TooManyAuthorities {
        /// Whose bundle it is.
        trust_domain: TrustDomain,
        /// How many roots.
        roots: usize,
    },
    /// A root may not sign for its trust domain.
    #[error("the bundle of {trust_domain} has an unfit root: {source}")]
    Authority {
        /// Whose bundle it is.
        trust_domain: TrustDomain,
        /// The rule that does not hold.
        source: AuthorityError,
    },
    /// One trust domain more than [`MAX_TRUST_DOMAINS`].
    #[error("there are 1000 trust domains already, and {0} is one more")]
    TooManyTrustDomains(TrustDomain),
}

impl BundleSet {
    /// A set that holds nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a bundle on, or refuses it and stays as it was.
    ///
    /// # Errors
    /// The first rule that does not hold.
    pub fn offer(&mut self, bundle: Bundle) -> Result<Accepted, OfferError> {
        let (accepted, keys) = self.judge(&bundle)?;
        self.domains.insert(bundle.trust_domain.clone(), Held { bundle, keys, forgotten: false });
        Ok(accepted)
    }

    /// What [`offer`](Self::offer) would answer.
    ///
    /// # Errors
    /// As there.
    pub fn check(&self, bundle: &Bundle) -> Result<Accepted, OfferError> {
        self.judge(bundle).map(|(accepted, _)| accepted)
    }

    fn judge(&self, bundle: &Bundle) -> Result<(Accepted, HashSet<Vec<u8>>), OfferError> {
        let trust_domain = &bundle.trust_domain;
        let keys = keys(bundle)?;
        if bundle.sequence == u64::MAX {
            return Err(OfferError::LastSequence(trust_domain.clone()));
        }
        let accepted = match self.domains.get(trust_domain) {
            Some(held) => held.accepts(bundle)?,
            None if self.domains.len() >= MAX_TRUST_DOMAINS => {
                return Err(OfferError::TooManyTrustDomains(trust_domain.clone()));
            }
            None => Accepted::New,
        };
        match self.owner_of_any(&keys, trust_domain) {
            Some(owner) => Err(OfferError::SharedKey { trust_domain: trust_domain.clone(), owner: owner.clone() }),
            None => Ok((accepted, keys)),
        }
    }

    fn owner_of_any(&self, keys: &HashSet<Vec<u8>>, except: &TrustDomain) -> Option<&TrustDomain> {
        let mut others = self.domains.iter().filter(|(name, held)| *name != except && !held.forgotten);
        others.find(|(_, held)| !held.keys.is_disjoint(keys)).map(|(name, _)| name)
    }

    /// Gives a trust domain up. What was last accepted is remembered, so that nothing older comes back in its name.
    pub fn forget(&mut self, trust_domain: &TrustDomain) {
        if let Some(held) = self.domains.get_mut(trust_domain) {
            held.forgotten = true;
        }
    }

    /// Forgets even the highest sequence: an operator's decision, for a publisher that counts from the start again.
    pub fn reset(&mut self, trust_domain: &TrustDomain) {
        self.domains.remove(trust_domain);
    }

    /// The bundle in force for a trust domain.
    pub fn bundle(&self, trust_domain: &TrustDomain) -> Option<&Bundle> {
        self.domains.get(trust_domain).filter(|held| !held.forgotten).map(|held| &held.bundle)
    }

    /// The bundles in force, by the name of their trust domain.
    pub fn bundles(&self) -> impl Iterator<Item = &Bundle> {
        self.domains.values().filter(|held| !held.forgotten).map(|held| &held.bundle)
    }

    /// The highest sequence ever accepted for a trust domain, a forgotten one's included.
    pub fn highest(&self, trust_domain: &TrustDomain) -> Option<u64> {
        self.domains.get(trust_domain).map(|held| held.bundle.sequence)
    }
}

impl Held {
    fn accepts(&self, offered: &Bundle) -> Result<Accepted, OfferError> {
        let trust_domain = offered.trust_domain.clone();
        let (highest, sequence) = (self.bundle.sequence, offered.sequence);
        if sequence < highest {
            return Err(OfferError::Older { trust_domain, highest, offered: sequence });
        }
        let same = same_roots(&self.bundle.x509_authorities, &offered.x509_authorities);
        match (self.forgotten, same) {
            (_, false) if sequence == highest && sequence != 0 => {
                Err(OfferError::Equivocation { trust_domain, sequence })
            }
            (true, _) => Ok(Accepted::New),
            (false, true) => Ok(Accepted::Unchanged),
            (false, false) => Ok(Accepted::Changed),
        }
    }
}

/// Which of `others` has a root with the key of one of a bundle's roots. The bundle's own trust domain is passed over, and
/// so is a bundle with an unfit root.
pub fn owner_of_shared_key<'a>(
    bundle: &Bundle,
    others: impl IntoIterator<Item = &'a Bundle>,
) -> Option<&'a TrustDomain> {
    let own = keys(bundle).ok()?;
    let mut others = others.into_iter().filter(|other| other.trust_domain != bundle.trust_domain);
    let shares = |other: &&Bundle| keys(other).is_ok_and(|keys| !keys.is_disjoint(&own));
    others.find(shares).map(|other| &other.trust_domain)
}

/// The public keys (SubjectPublicKeyInfo, DER) of a bundle's roots; none of a bundle with an unfit root.
pub fn root_keys(bundle: &Bundle) -> HashSet<Vec<u8>> {
    keys(bundle).unwrap_or_default()
}

/// Equal as sets: their order means nothing.
fn same_roots(one: &[CertificateDer<'_>], other: &[CertificateDer<'_>]) -> bool {
    let (one, other): (HashSet<_>, HashSet<_>) = (one.iter().collect(), other.iter().collect());
    one == other
}

/// The roots' public keys. A bundle's fields are public, so each root is checked here again.
fn keys(bundle: &Bundle) -> Result<HashSet<Vec<u8>>, OfferError> {
    let trust_domain = &bundle.trust_domain;
    let roots = bundle.x509_authorities.len();
    if roots > MAX_AUTHORITIES {
        return Err(OfferError::TooManyAuthorities { trust_domain: trust_domain.clone(), roots });
    }
    let key = |der: &CertificateDer<'_>| {
        check_authority(der, trust_domain)?;
        Ok(parse(der)?.public_key().raw.to_vec())
    };
    let refused = |source| OfferError::Authority { trust_domain: trust_domain.clone(), source };
    bundle.x509_authorities.iter().map(|der| key(der).map_err(refused)).collect()
}

/// A trust domain as it is stored.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Record {
    trust_domain: TrustDomain,
    /// The bundle as a JWK Set.
    jwks: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    forgotten: bool,
}

/// Why a stored set cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stored bundle of {trust_domain}: {reason}")]
struct StoredError {
    trust_domain: TrustDomain,
    reason: String,
}

impl From<BundleSet> for Vec<Record> {
    fn from(set: BundleSet) -> Self {
        let record = |(trust_domain, held): (TrustDomain, Held)| Record {
            trust_domain,
            jwks: held.bundle.to_jwks(),
            forgotten: held.forgotten,
        };
        set.domains.into_iter().map(record).collect()
    }
}

impl TryFrom<Vec<Record>> for BundleSet {
    type Error = StoredError;

    /// Judges each bundle anew: a file that somebody changed gains nothing by it.
    fn try_from(records: Vec<Record>) -> Result<Self, StoredError> {
        let mut set = Self::new();
        // What was forgotten owns no key, so it is forgotten again before the next one is judged.
        for Record { trust_domain, jwks, forgotten } in records {
            let wrong = |reason| StoredError { trust_domain: trust_domain.clone(), reason };
            if set.domains.contains_key(&trust_domain) {
                return Err(wrong("occurs twice".into()));
            }
            let bundle = Bundle::from_jwks(trust_domain.clone(), jwks.as_bytes());
            let bundle = bundle.map_err(|error| wrong(error.to_string()))?;
            let keys = keys(&bundle).map_err(|error| wrong(error.to_string()))?;
            if forgotten {
                set.domains.insert(trust_domain, Held { bundle, keys, forgotten });
            } else {
                set.offer(bundle).map_err(|error| wrong(error.to_string()))?;
            }
        }
        Ok(set)
    }
}
