//! Sets of records: what is newer, what is withheld, what may be forgotten.

use std::collections::BTreeSet;

use federation::RecordKey;
use federation_api::payload::Payload;
use federation_api::record::v1::{Statement, statement};
use federation_api::records::{Applied, Comparison, Head, HeadScope, Reconciled, RecordSet};
use federation_api::token::TokenRequest;
use federation_api::verify::VerifiedStatement;
use prost::Message as _;

use crate::fixture::{East, created, east, export_of, request, service};
use std::time::Duration;

fn key(text: &str) -> RecordKey {
    text.parse().unwrap()
}

fn shop() -> HeadScope {
    HeadScope::Namespace("shop".parse().unwrap())
}

impl East {
    fn export(&self, sequence: u64, name: &str) -> VerifiedStatement {
        let (key, payload) = export_of("shop", name);
        self.say(sequence, &key, &payload)
    }

    fn withdrawal(&self, sequence: u64, name: &str) -> VerifiedStatement {
        self.say(sequence, &export_of("shop", name).0, &Payload::Withdrawal)
    }

    fn heads(&self, sequence: u64, of: &RecordSet) -> VerifiedStatement {
        self.say(sequence, &RecordKey::Heads, &Payload::Heads(of.heads(&east())))
    }

    /// The same order with another value: what an honest cluster never says.
    fn contradiction(&self, of: &VerifiedStatement) -> VerifiedStatement {
        let mut statement = Statement::decode(of.signed.message.clone()).unwrap();
        if let Some(statement::Payload::Export(export)) = &mut statement.payload {
            export.service_accounts.push("attacker".to_owned());
        }
        self.verified.verify(&self.speaker.key.sign_statement(&statement)).unwrap()
    }
}

fn set(statements: impl IntoIterator<Item = VerifiedStatement>) -> RecordSet {
    let mut set = RecordSet::new();
    for statement in statements {
        assert_eq!(set.apply(statement), Applied::New);
    }
    set
}

#[test]
fn only_a_higher_position_is_news() {
    let first = East::new();
    let held = first.export(10, "cart");
    let later = East::delegated(TokenRequest { created: created() + Duration::from_secs(1), ..request() });
    for (name, statement, expected) in [
        ("higher sequence", first.export(11, "cart"), Applied::New),
        ("withdrawal", first.withdrawal(11, "cart"), Applied::New),
        ("the same again", held.clone(), Applied::Same),
        ("lower sequence", first.export(9, "cart"), Applied::Stale),
        ("replayed withdrawal", first.withdrawal(9, "cart"), Applied::Stale),
        ("same sequence, other content", first.contradiction(&held), Applied::Equivocation),
        ("same sequence, withdrawn", first.withdrawal(10, "cart"), Applied::Equivocation),
        ("another key", first.export(9, "other"), Applied::New),
        ("later generation, lower sequence", later.export(1, "cart"), Applied::New),
    ] {
        let mut records = set([held.clone()]);
        assert_eq!(records.check(&statement), expected, "{name}");
        assert_eq!(records.apply(statement.clone()), expected, "{name}");
        let now = records.record(&east(), &statement.key).unwrap();
        assert_eq!(*now == statement, matches!(expected, Applied::New | Applied::Same), "{name}");
    }
    let mut records = set([later.export(1, "cart")]);
    assert_eq!(records.apply(first.export(99, "cart")), Applied::Stale, "an older membership");
}

#[test]
fn a_withdrawn_value_cannot_be_replayed() {
    let east_ = East::new();
    let mut records = set([east_.export(1, "cart"), east_.withdrawal(2, "cart")]);
    assert_eq!(records.apply(east_.export(1, "cart")), Applied::Stale);
    assert_eq!(records.exports(&service("shop", "cart")).count(), 0);
    assert_eq!(records.apply(east_.export(3, "cart")), Applied::New);
    assert_eq!(records.exports(&service("shop", "cart")).count(), 1);
}

#[test]
fn lookups_see_live_values_only() {
    let east_ = East::new();
    let records = set([east_.export(1, "cart"), east_.export(2, "old"), east_.withdrawal(3, "old")]);
    assert_eq!(records.services(), BTreeSet::from([&service("shop", "cart")]));
    assert_eq!(records.exports(&service("shop", "cart")).map(|(cluster, _)| cluster).collect::<Vec<_>>(), [&east()]);
    assert_eq!(records.of_cluster(&east()).count(), 2, "the withdrawal is held");
    assert!(records.gateways(&east()).is_empty());
    assert_eq!(records.clusters().collect::<Vec<_>>(), [&east()]);
}

