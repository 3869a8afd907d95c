//! The table of attacks tells the truth: every case that must be there is, and every test that it names runs.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Sections with the cases that must not be missing.
const REQUIRED: [(&str, &[&str]); 8] = [
    (
        "Certificates",
        &[
            "two URI names",
            "no URI name",
            "foreign trust domain",
            "no key usage",
            "non-critical key usage",
            "keyCertSign in a leaf",
            "no basic constraints",
            "unknown critical extension",
            "trailing DER",
            "a trust-domain-only ID",
            "upper case",
            "percent-encoding",
            "a dot segment",
            "2049 bytes",
            "ten seconds outside a validity",
            "an expired anchor",
            "a CA=false anchor",
            "an intermediate without keyCertSign",
            "cRLSign in a leaf",
            "one role in the extended key usage",
            "a malformed second URI name",
            "many roots of one subject",
            "an ID of B signed by A's root",
            "A's root cross-signed by B",
            "a root used as a leaf",
        ],
    ),
    (
        "Bundles",
        &[
            "a lower sequence",
            "the same sequence with other content",
            "sequence 2^64-1",
            "missing keys",
            "empty keys",
            "duplicate JSON keys",
            "a duplicated trust domain",
            "x5c of 0 or 2",
            "x5c of a leaf",
            "x5c of bad base64",
            "kid on an x509 key",
            "one key in two trust domains",
            "hint 0, negative, 10^12",
            "a 10 MB body",
            "a slow body",
            "a compression bomb",
            "a redirect to plain http",
            "a redirect to another identity",
            "the wrong endpoint identity",
            "a bundle without a valid publish-key signature",
            "a 10 MB body over TLS",
            "a slow body over TLS",
            "a compression bomb over TLS",
            "a redirect to plain http over TLS",
            "a redirect to another identity over TLS",
            "the wrong endpoint identity over TLS",
            "a web server of another authority or name",
            "an endpoint below a root that was replaced",
            "an answer that is no bundle",
            "a foreign bundle rolled back over a restart",
            "a member's root key in a foreign bundle",
        ],
    ),
    (
        "Bundle endpoint",
        &[
            "a request for anything but a bundle",
            "a client that says nothing",
            "a web certificate without its key",
            "a server of another identity before go-spiffe",
            "a web authority that is not believed before go-spiffe",
        ],
    ),
    (
        "Callers",
        &[
            "a foreign caller that no policy names",
            "a foreign workload that is known and not let in",
            "a foreign workload that is let in and not known",
            "a caller that an Allow policy leaves out",
            "a denied caller that another policy allows",
            "a caller that differs in one field of a rule",
            "another spelling of a denied path",
            "a method in other letters",
            "a policy that is not understood",
            "a denied request on a live session",
            "a caller with another certificate",
            "a denied raw connection",
            "a forged identity header",
        ],
    ),
    (
        "Captured hub",
        &[
            "an invented member",
            "a changed record",
            "an old envelope replayed",
            "a withheld withdrawal",
            "a changed export, identity list or gateway address",
            "a restored old store",
            "other keys of a known membership, granted with a used token",
            "other keys of a known membership, granted with a replaced key",
        ],
    ),
    (
        "Captured member",
        &[
            "an export outside its delegated namespaces",
            "an absurd claim in an export",
            "addresses outside its delegation",
            "a creation time of 1970, an absurd capacity",
            "gateways at link-local and metadata addresses",
            "headless addresses in loopback or a victim's range",
            "identities of another cluster in its record",
            "an SNI for exported A with an inner authority of B",
            "another member's root key in its bundle, before receivers",
            "sessions opened over and over, each a write to the store",
        ],
    ),
    (
        "Requests and sessions",
        &[
            "a CSR with CA:TRUE and extra SANs",
            "a CSR with a bad signature",
            "a delimiter in a SAN",
            "resumption and early data after a quarantine",
            "live streams after a quarantine",
            "one client that takes all connections",
            "a client without a certificate that says too much",
            "many addresses of one IPv6 network",
        ],
    ),
    (
        "Service",
        &[
            "A writes B's bundle",
            "A writes B's exports",
            "a join token used 100 times at once",
            "a join token used again with another key",
            "a revoked join token",
            "an expired token, one of another federation or root",
            "a token of another cluster",
            "a service-account token of another cluster",
            "a token of another audience",
            "a deleted pod's token",
            "a forged cluster field",
            "a forged cluster header",
            "an old deny-list in a restored store",
            "a CSR that asks for another identity",
            "a caller of a foreign trust domain",
            "a quarantined cluster that joins again",
            "a quarantined cluster that lifts its quarantine",
            "an old deny-list put again",
            "live watches after a quarantine",
            "a member that operates",
            "a certificate of a replaced membership",
            "a departure in another's name",
            "a publish key granted by another",
            "a restore of an old backup",
            "an evicted member in a restored store",
            "a root of the federation planted in the store",
            "a changed audit record",
            "another member's root key in a bundle",
            "a member that pushes out the audit record",
            "a quarantine that a cut off replica does not hear",
        ],
    ),
];

