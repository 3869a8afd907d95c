//! The ID parser: what it accepts obeys every rule of the standard and reads back as itself.

#![no_main]

use libfuzzer_sys::fuzz_target;
use spiffe_identity::{MAX_ID_BYTES, MAX_TRUST_DOMAIN_BYTES, SpiffeId};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(id) = text.parse::<SpiffeId>() else { return };
    assert_eq!(id.to_string(), text, "one spelling for each ID");
    assert!(text.len() <= MAX_ID_BYTES && text.starts_with("spiffe://"));
    let trust_domain = id.trust_domain().as_str();
    assert!((1..=MAX_TRUST_DOMAIN_BYTES).contains(&trust_domain.len()));
    assert!(trust_domain.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte)));
    let segments: Vec<&str> = id.segments().collect();
    for segment in &segments {
        assert!(!matches!(*segment, "" | "." | ".."));
        assert!(segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte)));
    }
    assert_eq!(SpiffeId::from_segments(id.trust_domain(), &segments), Ok(id.clone()));
    assert!(id.as_workload().is_none() || id.role().is_none(), "nobody is both");
});