#[test]
fn a_heads_digest_is_sha256_over_keys_and_sequences() {
    let (a, b) = (key("exports/shop/a"), key("exports/shop/b"));
    let bytes =
        [b"exports/shop/a\0".as_slice(), &7_u64.to_be_bytes(), b"exports/shop/b\0", &9_u64.to_be_bytes()].concat();
    let expected = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes);
    for order in [[(&a, 7), (&b, 9)], [(&b, 9), (&a, 7)]] {
        let head = Head::of(shop(), order);
        assert_eq!((head.count, head.digest.as_slice()), (2, expected.as_ref()));
    }
}

#[test]
fn heads_show_what_is_withheld() {
    let east_ = East::new();
    let (cart, pay) = (east_.export(1, "cart"), east_.export(2, "pay"));
    let owner = set([cart.clone(), pay.clone()]);
    let heads = east_.heads(3, &owner);
    let gone = [cart.clone(), pay.clone(), east_.withdrawal(4, "pay")];
    let heads_after = east_.heads(5, &set(gone.clone()));
    for (name, held, expected) in [
        ("no heads", vec![cart.clone(), pay.clone()], Comparison::Unknown),
        ("all", vec![cart.clone(), pay.clone(), heads.clone()], Comparison::Agrees),
        ("a record withheld", vec![cart.clone(), heads.clone()], Comparison::Differs),
        (
            "an older value given",
            vec![cart.clone(), pay.clone(), east_.heads(9, &set([cart.clone(), east_.export(8, "pay")]))],
            Comparison::Differs,
        ),
        ("a withdrawal withheld", vec![cart.clone(), pay.clone(), heads_after.clone()], Comparison::Differs),
        ("a withdrawal given", gone.into_iter().chain([heads_after]).collect(), Comparison::Agrees),
        ("newer than the heads", vec![cart, east_.export(8, "pay"), heads], Comparison::Ahead),
    ] {
        assert_eq!(set(held).compare(&east(), &shop()), expected, "{name}");
    }
}

#[test]
fn a_scope_that_the_heads_do_not_list_has_nothing_live() {
    let east_ = East::new();
    let records = set([east_.export(1, "cart"), east_.heads(2, &RecordSet::new())]);
    assert_eq!(records.compare(&east(), &shop()), Comparison::Differs);
    assert_eq!(records.compare(&east(), &HeadScope::Cluster), Comparison::Agrees);
}

#[test]
fn a_key_missing_from_a_snapshot_goes_only_when_the_owners_heads_agree() {
    let east_ = East::new();
    let (cart, pay) = (east_.export(1, "cart"), east_.export(2, "pay"));
    let both = east_.heads(4, &set([cart.clone(), pay.clone()]));
    let only_cart = east_.heads(4, &set([cart.clone()]));
    let cart_only: BTreeSet<_> = [cart.key.clone()].into();
    let none = BTreeSet::new();
    let dropped = |keys: &[&VerifiedStatement]| Reconciled::Dropped(keys.iter().map(|it| it.key.clone()).collect());
    for (name, heads, present, expected) in [
        ("the owner says both live", Some(&both), &cart_only, Reconciled::Kept),
        ("the owner says one is gone", Some(&only_cart), &cart_only, dropped(&[&pay])),
        ("the snapshot lacks more than the owner says", Some(&only_cart), &none, Reconciled::Kept),
        ("no word of the owner", None, &cart_only, Reconciled::Kept),
    ] {
        let mut records = set([cart.clone(), pay.clone()].into_iter().chain(heads.cloned()));
        assert_eq!(records.reconcile(&east(), &shop(), present), expected, "{name}");
        let left = records.services().len();
        assert_eq!(left, if expected == Reconciled::Kept { 2 } else { 1 }, "{name}");
        if expected != Reconciled::Kept {
            assert_eq!(records.apply(pay.clone()), Applied::Stale, "what was dropped cannot be replayed");
            assert_eq!(records.apply(east_.export(5, "pay")), Applied::New, "but said anew");
        }
    }
}

