//! The bundle parser: what it accepts is within its bounds, holds authorities only, and reads back as itself.

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use spiffe_identity::{Bundle, BundleSet, DEFAULT_REFRESH_HINT, MAX_AUTHORITIES, TrustDomain, check_authority};

fuzz_target!(|data: &[u8]| {
    let Ok(east) = "east.mesh.example".parse::<TrustDomain>() else { return };
    let Ok(bundle) = Bundle::from_jwks(east.clone(), data) else { return };
    assert!(bundle.x509_authorities.len() <= MAX_AUTHORITIES);
    for root in &bundle.x509_authorities {
        assert_eq!(check_authority(root, &east), Ok(()));
    }
    if let Some(hint) = bundle.refresh_hint {
        assert!(hint >= Duration::from_secs(15) && hint <= Duration::from_secs(3600));
    }
    let again = Bundle::from_jwks(east, bundle.to_jwks().as_bytes());
    let spelled_out = Bundle { refresh_hint: Some(bundle.refresh_hint.unwrap_or(DEFAULT_REFRESH_HINT)), ..bundle.clone() };
    assert_eq!(again, Ok(spelled_out));
    let mut set = BundleSet::new();
    if set.offer(bundle).is_ok() {
        let stored = serde_json::to_string(&set).unwrap_or_default();
        assert!(serde_json::from_str::<BundleSet>(&stored).is_ok(), "what was accepted is read back");
    }
});
