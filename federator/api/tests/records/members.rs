//! The chain from the membership root to a publish key.

use federation_api::record::v1::{Delegation, Member, PublishKeyGrant, Signed};
use federation_api::signing::{MembershipRoot, PublicKey, PublishKey, TokenKey};
use federation_api::token::rotate;
use federation_api::verify::{MAX_GRANTS, MemberError, VerifiedMember, verify_member};

use crate::fixture::{East, federation};

const GENERATION: u64 = 5;

fn delegation(token: &PublicKey) -> Delegation {
    Delegation {
        federation: "mesh.example".to_owned(),
        cluster: "east".to_owned(),
        token_public_key: token.as_bytes().to_vec(),
        expires_at_ms: 10,
        generation: GENERATION,
        namespaces: vec!["*".to_owned()],
        ..Delegation::default()
    }
}

fn grant(key: &PublicKey, after_sequence: u64) -> PublishKeyGrant {
    PublishKeyGrant {
        federation: "mesh.example".to_owned(),
        cluster: "east".to_owned(),
        generation: GENERATION,
        publish_public_key: key.as_bytes().to_vec(),
        joined_at_ms: 1,
        after_sequence,
    }
}

struct Keys {
    root: MembershipRoot,
    token: TokenKey,
    first: PublishKey,
    second: PublishKey,
}

impl Keys {
    fn new() -> Self {
        Self {
            root: MembershipRoot::generate().unwrap(),
            token: TokenKey::generate().unwrap(),
            first: PublishKey::generate().unwrap(),
            second: PublishKey::generate().unwrap(),
        }
    }

    fn verify(&self, delegation: &Delegation, grants: Vec<Signed>) -> Result<VerifiedMember, MemberError> {
        let member = Member { delegation: Some(self.root.delegate(delegation)), grants };
        verify_member(&self.root.public(), &federation(), &member, None)
    }

    fn refused(&self, delegation: &Delegation, grants: Vec<Signed>) -> MemberError {
        self.verify(delegation, grants).unwrap_err()
    }

    fn first_grant(&self) -> Signed {
        self.token.grant(&grant(&self.first.public(), 0))
    }
}

#[test]
fn a_delegation_with_a_bad_field_is_refused_by_the_fields_name() {
    let keys = Keys::new();
    let good = delegation(&keys.token.public());
    assert!(keys.verify(&good, vec![keys.first_grant()]).is_ok());
    let bad = |text: &str| vec![text.to_owned()];
    for (field, delegation) in [
        ("delegation.federation", Delegation { federation: "Mesh".to_owned(), ..good.clone() }),
        ("delegation.cluster", Delegation { cluster: "ea.st".to_owned(), ..good.clone() }),
        ("delegation.namespaces", Delegation { namespaces: bad("a/b"), ..good.clone() }),
        ("delegation.address_ranges", Delegation { address_ranges: bad("10.0.0.0/33"), ..good.clone() }),
        ("delegation.host_names", Delegation { host_names: bad("*east.example"), ..good.clone() }),
        ("delegation.host_names", Delegation { host_names: bad("*"), ..good.clone() }),
    ] {
        match keys.refused(&delegation, vec![keys.first_grant()]) {
            MemberError::Field(error) => assert_eq!(error.field, field),
            other => panic!("{field}: {other:?}"),
        }
    }
    let short = Delegation { token_public_key: vec![1], ..good.clone() };
    assert!(matches!(keys.refused(&short, vec![]), MemberError::Key { part: "delegation", .. }));
    let foreign = Delegation { federation: "other.example".to_owned(), ..good };
    assert!(matches!(keys.refused(&foreign, vec![]), MemberError::Federation { part: "delegation", .. }));
}

#[test]
fn a_member_of_another_root_is_refused() {
    let east = East::new();
    let other = MembershipRoot::generate().unwrap();
    let refused = verify_member(&other.public(), &federation(), &east.member, None).unwrap_err();
    assert_eq!(refused, MemberError::Signature("delegation"));
}

#[test]
fn every_changed_byte_of_a_membership_is_noticed() {
    let east = East::new();
    let verify = |member: &Member| verify_member(&east.root.public(), &federation(), member, None);
    assert!(verify(&east.member).is_ok());
    let flip = |bytes: &prost::bytes::Bytes, index: usize| {
        let mut changed = bytes.to_vec();
        changed[index] ^= 1;
        prost::bytes::Bytes::from(changed)
    };
    let envelopes: [fn(&mut Member) -> &mut Signed; 2] =
        [|member| member.delegation.as_mut().unwrap(), |member| &mut member.grants[0]];
    for envelope in envelopes {
        let mut member = east.member.clone();
        for index in 0..envelope(&mut member).message.len() {
            let mut member = east.member.clone();
            envelope(&mut member).message = flip(&envelope(&mut member).message, index);
            assert!(matches!(verify(&member), Err(MemberError::Signature(_))), "message byte {index}");
        }
        for index in 0..64 {
            let mut member = east.member.clone();
            envelope(&mut member).signature = flip(&envelope(&mut member).signature, index);
            assert!(matches!(verify(&member), Err(MemberError::Signature(_))), "signature byte {index}");
        }
    }
}