#[test]
fn what_is_newer_than_the_heads_survives_a_snapshot() {
    let east_ = East::new();
    let cart = east_.export(1, "cart");
    let heads = east_.heads(2, &set([cart.clone()]));
    let mut records = set([cart.clone(), heads, east_.export(3, "pay")]);
    let present = [cart.key].into();
    assert_eq!(records.reconcile(&east(), &shop(), &present), Reconciled::Dropped(vec![]));
    assert_eq!(records.services().len(), 2);
}

#[test]
fn an_older_word_counts_only_where_newer_heads_list_just_it() {
    let east_ = East::new();
    let (old, lost) = (east_.export(2, "cart"), east_.export(5, "cart"));
    let (present, older) = ([old.key.clone()].into(), [(old.key.clone(), old.clone())].into());
    let (of_old, of_lost) = (set([old.clone()]), set([lost.clone()]));
    for (name, heads, back) in [
        ("newer heads list it", east_.heads(6, &of_old), true),
        ("they list what is held", east_.heads(6, &of_lost), false),
        ("they are older than what is held", east_.heads(4, &of_old), false),
    ] {
        let mut records = set([lost.clone(), heads]);
        let settled = records.settle(&east(), &shop(), &present, &older);
        let expected = if back { Reconciled::Dropped(vec![old.key.clone()]) } else { Reconciled::Kept };
        assert_eq!(settled, expected, "{name}");
        let held = records.record(&east(), &old.key).unwrap();
        assert_eq!(held.sequence, if back { 2 } else { 5 }, "{name}");
        assert_eq!(records.apply(lost.clone()), if back { Applied::Stale } else { Applied::Same }, "{name}");
    }
}

#[test]
fn forgotten_withdrawals_still_stop_replays() {
    let east_ = East::new();
    let (cart, pay) = (east_.export(1, "cart"), east_.export(2, "pay"));
    let mut records = set([cart.clone(), pay.clone(), east_.withdrawal(3, "pay")]);
    assert_eq!(records.forget_withdrawals(&east(), &shop()), 0, "no heads yet");
    records.apply(east_.heads(4, &set([cart])));
    records.apply(east_.withdrawal(5, "later"));
    assert_eq!(records.forget_withdrawals(&east(), &shop()), 1, "the one that is newer than the heads stays");
    assert_eq!(records.record(&east(), &pay.key), None);
    assert_eq!(records.apply(pay), Applied::Stale);
    assert_eq!(records.apply(east_.export(6, "pay")), Applied::New);
}

#[test]
fn a_replaced_memberships_records_go_when_the_new_ones_heads_say_so() {
    let first = East::new();
    let later = East::delegated(TokenRequest { created: created() + Duration::from_secs(1), ..request() });
    let (old, new) = (first.export(1, "old"), later.export(1, "new"));
    let mut records = set([old.clone(), new.clone()]);
    assert_eq!(records.drop_replaced(&east(), &shop()), Reconciled::Kept);
    records.apply(later.heads(2, &set([new])));
    assert_eq!(records.drop_replaced(&east(), &shop()), Reconciled::Dropped(vec![old.key]));
    assert_eq!(records.compare(&east(), &shop()), Comparison::Agrees);
}

#[test]
fn an_eviction_takes_the_evicted_generations_only() {
    let first = East::new();
    let later = East::delegated(TokenRequest { created: created() + Duration::from_secs(1), ..request() });
    let mut records = set([first.export(1, "old"), later.export(1, "new")]);
    let dropped = records.evict(&east(), first.speaker.generation);
    assert_eq!(dropped.iter().map(|it| it.key.to_string()).collect::<Vec<_>>(), ["exports/shop/old"]);
    assert_eq!(records.iter().count(), 1);
    assert_eq!(records.evict(&east(), u64::MAX).len(), 1);
    assert_eq!(records.clusters().count(), 0);
}

#[test]
fn heads_that_list_nothing_of_a_scope_keep_older_values_of_it_out() {
    // As after a restart: nothing of the scope is left, and no floor is known.
    let east_ = East::new();
    let mut records = set([east_.heads(5, &RecordSet::new())]);
    assert_eq!(records.apply(east_.export(4, "cart")), Applied::Stale);
    assert_eq!(records.apply(east_.withdrawal(3, "pay")), Applied::New, "it takes nothing back");
    assert_eq!(records.services().len(), 0);
    assert_eq!(records.apply(east_.export(6, "cart")), Applied::New, "said since");
    let mut listed = set([east_.heads(5, &set([east_.export(4, "cart")]))]);
    assert_eq!(listed.apply(east_.export(4, "cart")), Applied::New);
}
