//! The checked-in code is what the .proto files say, those of the contract before included, which federators are tested
//! with. `UPDATE=1 cargo test -p federation-api --test generated` rewrites it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Files of a contract, and where their code is; both folders below this crate's.
struct Contract {
    root: &'static str,
    protos: &'static [&'static str],
    code: &'static str,
}

const PRESENT: Contract = Contract {
    root: "proto",
    protos: &[
        "record/v1/record.proto",
        "trust/v1/trust.proto",
        "federation/v1/federation.proto",
        "discovery/v1/discovery.proto",
        "mesh/v1/mesh.proto",
    ],
    code: "src/generated",
};

/// As the session's contract was first written: these files never change.
const PREVIOUS: Contract = Contract {
    root: "../tests/sessions/previous/proto",
    protos: &["record/v1/record.proto", "federation/v1/federation.proto"],
    code: "../tests/sessions/previous/generated",
};

/// Their values must not reach a log through `{:?}`: the crate writes their `Debug` by hand.
const SECRETS: [&str; 2] = [".isthmus.record.v1.JoinToken", ".isthmus.discovery.v1.IssueSvidRequest"];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn generate(contract: &Contract, out: &Path) {
    let mut compiler = protox::Compiler::new([folder(contract.root)]).unwrap();
    let files = compiler.include_source_info(true).include_imports(true).open_files(contract.protos).unwrap();
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

fn check(contract: &Contract) {
    let fresh = tempfile::tempdir().unwrap();
    generate(contract, fresh.path());
    let fresh = read(fresh.path());
    let folder = folder(contract.code);
    if std::env::var_os("UPDATE").is_some() {
        for (name, text) in &fresh {
            fs::write(folder.join(name), text).unwrap();
        }
    }
    let checked_in = read(&folder);
    let names = |files: &BTreeMap<String, String>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&checked_in), names(&fresh), "files of {}", contract.code);
    for (name, text) in &fresh {
        let same = checked_in.get(name) == Some(text);
        assert!(same, "{}/{name} is stale: run this test with UPDATE=1", contract.code);
    }
}

#[test]
fn checked_in_code_is_what_the_proto_files_generate() {
    check(&PRESENT);
}

#[test]
fn the_previous_contracts_code_is_what_its_proto_files_generate() {
    check(&PREVIOUS);
}
