//! A member ends its own membership, and nobody else does.

use federation::RecordKey;
use federation_api::payload::Payload;
use federation_api::record::v1::Signed;
use federation_api::signing::Speaker;
use federation_api::verify::RecordError;

use crate::fixture::{East, created, federation};

fn departure(east: &East) -> Signed {
    east.sign(9, &RecordKey::Membership, &Payload::Withdrawal)
}

#[test]
fn a_departure_is_the_members_own_word_about_its_membership() {
    let east = East::new();
    assert_eq!(east.verified.verify_departure(&departure(&east)).unwrap().sequence, 9);
    // The same word, about a record.
    let withdrawn = east.sign(9, &RecordKey::Gateways, &Payload::Withdrawal);
    assert!(matches!(east.verified.verify_departure(&withdrawn), Err(RecordError::Disagreement { .. })));
    // The same word, of somebody else.
    assert_eq!(east.verified.verify_departure(&departure(&East::new())), Err(RecordError::Signature));
    // The same word, of another membership.
    let East { verified, speaker: Speaker { cluster, generation, key, .. }, .. } = East::new();
    let later = Speaker { federation: federation(), cluster, generation: generation + 1, key };
    let of_later = later.sign(9, created(), &RecordKey::Membership, &Payload::Withdrawal).unwrap();
    assert!(matches!(verified.verify_departure(&of_later), Err(RecordError::Generation { .. })));
}

#[test]
fn a_membership_has_no_value_but_its_end() {
    let east = East::new();
    let said = east.speaker.sign(9, created(), &RecordKey::Membership, &Payload::Gateways(Vec::new()));
    assert!(said.is_err());
    assert!(!Payload::Unknown.agrees_with(&RecordKey::Membership), "a later version's word ends nothing");
    assert!(Payload::Withdrawal.agrees_with(&RecordKey::Membership));
}
