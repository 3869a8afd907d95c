//! What must hold in every world.

use std::fmt;

/// The checks, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// A session writes its own cluster's records only, under its cluster's signature.
    NoCrossClusterWrite,
    /// Only the newest session that asked to publish writes.
    Fenced,
    /// Neither the store nor a receiver goes back to an older word on a key, but by its owner's heads, newer than what they
    /// take back.
    NoResurrection,
    /// Nobody lets go of an export that its owner still exports.
    NoLostExport,
    /// Whoever has lost its lease is suspected, and nobody else.
    Suspicion,
    /// Who is quarantined writes nothing from the moment a replica knows, and has no session there.
    CutOff,
    /// Of an evicted membership nothing is left.
    Evicted,
    /// Within a session revisions, and a key's positions, never go back.
    MonotonicReads,
    /// No queue, and no set of records, outgrows its bound.
    BoundedMemory,
    /// When the faults end, everybody soon holds what everybody exports, and nothing else.
    Convergence,
}

/// A check that failed.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    pub(crate) check: Check,
    pub(crate) text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}: {}", self.check, self.text)
    }
}
