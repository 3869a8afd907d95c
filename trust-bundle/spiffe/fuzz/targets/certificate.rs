//! The certificate checks: no bytes panic them, nothing is both a leaf and an authority, and nothing may follow.

#![no_main]

use libfuzzer_sys::fuzz_target;
use spiffe_identity::{TrustDomain, check_authority, check_leaf, pem, validity};

fuzz_target!(|data: &[u8]| {
    let _ = pem::certificates_from_pem(data);
    let _ = pem::private_key_from_pem(data);
    let Ok(east) = "east.mesh.example".parse::<TrustDomain>() else { return };
    let (leaf, authority) = (check_leaf(data), check_authority(data, &east));
    assert!(leaf.is_err() || authority.is_err(), "one certificate in both roles");
    if let Ok(id) = &leaf {
        assert!(!id.path().is_empty());
    }
    if leaf.is_ok() || authority.is_ok() {
        assert!(validity(data).is_ok());
        let longer = [data, &[0]].concat();
        assert!(check_leaf(&longer).is_err() && check_authority(&longer, &east).is_err());
    }
});