struct Row {
    section: String,
    case: String,
    refused: String,
    accepted: String,
}

fn rows(table: &str) -> Vec<Row> {
    let mut section = String::new();
    let mut rows = Vec::new();
    for line in table.lines() {
        if let Some(name) = line.strip_prefix("## ") {
            name.clone_into(&mut section);
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if let [_, case, refused, accepted, _] = cells[..]
            && !matches!(case, "case" | "---")
        {
            let text = |cell: &str| cell.to_owned();
            rows.push(Row {
                section: section.clone(),
                case: text(case),
                refused: text(refused),
                accepted: text(accepted),
            });
        }
    }
    rows
}

/// Why `path::test` does not run, as far as its source tells.
fn check_test(root: &Path, name: &str) -> Result<(), String> {
    let (file, test) = name.split_once("::").ok_or_else(|| format!("{name:?} is not path::test"))?;
    let file = root.join(file);
    let source = fs::read_to_string(&file).map_err(|error| format!("{name}: {error}"))?;
    check_compiled(&file).map_err(|reason| format!("{name}: {reason}"))?;
    check_runs(&source, test).map_err(|reason| format!("{name}: {reason}"))
}

/// A file directly below `tests/` is a target of its own; one in a folder is declared by the folder's `main.rs` or `lib.rs`,
/// or by the file beside the folder that has its name.
fn check_compiled(file: &Path) -> Result<(), String> {
    let directory = file.parent().unwrap();
    if directory.ends_with("tests") || file.ends_with("main.rs") {
        return Ok(());
    }
    let parents = [directory.join("main.rs"), directory.join("lib.rs"), directory.with_extension("rs")];
    let declaration = format!("mod {};", file.file_stem().unwrap().to_str().unwrap());
    let declares = |parent: &PathBuf| {
        let source = fs::read_to_string(parent).unwrap_or_default();
        source.lines().any(|line| line.trim().trim_start_matches("pub ") == declaration)
    };
    if parents.iter().any(declares) { Ok(()) } else { Err("not declared".into()) }
}

fn check_runs(source: &str, test: &str) -> Result<(), String> {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let starts = [format!("fn {test}("), format!("async fn {test}(")];
    let place = lines.iter().position(|line| starts.iter().any(|start| line.starts_with(start)));
    let before = &lines[..place.ok_or("no such test")?];
    let attributes: Vec<_> =
        before.iter().rev().take_while(|line| line.starts_with("#[") || line.starts_with("//")).collect();
    if attributes.iter().any(|line| line.starts_with("#[ignore") || line.starts_with("#[cfg")) {
        return Err("ignored".into());
    }
    let is_test = |line: &&str| line.starts_with("#[test]") || line.starts_with("#[tokio::test");
    if attributes.iter().any(|line| is_test(line)) { Ok(()) } else { Err("not a test".into()) }
}

fn trust_bundle() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

#[test]
fn every_attack_names_tests_that_run() {
    let table = fs::read_to_string(trust_bundle().join("tls/attacks.md")).unwrap();
    let rows = rows(&table);
    let mut wrong = Vec::new();
    let mut cases: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for row in &rows {
        if !cases.entry(&row.section).or_default().insert(&row.case) {
            wrong.push(format!("{:?} stands twice", row.case));
        }
        for name in [&row.refused, &row.accepted] {
            wrong.extend(check_test(&trust_bundle(), name).err());
        }
    }
    for (section, required) in REQUIRED {
        let present = cases.get(section).cloned().unwrap_or_default();
        wrong
            .extend(required.iter().filter(|case| !present.contains(*case)).map(|case| format!("no row for {case:?}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_test_that_is_missing_ignored_or_no_test_is_noticed() {
    let good = "#[test]\nfn holds() {}\n#[tokio::test]\n#[expect(x)]\nasync fn waits() {}\n";
    assert_eq!(check_runs(good, "holds"), Ok(()));
    assert_eq!(check_runs(good, "waits"), Ok(()));
    assert_eq!(check_runs(good, "hold"), Err("no such test".into()));
    assert_eq!(check_runs("#[test]\n#[ignore = \"slow\"]\nfn holds() {}\n", "holds"), Err("ignored".into()));
    assert_eq!(check_runs("#[ignore]\n#[test]\nfn holds() {}\n", "holds"), Err("ignored".into()));
    assert_eq!(check_runs("#[cfg(windows)]\n#[test]\nfn holds() {}\n", "holds"), Err("ignored".into()));
    assert_eq!(check_runs("// #[test]\nfn holds() {}\n", "holds"), Err("not a test".into()));
    assert!(check_test(&trust_bundle(), "tls/tests/mesh/domain.rs::nothing").is_err());
    assert!(check_test(&trust_bundle(), "tls/tests/mesh/absent.rs::nothing").is_err());
}
