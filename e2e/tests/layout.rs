//! The workspace keeps its shape: crates depend one way, and every source file is compiled.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, MetadataCommand, Package, TargetKind};

const PURE: [&str; 3] = ["federation", "balance", "spiffe-identity"];
const PROGRAMS: [&str; 6] = ["trust-bundle", "federator", "control-plane", "east-west-gateway", "sidecar", "isthmus"];

/// Who may depend on whom within the workspace, tests aside. Programs may use any crate of the two lower tiers.
const MIDDLE: [(&str, &[&str]); 8] = [
    ("federation-api", &["federation"]),
    ("federation-store", &["federation-api", "federation"]),
    ("federation-dns", &["federation"]),
    ("federation-resources", &["federation"]),
    ("mesh-tls", &["spiffe-identity"]),
    ("svid-issuer", &["spiffe-identity"]),
    ("relay", &["federation"]),
    ("mesh-runtime", &[]),
];

/// External crates that only these may name.
const RESERVED: [(&str, &[&str]); 4] = [
    ("kube", &["control-plane", "federation-resources", "isthmus", "e2e"]),
    ("etcd-client", &["federation-store"]),
    ("hickory-server", &["federation-dns"]),
    ("redb", &["federation-store"]),
];

/// What a pure crate may never see: runtimes, sockets, files.
const IMPURE: [&str; 7] = ["tokio", "hyper", "tonic", "rustls", "socket2", "rustix", "futures-util"];

fn workspace() -> (PathBuf, Vec<Package>) {
    let metadata =
        MetadataCommand::new().manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).no_deps().exec();
    let metadata = metadata.unwrap();
    (metadata.workspace_root.clone().into(), metadata.packages)
}

fn dependencies(package: &Package) -> BTreeSet<String> {
    let normal = package.dependencies.iter().filter(|dependency| dependency.kind == DependencyKind::Normal);
    normal.map(|dependency| dependency.name.clone()).collect()
}

#[test]
fn crates_depend_one_way() {
    let (_, packages) = workspace();
    let ours: BTreeSet<String> = packages.iter().map(|package| package.name.to_string()).collect();
    let middle: BTreeMap<_, _> = MIDDLE.into_iter().collect();
    let mut wrong = Vec::new();
    for package in &packages {
        let name = package.name.as_str();
        for dependency in dependencies(package).intersection(&ours) {
            let target = dependency.as_str();
            let allowed = match name {
                "e2e" => true,
                _ if PURE.contains(&name) => false,
                _ if PROGRAMS.contains(&name) => PURE.contains(&target) || middle.contains_key(target),
                _ => middle.get(name).is_some_and(|allowed| allowed.contains(&target)),
            };
            if !allowed {
                wrong.push(format!("{name} -> {target}"));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that point the wrong way: {wrong:?}");
    let known: BTreeSet<_> = PURE.into_iter().chain(PROGRAMS).chain(middle.into_keys()).chain(["e2e"]).collect();
    assert_eq!(ours.iter().map(String::as_str).collect::<BTreeSet<_>>(), known, "a crate without a place");
}

#[test]
fn reserved_dependencies_stay_with_their_owners() {
    let (_, packages) = workspace();
    for package in &packages {
        let named = dependencies(package);
        for (reserved, owners) in RESERVED {
            assert!(
                !named.contains(reserved) || owners.contains(&package.name.as_str()),
                "{} names {reserved}",
                package.name
            );
        }
        if PURE.contains(&package.name.as_str()) {
            let impure: Vec<_> = IMPURE.iter().filter(|impure| named.contains(**impure)).collect();
            assert!(impure.is_empty(), "pure {} names {impure:?}", package.name);
        }
    }
}

#[test]
fn every_source_file_is_declared_by_a_module() {
    let (root, packages) = workspace();
    let mut compiled = BTreeSet::new();
    let mut present = BTreeSet::new();
    for package in &packages {
        let home = PathBuf::from(package.manifest_path.parent().unwrap());
        for target in &package.targets {
            if !target.kind.contains(&TargetKind::CustomBuild) {
                visit(Path::new(&target.src_path), true, &mut compiled);
            }
        }
        sources(&home, &mut present);
    }
    let orphans: Vec<_> =
        present.difference(&compiled).map(|path| path.strip_prefix(&root).unwrap().display().to_string()).collect();
    assert!(orphans.is_empty(), "declared by no `mod`, so never compiled: {orphans:?}");
    assert!(compiled.len() > packages.len());
}

/// Follows `mod name;` and `#[path = "…"]` and `include!("…")` from one file.
fn visit(file: &Path, is_root: bool, seen: &mut BTreeSet<PathBuf>) {
    if !file.exists() || !seen.insert(file.to_path_buf()) {
        return;
    }
    let directory = file.parent().unwrap();
    let own = if is_root { directory.to_path_buf() } else { directory.join(file.file_stem().unwrap()) };
    let mut path_attribute = None;
    for line in std::fs::read_to_string(file).unwrap().lines().map(str::trim) {
        if let Some(path) = quoted(line, "#[path = \"") {
            path_attribute = Some(path.to_owned());
        } else if let Some(path) =
            quoted(line, "include!(\"").or_else(|| quoted(line, "\"generated/").and(line.split('"').nth(1)))
        {
            // Directly, or as the argument of a macro that includes generated code.
            visit(&directory.join(path), false, seen);
        } else if let Some(name) = declared_module(line) {
            match path_attribute.take() {
                Some(path) => visit(&directory.join(path), false, seen),
                None => {
                    visit(&own.join(format!("{name}.rs")), false, seen);
                    visit(&own.join(name).join("mod.rs"), true, seen);
                }
            }
        }
    }
}

fn quoted<'a>(line: &'a str, before: &str) -> Option<&'a str> {
    line.strip_prefix(before)?.split('"').next()
}

fn declared_module(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("pub(crate) ").or_else(|| line.strip_prefix("pub(super) ")).unwrap_or(line);
    let rest = rest.strip_prefix("pub ").unwrap_or(rest);
    rest.strip_prefix("mod ")?.strip_suffix(';')
}

/// Every `.rs` file of one crate: below its folder, but not in a nested package's (a crate of the workspace, or fuzz
/// targets, which are a workspace of their own).
fn sources(directory: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.join("Cargo.toml").exists() && !path.ends_with("target") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.insert(path);
        }
    }
}