#[test]
fn grants_must_follow_each_other() {
    let keys = Keys::new();
    let good = delegation(&keys.token.public());
    let second = |after| grant(&keys.second.public(), after);
    let first = keys.first_grant();
    assert_eq!(keys.refused(&good, vec![]), MemberError::Missing("grants"));
    let rotated = keys.verify(&good, vec![first.clone(), keys.first.grant(&second(100))]).unwrap();
    assert_eq!(rotated.publish_keys(), 2);
    for (grants, expected) in [
        // Only the key before may name the next one.
        (vec![first.clone(), keys.token.grant(&second(100))], MemberError::Signature("grant")),
        (vec![first.clone(), keys.second.grant(&second(100))], MemberError::Signature("grant")),
        (vec![keys.first.grant(&grant(&keys.first.public(), 0))], MemberError::Signature("grant")),
        // Sequences of a key start above those of the key before.
        (vec![keys.token.grant(&grant(&keys.first.public(), 1))], MemberError::AfterSequence(0)),
        (vec![first.clone(), keys.first.grant(&second(0))], MemberError::AfterSequence(1)),
        // All of one membership.
        (
            vec![keys.token.grant(&PublishKeyGrant { generation: 4, ..grant(&keys.first.public(), 0) })],
            MemberError::Grant(0),
        ),
        (
            vec![keys.token.grant(&PublishKeyGrant { cluster: "west".to_owned(), ..grant(&keys.first.public(), 0) })],
            MemberError::Grant(0),
        ),
    ] {
        assert_eq!(keys.refused(&good, grants), expected);
    }
    let many = keys.refused(&good, vec![first; MAX_GRANTS + 1]);
    assert!(matches!(many, MemberError::Field(error) if error.field == "grants"));
}

#[test]
fn a_membership_supersedes_by_generation_then_by_rotation() {
    let keys = Keys::new();
    let with = |generation, rotated: bool| {
        let delegation = Delegation { generation, ..delegation(&keys.token.public()) };
        let of = |key: &PublicKey, after| PublishKeyGrant { generation, ..grant(key, after) };
        let mut grants = vec![keys.token.grant(&of(&keys.first.public(), 0))];
        if rotated {
            grants.push(keys.first.grant(&of(&keys.second.public(), 100)));
        }
        keys.verify(&delegation, grants).unwrap()
    };
    // Whoever has the token, though it was used, or the key before can grant another one: nobody who knows the first believes it.
    let forked = {
        let delegation = Delegation { generation: 5, ..delegation(&keys.token.public()) };
        let of = |key: &PublicKey, after| PublishKeyGrant { generation: 5, ..grant(key, after) };
        let [by_token, by_key, last] = [(); 3].map(|()| PublishKey::generate().unwrap());
        let (first, other) =
            (keys.token.grant(&of(&keys.first.public(), 0)), keys.token.grant(&of(&by_token.public(), 0)));
        let next = keys.first.grant(&of(&by_key.public(), 100));
        let (longer, longest) = (by_token.grant(&of(&last.public(), 100)), by_key.grant(&of(&last.public(), 200)));
        [vec![other.clone()], vec![other, longer], vec![first.clone(), next.clone()], vec![first, next, longest]]
            .map(|grants| keys.verify(&delegation, grants).unwrap())
    };
    let known = with(5, true);
    for (index, forked) in forked.iter().enumerate() {
        assert!(!forked.supersedes(&known) && !known.supersedes(forked), "chain {index}");
    }
    let order = [with(5, false), with(5, true), with(6, false)];
    for (i, a) in order.iter().enumerate() {
        for (j, b) in order.iter().enumerate() {
            assert_eq!(a.supersedes(b), i > j, "{i} over {j}");
        }
    }
}

#[test]
fn a_rotated_key_takes_over_where_it_says() {
    use crate::fixture::export_of;
    use federation_api::signing::Speaker;
    use federation_api::verify::RecordError;

    let east = East::new();
    let next = PublishKey::generate().unwrap();
    let mut member = east.member.clone();
    member.grants.push(rotate(&east.speaker.key, &east.verified, &next.public(), 100));
    let verified = verify_member(&east.root.public(), &federation(), &member, None).unwrap();
    assert_eq!(verified.joined(), east.verified.joined());
    let (key, payload) = export_of("shop", "cart");
    let next = Speaker {
        federation: federation(),
        cluster: crate::fixture::east(),
        generation: east.speaker.generation,
        key: next,
    };
    for (speaker, sequence, good) in [
        (&east.speaker, 1, true),
        (&east.speaker, 100, true),
        (&east.speaker, 101, false),
        (&next, 100, false),
        (&next, 101, true),
        (&next, u64::MAX, true),
    ] {
        let signed = speaker.sign(sequence, crate::fixture::created(), &key, &payload).unwrap();
        let expected = if good { Ok(sequence) } else { Err(RecordError::Sequence(sequence)) };
        assert_eq!(verified.verify(&signed).map(|statement| statement.sequence), expected);
    }
}
