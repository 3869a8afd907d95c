//! `trust-bundle init`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::SystemTime;

use federation_api::signing::{MembershipRoot, PublicKey};
use mesh_tls::{Identity, Purpose, TrustStore, pem};
use rustls_pki_types::UnixTime;
use spiffe_identity::Bundle;
use svid_issuer::Authority;
use trust_bundle::init::{Holder, InitError, init, issue};

use crate::plane::{federation_file, trust_domain};

/// Mode and content of every file and folder below.
fn tree(directory: &Path) -> BTreeMap<String, (u32, Vec<u8>)> {
    fn walk(directory: &Path, prefix: &str, found: &mut BTreeMap<String, (u32, Vec<u8>)>) {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let (path, name) = (entry.path(), format!("{prefix}{}", entry.file_name().to_string_lossy()));
            let mode = entry.metadata().unwrap().permissions().mode() & 0o7777;
            if path.is_dir() {
                found.insert(format!("{name}/"), (mode, Vec::new()));
                walk(&path, &format!("{name}/"), found);
            } else {
                found.insert(name, (mode, fs::read(&path).unwrap()));
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(directory, "", &mut found);
    found
}

#[test]
fn init_writes_every_file_with_its_mode_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    init(&directory.path().join("new"), &federation_file(), "admin", SystemTime::now()).unwrap();
    let tree = tree(&directory.path().join("new"));
    let modes: Vec<_> = tree.iter().map(|(name, (mode, _))| (name.as_str(), *mode)).collect();
    let expected = [
        ("federator/", 0o700),
        ("federator/federation-root.crt", 0o644),
        ("federator/federation.json", 0o644),
        ("federator/membership-root.pub", 0o644),
        ("federator/service.crt", 0o644),
        ("federator/service.key", 0o600),
        ("operator/", 0o700),
        ("operator/federation-root.crt", 0o644),
        ("operator/federation.json", 0o644),
        ("operator/membership-root.key", 0o600),
        ("operator/membership-root.pub", 0o644),
        ("operator/operator.crt", 0o644),
        ("operator/operator.key", 0o600),
        ("service/", 0o700),
        ("service/authority/", 0o700),
        ("service/authority/ca.crt", 0o644),
        ("service/authority/ca.key", 0o600),
        ("service/federation-root.crt", 0o644),
        ("service/federation.json", 0o644),
        ("service/membership-root.pub", 0o644),
    ];
    assert_eq!(modes, expected);
    let secret = &tree["operator/membership-root.key"].1;
    let elsewhere = tree.iter().filter(|(name, _)| !name.starts_with("operator/"));
    for (name, (_, content)) in elsewhere {
        assert!(!content.windows(secret.len()).any(|part| part == secret), "{name} has the membership root's secret");
    }
}

#[test]
fn what_init_writes_fits_together() {
    let directory = tempfile::tempdir().unwrap();
    init(directory.path(), &federation_file(), "alice", SystemTime::now()).unwrap();
    let read = |name: &str| fs::read(directory.path().join(name)).unwrap();
    let text = |name: &str| String::from_utf8(read(name)).unwrap();

    let root = MembershipRoot::from_pem(&text("operator/membership-root.key")).unwrap();
    for folder in ["operator", "service", "federator"] {
        let public = PublicKey::from_pem(&text(&format!("{folder}/membership-root.pub"))).unwrap();
        assert_eq!(public, root.public(), "{folder}");
        let file: trust_bundle::init::FederationFile =
            serde_json::from_slice(&read(&format!("{folder}/federation.json"))).unwrap();
        assert_eq!(file, federation_file(), "{folder}");
    }
    let roots = pem::certificates_from_pem(&read("federator/federation-root.crt")).unwrap();
    let trust = TrustStore::new();
    let (trust_domain, x509_authorities) = (trust_domain(), roots);
    trust.insert(Bundle { trust_domain, x509_authorities, sequence: 1, refresh_hint: None });
    for (name, id) in [
        ("operator/operator", "spiffe://mesh.example/operator/alice"),
        ("federator/service", "spiffe://mesh.example/service/federator"),
    ] {
        let identity = Identity::from_pem(&read(&format!("{name}.crt")), &read(&format!("{name}.key"))).unwrap();
        let believed = trust.verify(&identity.chain(), Purpose::Client, UnixTime::now()).unwrap();
        assert_eq!(believed.to_string(), id);
    }
}

#[test]
fn init_never_touches_a_federation_that_is_there() {
    let directory = tempfile::tempdir().unwrap();
    init(directory.path(), &federation_file(), "admin", SystemTime::now()).unwrap();
    for gone in [None, Some("operator"), Some("service")] {
        // What was handed over to its owner is no longer here; what is left is still a federation's.
        if let Some(gone) = gone {
            fs::remove_dir_all(directory.path().join(gone)).unwrap();
        }
        let before = tree(directory.path());
        let again = init(directory.path(), &federation_file(), "admin", SystemTime::now());
        assert!(matches!(again, Err(InitError::Exists(_))), "{again:?}");
        assert_eq!(tree(directory.path()), before, "without {gone:?}");
    }
}

#[test]
fn a_mistake_is_found_before_anything_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    for operator in ["", "a/b", "..", "ä"] {
        let refused = init(directory.path(), &federation_file(), operator, now);
        assert!(matches!(refused, Err(InitError::Name(_))), "{operator:?}: {refused:?}");
    }
    for address in ["", "mesh.example", ":15012", "mesh.example:", "mesh.example:0", "mesh.example:65536", "a:b"] {
        let mut file = federation_file();
        file.federator_addresses.push(address.to_owned());
        let refused = init(directory.path(), &file, "admin", now);
        assert!(matches!(refused, Err(InitError::Address(_))), "{address:?}: {refused:?}");
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

/// Whom the certificate of a folder names, if the roots beside it believe it.
fn believed(directory: &Path, name: &str, roots: &Path) -> Option<String> {
    let read = |name: String| fs::read(directory.join(name)).unwrap();
    let identity = Identity::from_pem(&read(format!("{name}.crt")), &read(format!("{name}.key"))).unwrap();
    let (trust, trust_domain) = (TrustStore::new(), trust_domain());
    let x509_authorities = pem::certificates_from_pem(&fs::read(roots.join("federation-root.crt")).unwrap()).unwrap();
    trust.insert(Bundle { trust_domain, x509_authorities, sequence: 1, refresh_hint: None });
    trust.verify(&identity.chain(), Purpose::Client, UnixTime::now()).ok().map(|id| id.to_string())
}

#[test]
fn who_was_away_while_the_authority_was_replaced_is_given_another_certificate() {
    let (directory, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
    init(directory.path(), &federation_file(), "admin", now).unwrap();
    let folder = |name: &str| directory.path().join(name);
    let secret = fs::read(folder("operator/membership-root.key")).unwrap();
    let authority = Authority::open(&folder("service/authority"), &trust_domain()).unwrap();
    authority.prepare_root(now).unwrap();
    authority.activate_root(now).unwrap();
    authority.retire_root().unwrap();
    let (service, operator, second) = (folder("service"), folder("operator"), folder("second"));
    issue(&service, &Holder::Operator("second".to_owned()), &second, now).unwrap();
    assert_eq!(believed(&second, "operator", &second).unwrap(), "spiffe://mesh.example/operator/second");
    assert_eq!(believed(&operator, "operator", &second), None, "it was issued below the root before");
    issue(&service, &Holder::Operator("admin".to_owned()), &operator, now).unwrap();
    assert_eq!(believed(&operator, "operator", &second).unwrap(), "spiffe://mesh.example/operator/admin");
    assert_eq!(fs::read(operator.join("membership-root.key")).unwrap(), secret, "what else is there stays");
    issue(&service, &Holder::Federator, &folder("federator"), now).unwrap();
    assert_eq!(believed(&folder("federator"), "service", &second).unwrap(), "spiffe://mesh.example/service/federator");
    let refused = issue(&service, &Holder::Operator("a/b".to_owned()), &folder("third"), now);
    assert!(matches!(refused, Err(InitError::Name(_))) && !folder("third").exists(), "{refused:?}");
}
