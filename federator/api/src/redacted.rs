//! `Debug` of the messages that carry secrets.

use std::fmt;

use crate::discovery::v1::IssueSvidRequest;
use crate::record::v1::JoinToken;

impl fmt::Debug for JoinToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("JoinToken")
            .field("trust_bundle_addresses", &self.trust_bundle_addresses)
            .field("federator_addresses", &self.federator_addresses)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for IssueSvidRequest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("IssueSvidRequest").field("csr_bytes", &self.csr.len()).finish_non_exhaustive()
    }
}
