//! `isthmus token create`

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use federation::delegation::NamespaceSet;
use federation_api::signing::{MembershipRoot, PublishKey};
use federation_api::token::JoinToken;
use federation_api::verify::{VerifiedMember, verify_member};

use crate::{Ran, isthmus};

/// An operator's directory as `trust-bundle init` leaves it. The certificate's content is the receivers' concern.
pub(crate) fn operator(directory: &Path) -> MembershipRoot {
    let root = MembershipRoot::generate().unwrap();
    let certificate = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    let federation = r#"{"federation": "mesh.example", "trustBundleAddresses": ["127.0.0.1:8443", "tb.mesh.example:8443"],
        "federatorAddresses": ["127.0.0.1:15012"], "ofALaterVersion": true}"#;
    fs::write(directory.join("membership-root.key"), root.to_pem().unwrap()).unwrap();
    fs::write(directory.join("membership-root.pub"), root.public().to_pem()).unwrap();
    fs::write(directory.join("federation-root.crt"), certificate).unwrap();
    fs::write(directory.join("federation.json"), federation).unwrap();
    set_mode(&directory.join("membership-root.key"), 0o600);
    root
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// There is no control-plane: making tokens needs none.
async fn create(directory: &Path, more: &[&str]) -> Ran {
    let directory = directory.to_str().unwrap();
    let arguments = [&["token", "create", "--operator", directory, "--cluster", "east"], more].concat();
    isthmus(&PathBuf::from("/nonexistent/admin.sock"), &arguments, "").await
}

/// The membership that a receiver sees after a join with the token.
fn membership(root: &MembershipRoot, token: &JoinToken) -> VerifiedMember {
    let now = SystemTime::now();
    let member = token.member(&PublishKey::generate().unwrap().public(), now);
    verify_member(&root.public(), token.federation(), &member, Some(now)).unwrap()
}

#[tokio::test]
async fn a_token_carries_the_federation_and_nothing_but_it_is_on_stdout() {
    let directory = tempfile::tempdir().unwrap();
    let root = operator(directory.path());
    let before = SystemTime::now();
    let ran = create(directory.path(), &[]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.stdout.lines().count(), 1, "{ran:?}");
    let token: JoinToken = ran.stdout.trim_end().parse().unwrap();
    assert_eq!(token.cluster().as_str(), "east");
    assert_eq!(token.federation().as_str(), "mesh.example");
    assert_eq!(token.membership_root(), root.public());
    assert_eq!(token.federation_roots(), [vec![0x30, 0x00]]);
    assert_eq!(token.trust_bundle_addresses(), ["127.0.0.1:8443", "tb.mesh.example:8443"]);
    assert_eq!(token.federator_addresses(), ["127.0.0.1:15012"]);
    let lifetime = token.expires().duration_since(before).unwrap();
    assert!(lifetime > Duration::from_secs(899) && lifetime < Duration::from_secs(960), "{lifetime:?}");
    assert_eq!(membership(&root, &token).delegation().namespaces, NamespaceSet::All);
    assert!(ran.stderr.contains("cluster east") && ran.stderr.contains("namespaces: all"), "{ran:?}");
    assert!(!ran.stderr.contains(token.to_string().as_str()), "the secret is on stderr");
}

#[tokio::test]
async fn what_is_delegated_is_what_was_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let root = operator(directory.path());
    let more = [
        "--namespace",
        "shop",
        "--namespace",
        "pay",
        "--address-range",
        "127.1.0.0/16",
        "--address-range",
        "192.0.2.9",
        "--host-name",
        "*.east.example",
        "--expires",
        "1h30m",
    ];
    let ran = create(directory.path(), &more).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let token: JoinToken = ran.stdout.parse().unwrap();
    let member = membership(&root, &token);
    let delegation = member.delegation();
    assert_eq!(delegation.namespaces, NamespaceSet::Some(["pay".parse().unwrap(), "shop".parse().unwrap()].into()));
    for (address, allowed) in [("127.1.0.4", true), ("127.2.0.4", false), ("192.0.2.9", true), ("192.0.2.10", false)] {
        assert_eq!(delegation.allows_address(address.parse().unwrap()), allowed, "{address}");
    }
    assert!(delegation.allows_host("gw.east.example") && !delegation.allows_host("gw.west.example"));
    for told in ["shop, pay", "127.1.0.0/16, 192.0.2.9/32", "*.east.example", "for 1h30m"] {
        assert!(ran.stderr.contains(told), "{told:?} is not in {}", ran.stderr);
    }
}

