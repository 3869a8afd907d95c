//! The cluster's own records, and its bundle, which is signed among them and published apart.

use std::time::{Duration, SystemTime};

use federation_api::record::v1::Signed;
use spiffe_identity::Bundle;

use crate::membership::{MembershipError, sign_bundle};

pub use federation_api::publications::{Answer, Publications, Successor};

/// Heads are signed again this often, whether or not something changed: a thousand clusters cost the store one small write
/// in four seconds, and nobody who has them hears of it.
pub(crate) const HEADS_REFRESH: Duration = Duration::from_secs(3600);

/// Signs the own bundle with the next sequence.
///
/// # Errors
/// [`MembershipError`]
pub(crate) fn sign_own_bundle(
    publications: &mut Publications,
    bundle: &Bundle,
    now: SystemTime,
) -> Result<Signed, MembershipError> {
    let (sequence, speaker) = publications.next_sequence(now);
    sign_bundle(speaker, bundle, sequence, now)
}
