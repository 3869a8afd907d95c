//! The checked-in code of `proto/workload.proto` is what the compiler makes of it: the server's half in the crate, the
//! client's half for these tests.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

#[test]
fn generated_code_is_current() {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let compiler = || {
        let mut compiler = protox::Compiler::new([home.join("proto")]).unwrap();
        compiler.include_source_info(true).open_files(["workload.proto"]).unwrap().file_descriptor_set()
    };
    for (server, file) in
        [(true, "src/workload_api/generated/server.rs"), (false, "tests/workload_api/generated/client.rs")]
    {
        let fresh = tempfile::tempdir().unwrap();
        let mut generator =
            tonic_prost_build::configure().out_dir(fresh.path()).build_server(server).build_client(!server);
        if server {
            // A key must not reach a log through `{:?}`.
            generator = generator.skip_debug([".X509SVID", ".X509SVIDResponse"]);
        }
        generator.compile_fds(compiler()).unwrap();
        let fresh = fs::read_to_string(fresh.path().join("_.rs")).unwrap();
        let kept = home.join(file);
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&kept, &fresh).unwrap();
        }
        assert!(
            fs::read_to_string(&kept).unwrap() == fresh,
            "{file} is stale: run `UPDATE=1 cargo test -p sidecar --test generated`"
        );
    }
}