#[tokio::test]
async fn json_says_it_all() {
    let directory = tempfile::tempdir().unwrap();
    operator(directory.path());
    let ran = create(directory.path(), &["-o", "json", "--namespace", "shop"]).await;
    let json = ran.json();
    let token: JoinToken = json["token"].as_str().unwrap().parse().unwrap();
    assert_eq!(json["generation"], token.generation());
    assert_eq!(json["namespaces"], serde_json::json!(["shop"]));
    assert_eq!(json["cluster"], "east");
    assert_eq!(ran.stderr, "");
}

#[tokio::test]
async fn a_newer_token_makes_a_higher_generation() {
    let directory = tempfile::tempdir().unwrap();
    operator(directory.path());
    let first: JoinToken = create(directory.path(), &[]).await.stdout.parse().unwrap();
    let second: JoinToken = create(directory.path(), &[]).await.stdout.parse().unwrap();
    assert!(second.generation() > first.generation());
    assert_ne!(first.public(), second.public());
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_named() {
    for (file, content, expected) in [
        ("membership-root.key", None, "membership-root.key: No such file"),
        ("membership-root.key", Some("junk"), "membership-root.key: no PEM block"),
        ("federation.json", Some("{\"federation\": \"mesh.example\"}"), "federation.json: missing field"),
        ("federation.json", Some("{\"federation\": \"-\"}"), "federation.json: "),
        ("federation-root.crt", Some("junk"), "federation-root.crt: "),
    ] {
        let directory = tempfile::tempdir().unwrap();
        operator(directory.path());
        let path = directory.path().join(file);
        match content {
            Some(content) => fs::write(&path, content).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let ran = create(directory.path(), &[]).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{ran:?}");
        assert!(ran.stderr.contains(expected) && ran.stderr.lines().count() == 1, "{expected:?}: {ran:?}");
    }
}

#[tokio::test]
async fn a_directory_of_two_federations_makes_no_token() {
    let directory = tempfile::tempdir().unwrap();
    operator(directory.path());
    let other = MembershipRoot::generate().unwrap().public().to_pem();
    fs::write(directory.path().join("membership-root.pub"), other).unwrap();
    let ran = create(directory.path(), &[]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{ran:?}");
    assert!(ran.stderr.contains("membership-root.pub: is not the public half"), "{ran:?}");
}

#[tokio::test]
async fn a_key_that_others_can_read_is_warned_about() {
    let directory = tempfile::tempdir().unwrap();
    operator(directory.path());
    set_mode(&directory.path().join("membership-root.key"), 0o644);
    let ran = create(directory.path(), &[]).await;
    assert_eq!(ran.code, 0);
    assert!(ran.stderr.contains("warning: ") && ran.stderr.contains("chmod 600"), "{ran:?}");
}

#[tokio::test]
async fn wrong_arguments_are_a_usage_error() {
    let directory = tempfile::tempdir().unwrap();
    operator(directory.path());
    for (option, value) in [
        ("--namespace", "Shop"),
        ("--address-range", "10.0.0.0/33"),
        ("--host-name", "*"),
        ("--expires", "15"),
        ("--expires", "0s"),
    ] {
        let ran = create(directory.path(), &[option, value]).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{option} {value}: {ran:?}");
        assert!(ran.stderr.contains(option), "{ran:?}");
    }
}
