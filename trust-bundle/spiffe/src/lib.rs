//! SPIFFE IDs, SVID checks, bundles, pure.
