//! Who becomes a member, and which bundle a member may put: verify first, then one transaction.

use std::time::SystemTime;

use federation::{ClusterName, FederationDomain, RecordKey};
use federation_api::payload::Payload;
use federation_api::record::v1::{Member, Signed};
use federation_api::signing::PublicKey;
use federation_api::verify::{VerifiedMember, VerifiedStatement, verify_member};
use federation_store::{Committed, Entry, Revision, Store, StoreError, Transaction, layout};
use prost::Message;
use spiffe_identity::{Bundle, TrustDomain};

/// Why a join or a bundle was refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// A signature or the chain does not hold.
    #[error("{0}")]
    Unverified(String),
    /// The token was used before.
    #[error("the token of cluster {0} was used already: ask the operator for a new one")]
    TokenUsed(ClusterName),
    /// A membership of the same or a higher generation exists.
    #[error(
        "cluster {cluster} has a membership of generation {current}, the token's is {offered}: ask the operator for a new one"
    )]
    OldGeneration {
        /// The cluster.
        cluster: ClusterName,
        /// The generation of the membership that stands.
        current: u64,
        /// The generation of the token.
        offered: u64,
    },
    /// What was sent is not what the call takes.
    #[error("{field}: {reason}")]
    Malformed {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A newer bundle is stored.
    #[error("bundle of {trust_domain}: {reason}")]
    StaleBundle {
        /// Whose.
        trust_domain: String,
        /// Which number did not grow.
        reason: String,
    },
    /// The caller is no member.
    #[error("cluster {0} is no member")]
    NoMember(ClusterName),
    /// The store failed; nothing is known to have changed.
    #[error("the store failed")]
    Store(#[from] StoreError),
}

/// Decides joins and bundles of one federation.
#[derive(Debug, Clone)]
pub struct Membership<S> {
    store: S,
    federation: FederationDomain,
    root: PublicKey,
}

impl<S: Store> Membership<S> {
    /// Decides for `federation`, whose members are made under `root`.
    pub fn new(store: S, federation: FederationDomain, root: PublicKey) -> Self {
        Self { store, federation, root }
    }

    /// Makes the joiner a member: its token is used up, its membership and its first bundle are there, all or nothing.
    ///
    /// # Errors
    /// [`Refused`] says what does not hold; then nothing has changed.
    pub async fn join(&self, member: &Member, bundle: &Signed, now: SystemTime) -> Result<VerifiedMember, Refused> {
        let unverified = |error: &dyn std::fmt::Display| Refused::Unverified(error.to_string());
        let verified =
            verify_member(&self.root, &self.federation, member, Some(now)).map_err(|error| unverified(&error))?;
        let statement = verified.verify(bundle).map_err(|error| unverified(&error))?;
        let bundle_of = self.check_bundle(&verified, &statement)?;
        let keys = [
            layout::token(&hex(verified.token().as_bytes())),
            layout::member(verified.cluster().as_str()),
            layout::bundle(bundle_of.trust_domain.as_str()),
        ];
        loop {
            let (used, current, old_bundle) =
                (self.store.get(&keys[0]).await?, self.store.get(&keys[1]).await?, self.store.get(&keys[2]).await?);
            if used.is_some() {
                return Err(Refused::TokenUsed(verified.cluster().clone()));
            }
            self.check_generation(&verified, current.as_ref())?;
            let transaction = Transaction::new()
                .expecting_absent(&keys[0])
                .expecting(&keys[1], revision(current.as_ref()))
                .expecting(&keys[2], revision(old_bundle.as_ref()))
                .put(&keys[0], verified.cluster().as_str().as_bytes().to_vec())
                .put(&keys[1], member.encode_to_vec())
                .put(&keys[2], bundle.encode_to_vec());
            // Somebody else changed one of them in between: look again.
            if let Committed::Done(_) = self.store.commit(transaction).await? {
                return Ok(verified);
            }
        }
    }

    fn check_generation(&self, offered: &VerifiedMember, current: Option<&Entry>) -> Result<(), Refused> {
        let Some(current) = current else { return Ok(()) };
        // What was stored was verified; if it no longer is, a new token replaces it.
        let Ok(current) = self.decode_member(current) else { return Ok(()) };
        if current.generation() < offered.generation() {
            return Ok(());
        }
        Err(Refused::OldGeneration {
            cluster: offered.cluster().clone(),
            current: current.generation(),
            offered: offered.generation(),
        })
    }

    fn decode_member(&self, entry: &Entry) -> Result<VerifiedMember, Refused> {
        let member = Member::decode(entry.value.clone())
            .map_err(|error| Refused::Malformed { field: "member", reason: error.to_string() })?;
        verify_member(&self.root, &self.federation, &member, None)
            .map_err(|error| Refused::Unverified(error.to_string()))
    }

    /// Puts the caller's own bundle.
    ///
    /// # Errors
    /// [`Refused::NoMember`], [`Refused::Unverified`] when it is not the caller's own record, [`Refused::StaleBundle`] when
    /// its sequence or its `spiffe_sequence` did not grow.
    pub async fn publish_bundle(&self, cluster: &ClusterName, bundle: &Signed) -> Result<Revision, Refused> {
        let member = self.store.get(&layout::member(cluster.as_str())).await?;
        let member = self.decode_member(&member.ok_or_else(|| Refused::NoMember(cluster.clone()))?)?;
        let statement = member.verify(bundle).map_err(|error| Refused::Unverified(error.to_string()))?;
        let offered = self.check_bundle(&member, &statement)?;
        let key = layout::bundle(offered.trust_domain.as_str());
        loop {
            let current = self.store.get(&key).await?;
            if let Some(stored) = &current {
                if stored.value == bundle.encode_to_vec() {
                    return Ok(stored.modified);
                }
                self.check_newer(&member, stored, &statement, &offered)?;
            }
            let transaction =
                Transaction::new().expecting(&key, revision(current.as_ref())).put(&key, bundle.encode_to_vec());
            if let Committed::Done(revision) = self.store.commit(transaction).await? {
                return Ok(revision);
            }
        }
    }

    /// The record must be the bundle of the member's own trust domain, and readable.
    fn check_bundle(&self, member: &VerifiedMember, statement: &VerifiedStatement) -> Result<Bundle, Refused> {
        let malformed = |reason: String| Refused::Malformed { field: "bundle", reason };
        let (RecordKey::Bundle, Payload::Bundle { trust_domain, jwks }) = (&statement.key, &statement.payload) else {
            return Err(malformed(format!("the record is about {:?}, not \"bundle\"", statement.key.to_string())));
        };
        let own = self.federation.trust_domain(member.cluster());
        if *trust_domain != own {
            return Err(malformed(format!("trust domain {trust_domain:?} is not the cluster's own, {own:?}")));
        }
        let own: TrustDomain = own.parse().map_err(|error| malformed(format!("trust domain: {error}")))?;
        Bundle::from_jwks(own, jwks).map_err(|error| malformed(error.to_string()))
    }

    fn check_newer(
        &self,
        member: &VerifiedMember,
        stored: &Entry,
        statement: &VerifiedStatement,
        offered: &Bundle,
    ) -> Result<(), Refused> {
        let stale =
            |reason: String| Err(Refused::StaleBundle { trust_domain: offered.trust_domain.to_string(), reason });
        let Ok(signed) = Signed::decode(stored.value.clone()) else { return Ok(()) };
        // A bundle of an older generation no longer verifies: whatever its numbers, it is replaced.
        let Ok(current) = member.verify(&signed) else { return Ok(()) };
        if current.sequence >= statement.sequence {
            return stale(format!("record sequence {} is not above {}", statement.sequence, current.sequence));
        }
        let Ok(known) = self.check_bundle(member, &current) else { return Ok(()) };
        if known.sequence >= offered.sequence {
            return stale(format!("spiffe_sequence {} is not above {}", offered.sequence, known.sequence));
        }
        Ok(())
    }
}

fn revision(entry: Option<&Entry>) -> Revision {
    entry.map_or(0, |entry| entry.modified)
}

/// Lower-case hexadecimal.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
