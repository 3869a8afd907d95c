//! The checked-in code is what the .proto files say. `UPDATE=1 cargo test -p federation-api --test generated` rewrites it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const PROTOS: [&str; 5] = [
    "record/v1/record.proto",
    "trust/v1/trust.proto",
    "federation/v1/federation.proto",
    "discovery/v1/discovery.proto",
    "mesh/v1/mesh.proto",
];

/// Their values must not reach a log through `{:?}`: the crate writes their `Debug` by hand.
const SECRETS: [&str; 2] = [".isthmus.record.v1.JoinToken", ".isthmus.discovery.v1.IssueSvidRequest"];

fn generate(out: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let mut compiler = protox::Compiler::new([root]).unwrap();
    let files = compiler.include_source_info(true).include_imports(true).open_files(PROTOS).unwrap();
    tonic_prost_build::configure()
        .out_dir(out)
        .btree_map(".")
        // Envelopes are fanned out to many receivers: sharing one buffer is cheap.
        .bytes(".isthmus.record.v1.Signed")
        .skip_debug(SECRETS)
        .compile_fds(files.file_descriptor_set())
        .unwrap();
}

fn read(folder: &Path) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        files.insert(path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(path).unwrap());
    }
    files
}

#[test]
fn checked_in_code_is_what_the_proto_files_generate() {
    let fresh = tempfile::tempdir().unwrap();
    generate(fresh.path());
    let fresh = read(fresh.path());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/generated");
    if std::env::var_os("UPDATE").is_some() {
        for (name, text) in &fresh {
            fs::write(folder.join(name), text).unwrap();
        }
    }
    let checked_in = read(&folder);
    let names = |files: &BTreeMap<String, String>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&checked_in), names(&fresh), "files of src/generated");
    for (name, text) in &fresh {
        assert!(checked_in.get(name) == Some(text), "src/generated/{name} is stale: run this test with UPDATE=1");
    }
}
