//! The server name: nothing panics, and what is accepted has one spelling.

#![no_main]

use federation::sni::Sni;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(name) = text.parse::<Sni>() else { return };
    let spelled = name.to_string();
    let lower = text.to_ascii_lowercase();
    assert_eq!(spelled, lower.strip_suffix('.').unwrap_or(&lower), "a name has one spelling, but for the root's dot");
    assert_eq!(spelled.parse(), Ok(name));
});
