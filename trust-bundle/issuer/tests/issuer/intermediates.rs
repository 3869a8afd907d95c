//! The online intermediate, from day to day.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    time::{Duration, SystemTime},
};

use rcgen::{BasicConstraints, IsCa, KeyPair};
use rustls_pki_types::CertificateDer;
use spiffe_identity::{Validity, pem, validity};
use svid_issuer::{Authority, AuthorityFiles, Due, INTERMEDIATE_LIFETIME, IssueError, OpenError, Svid};
use tempfile::TempDir;

use crate::{DAY, authority, cart, east, issue, issuing::ca_params, judged, now, parse, plain_request};

const HOUR: Duration = Duration::from_secs(3600);

fn intermediate(svid: &Svid) -> &CertificateDer<'static> {
    &svid.chain[1]
}

#[test]
fn an_intermediate_is_prepared_at_half_and_used_with_a_sixth_left() {
    let life = 600 * Duration::from_secs(1);
    let validity = Validity { not_before: now(), not_after: now() + life };
    let due = |seconds: u64| Due::of(validity, now() + Duration::from_secs(seconds));
    assert_eq!([due(0), due(299)], [Due::Nothing; 2]);
    assert_eq!([due(300), due(499)], [Due::Prepare; 2]);
    assert_eq!([due(500), due(600), due(601), due(10_000)], [Due::Activate; 4]);
    assert_eq!(Due::of(validity, now() - HOUR), Due::Activate, "one that is not valid yet does not sign");
}

#[test]
fn intermediates_replace_each_other_by_themselves_and_every_svid_lives_its_day() {
    let (_directory, authority) = authority();
    let mut seen: Vec<CertificateDer<'static>> = Vec::new();
    let mut time = now();
    while time < now() + 30 * DAY {
        let svid = issue(&authority, time);
        assert_eq!(svid.not_after, time + DAY, "never cut short by its issuer's end");
        for moment in [time, svid.not_after] {
            assert_eq!(judged(vec![authority.root()], &svid, moment), Ok(()));
        }
        if seen.last() != Some(intermediate(&svid)) {
            seen.push(intermediate(&svid).clone());
        }
        time += 5 * HOUR;
    }
    assert_eq!(seen.len(), 8, "a root's key is needed twice a week");
    let life = validity(&seen[1]).unwrap();
    assert!(life.not_after - INTERMEDIATE_LIFETIME > now());
    let mut subjects: Vec<_> = seen.iter().map(|der| parse(der).subject().as_raw().to_vec()).collect();
    subjects.sort();
    subjects.dedup();
    assert_eq!(subjects.len(), seen.len());
}

#[test]
fn an_intermediate_is_replaced_on_demand_and_what_it_signed_stays_valid() {
    let (directory, authority) = authority();
    let before = issue(&authority, now());
    authority.renew_intermediate(now() + HOUR).unwrap();
    let after = issue(&authority, now() + HOUR);
    assert_ne!(intermediate(&before), intermediate(&after));
    for svid in [&before, &after] {
        assert_eq!(judged(vec![authority.root()], svid, now() + HOUR), Ok(()));
    }
    let again = Authority::open(directory.path(), &east()).unwrap();
    assert_eq!(intermediate(&issue(&again, now() + HOUR)), intermediate(&after), "it survives a restart");
    fs::rename(directory.path().join("ca.key"), directory.path().join("away")).unwrap();
    assert!(authority.renew_intermediate(now() + HOUR).is_err(), "it takes the root's key");
    assert_eq!(intermediate(&issue(&authority, now() + HOUR)), intermediate(&after), "the one in use signs on");
}

