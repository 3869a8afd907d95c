//! A root's key at rest.

use std::fs;

use svid_issuer::{Authority, AuthorityFiles, OpenError, RootError, SealError, SealingKey};
use tempfile::TempDir;

use crate::{DAY, authority, east, issue, judged, now};

fn key() -> SealingKey {
    SealingKey::generate().unwrap().0
}

fn sealed(seal: &SealingKey) -> (TempDir, AuthorityFiles, Authority) {
    let directory = TempDir::new().unwrap();
    let files = AuthorityFiles::in_directory(directory.path());
    let authority = Authority::open_or_create_sealed(&files, &east(), seal.clone(), now()).unwrap();
    (directory, files, authority)
}

#[test]
fn a_sealed_key_is_never_on_disk_as_it_is() {
    let seal = key();
    let (directory, files, authority) = sealed(&seal);
    for time in [now(), now() + 6 * DAY] {
        assert_eq!(judged(vec![authority.root()], &issue(&authority, time), time), Ok(()));
    }
    authority.prepare_root(now()).unwrap();
    for name in ["ca.key", "ca.next.pem"] {
        let text = fs::read_to_string(directory.path().join(name)).unwrap();
        assert!(!text.contains("PRIVATE KEY") && text.contains("isthmus sealed key"), "{name}");
    }
    authority.activate_root(now() + 6 * DAY).unwrap();
    assert!(!fs::read_to_string(&files.key).unwrap().contains("PRIVATE KEY"));
    let again = Authority::open_sealed(&files, &east(), seal).unwrap();
    assert_eq!(again.root(), authority.root());
    assert!(again.maintain(now() + 20 * DAY).is_ok());
}

#[test]
fn without_the_sealing_key_the_intermediate_signs_on() {
    let (_directory, files, authority) = sealed(&key());
    assert!(matches!(Authority::open_files(&files, &east()), Err(OpenError::Sealed(path)) if path == files.key));
    let svid = issue(&authority, now());
    let without = Authority::open_files(&files, &east()).unwrap();
    assert_eq!(issue(&without, now()).chain[1], svid.chain[1]);
    assert!(matches!(without.maintain(now() + 4 * DAY), Err(OpenError::Sealed(_))));
    let next = without.prepare_root(now());
    assert!(matches!(next, Err(RootError::Files(OpenError::Sealed(_)))), "the next key would lie open");
    assert!(authority.maintain(now() + 4 * DAY).is_ok());
}

#[test]
fn only_the_right_sealing_key_trust_domain_and_text_unseal() {
    let seal = key();
    let (_directory, files, _) = sealed(&seal);
    let opened = |seal: &SealingKey| Authority::open_sealed(&files, &east(), seal.clone());
    let is_wrong = |opened| matches!(opened, Err(OpenError::Seal { source: SealError::Wrong, .. }));
    assert!(opened(&seal).is_ok());
    assert!(is_wrong(opened(&key())));
    let text = fs::read_to_string(&files.key).unwrap();
    // Another trust domain's sealed key, under the same sealing key.
    let other = TempDir::new().unwrap();
    let other_files = AuthorityFiles::in_directory(other.path());
    let west = "west.mesh.example".parse().unwrap();
    Authority::open_or_create_sealed(&other_files, &west, seal.clone(), now()).unwrap();
    fs::copy(&other_files.key, &files.key).unwrap();
    assert!(is_wrong(opened(&seal)));
    let (rest, last) = text.trim_end().split_at(text.trim_end().len() - 1);
    let flipped = if last == "0" { "1" } else { "0" };
    for changed in [format!("{rest}{flipped}"), rest.to_owned(), format!("{text}zz"), "isthmus sealed key 1\n".into()] {
        fs::write(&files.key, changed).unwrap();
        assert!(is_wrong(opened(&seal)));
    }
    fs::write(&files.key, text).unwrap();
    assert!(opened(&seal).is_ok());
}

#[test]
fn a_key_that_lay_open_gets_sealed() {
    let (directory, first) = authority();
    let files = AuthorityFiles::in_directory(directory.path());
    assert!(fs::read_to_string(&files.key).unwrap().contains("PRIVATE KEY"));
    let seal = key();
    let again = Authority::open_or_create_sealed(&files, &east(), seal.clone(), now()).unwrap();
    assert_eq!(again.root(), first.root());
    assert!(!fs::read_to_string(&files.key).unwrap().contains("PRIVATE KEY"));
    issue(&again, now());
    assert!(Authority::open_sealed(&files, &east(), seal).is_ok());
}

#[test]
fn a_sealing_key_is_64_hexadecimal_digits() {
    let (_, text) = SealingKey::generate().unwrap();
    assert!(SealingKey::from_text(&format!("  {text}\n")).is_ok());
    assert!(SealingKey::from_text(&text.to_uppercase()).is_ok());
    for wrong in ["", &text[2..], &text[1..], &format!("{text}00"), &text.replace(&text[..1], "g")] {
        assert!(matches!(SealingKey::from_text(wrong), Err(SealError::Form)), "{wrong}");
    }
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("seal");
    assert!(matches!(SealingKey::from_file(&path), Err(SealError::File(_))));
    fs::write(&path, text).unwrap();
    assert!(SealingKey::from_file(&path).is_ok());
}
