//! The checked-in code of `proto/shop.proto` is what the compiler makes of it. `UPDATE=1` writes it anew.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

#[test]
fn generated_code_is_current() {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let compiled = protox::compile(["shop.proto"], [home.join("proto")]).unwrap();
    let fresh = tempfile::tempdir().unwrap();
    tonic_prost_build::configure().out_dir(fresh.path()).compile_fds(compiled).unwrap();
    let fresh = fs::read_to_string(fresh.path().join("shop.v1.rs")).unwrap();
    let kept = home.join("src/generated/shop.v1.rs");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&kept, &fresh).unwrap();
    }
    assert!(fs::read_to_string(&kept).unwrap() == fresh, "run `UPDATE=1 cargo test -p e2e --test generated`");
}