#[test]
fn an_intermediate_survives_a_restart_and_its_key_is_private() {
    let (directory, first) = authority();
    let svid = issue(&first, now());
    let again = Authority::open(directory.path(), &east()).unwrap();
    assert_eq!(intermediate(&issue(&again, now() + HOUR)), intermediate(&svid));
    assert_eq!(again.intermediate_validity(), Some(validity(intermediate(&svid)).unwrap()));
    let mode = fs::metadata(directory.path().join("ca.online.pem")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
}

#[test]
fn a_prepared_intermediate_survives_a_restart_too() {
    let (directory, first) = authority();
    let old = issue(&first, now());
    let half = now() + 4 * DAY;
    assert_eq!(intermediate(&issue(&first, half)), intermediate(&old));
    // The root's key is away from here on: what was prepared is what comes next.
    fs::remove_file(directory.path().join("ca.key")).unwrap();
    let again = Authority::open(directory.path(), &east()).unwrap();
    assert_eq!(intermediate(&issue(&again, half)), intermediate(&old));
    let new = issue(&again, now() + 6 * DAY);
    assert_ne!(intermediate(&new), intermediate(&old));
    assert_eq!(judged(vec![again.root()], &new, now() + 6 * DAY), Ok(()));
}

/// An authority with an intermediate, whose root's key was taken away at once.
fn without_root_key() -> (TempDir, Authority) {
    let (directory, first) = authority();
    issue(&first, now());
    fs::rename(directory.path().join("ca.key"), directory.path().join("away")).unwrap();
    let again = Authority::open_or_create(directory.path(), &east(), now()).unwrap();
    (directory, again)
}

fn end(authority: &Authority) -> SystemTime {
    authority.intermediate_validity().unwrap().not_after
}

#[test]
fn the_root_s_key_may_be_away_while_the_intermediate_lives() {
    let (_directory, authority) = without_root_key();
    assert!(authority.maintain(now() + DAY).is_ok(), "nothing is due");
    assert!(matches!(authority.maintain(now() + 4 * DAY), Err(OpenError::KeyMissing { .. })), "an alarm");
    for time in [now() + 4 * DAY, now() + 6 * DAY, end(&authority) - HOUR] {
        assert_eq!(judged(vec![authority.root()], &issue(&authority, time), time), Ok(()), "and no failure");
    }
    assert_eq!(issue(&authority, end(&authority) - HOUR).not_after, end(&authority));
    let (_, csr) = plain_request();
    let over = authority.issue(&csr, &cart(), DAY, end(&authority) + HOUR);
    assert!(matches!(over, Err(IssueError::Authority(OpenError::KeyMissing { .. }))), "{over:?}");
}

#[test]
fn a_root_s_key_that_comes_back_is_used_without_a_restart() {
    let (directory, authority) = without_root_key();
    let late = now() + 6 * DAY;
    let old = issue(&authority, late);
    fs::rename(directory.path().join("away"), directory.path().join("ca.key")).unwrap();
    assert_eq!(intermediate(&issue(&authority, late + Duration::from_secs(59))), intermediate(&old));
    let new = issue(&authority, late + Duration::from_secs(60));
    assert_ne!(intermediate(&new), intermediate(&old), "tried again after a minute");
}

#[test]
fn a_stored_intermediate_that_does_not_fit_is_made_anew() {
    let (directory, first) = authority();
    let old = issue(&first, now());
    let stored = directory.path().join("ca.online.pem");
    let (other_directory, other) = authority();
    issue(&other, now());
    for change in ["garbage".to_owned(), fs::read_to_string(other_directory.path().join("ca.online.pem")).unwrap()] {
        fs::write(&stored, change).unwrap();
        let again = Authority::open(directory.path(), &east()).unwrap();
        let svid = issue(&again, now());
        assert_ne!(intermediate(&svid), intermediate(&old));
        assert_eq!(judged(vec![first.root()], &svid, now()), Ok(()));
    }
}

#[test]
fn a_disk_that_cannot_be_written_costs_no_svid() {
    let (directory, authority) = authority();
    fs::create_dir(directory.path().join("ca.online-next.pem")).unwrap();
    let svid = issue(&authority, now());
    assert_eq!(judged(vec![authority.root()], &svid, now()), Ok(()));
    assert_eq!(intermediate(&issue(&authority, now() + HOUR)), intermediate(&svid), "it lives in memory");
}

#[test]
fn a_clock_set_back_gets_an_intermediate_that_is_valid_then() {
    let (_directory, authority) = authority();
    issue(&authority, now());
    let before = now() - DAY;
    // The root is no older either, so the present moment of the clock decides alone.
    let svid = issue(&authority, before);
    assert!(validity(intermediate(&svid)).unwrap().contains(before));
}

#[test]
fn a_certificate_for_longer_than_an_intermediate_lives_is_the_root_s_own() {
    let (directory, authority) = authority();
    let (_, csr) = plain_request();
    let year = 365 * DAY;
    let svid = authority.issue(&csr, &cart(), year, now()).unwrap();
    assert_eq!((svid.chain.len(), svid.not_after), (1, now() + year));
    assert_eq!(judged(vec![authority.root()], &svid, now()), Ok(()));
    let week = authority.issue(&csr, &cart(), INTERMEDIATE_LIFETIME, now()).unwrap();
    assert_eq!(week.chain.len(), 2);
    fs::remove_file(directory.path().join("ca.key")).unwrap();
    let shorter = authority.issue(&csr, &cart(), year, now()).unwrap();
    assert_eq!((shorter.chain.len(), shorter.not_after), (2, end(&authority)), "without the key there is less");
}

#[test]
fn a_root_that_allows_no_intermediate_signs_itself() {
    let chain_length = |below| {
        let directory = TempDir::new().unwrap();
        let files = AuthorityFiles::in_directory(directory.path());
        let key = KeyPair::generate().unwrap();
        let mut params = ca_params("corporate root");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
        let root = params.self_signed(&key).unwrap().der().clone();
        fs::write(&files.certificates, pem::certificates_to_pem([&root])).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
        let svid = issue(&Authority::open_files(&files, &east()).unwrap(), now());
        assert_eq!(judged(vec![root], &svid, now()), Ok(()));
        svid.chain.len()
    };
    assert_eq!((chain_length(0), chain_length(1)), (1, 2));
}
