//! What operators do, and that nobody else does it.

use std::time::{Duration, SystemTime};

use federation_api::client::trust::operations::{
    fetch_deny_list, list_members, list_tokens, put_deny_list, read_audit, register_token, revoke_token,
    rotate_authority,
};
use federation_api::client::trust::{TrustCursor, list_watchers, renew};
use federation_api::record::v1::Signed;
use federation_api::signing::MembershipRoot;
use federation_api::trust::v1::rotate_authority_request::Step;
use federation_api::trust::v1::token_state::Use;
use federation_api::verify::DenyList;
use federation_store::EmbeddedStore;
use mesh_tls::{Identity, new_key_and_csr};
use prost::Message;
use tonic::{Code, Status};
use trust_bundle::audit::{AuditLog, Note};

use crate::cluster::{Attempt, control_plane};
use crate::plane::{HOUR, Plane, Shut, assert_ended, assert_refused, domain};

/// Every call of the operators' face; each with something that it would take from one.
async fn call_all(plane: &Plane, caller: Option<&Identity>, epoch: u64) -> Vec<(&'static str, Result<(), Status>)> {
    let channel = || plane.channel(caller);
    let token = plane.token("north", SystemTime::now());
    let delegation = token.signed_delegation().unwrap().clone();
    vec![
        ("PutDenyList", put_deny_list(channel(), plane.deny_list(epoch, &[])).await.map(drop)),
        ("FetchDenyList", fetch_deny_list(channel()).await.map(drop)),
        ("RegisterToken", register_token(channel(), delegation).await),
        ("ListTokens", list_tokens(channel()).await.map(drop)),
        ("RevokeToken", revoke_token(channel(), token.id()).await),
        ("ListMembers", list_members(channel()).await.map(drop)),
        ("ReadAudit", read_audit(channel(), 0, drop).await),
        ("RotateAuthority", rotate_authority(channel(), Step::Show).await.map(drop)),
    ]
}

#[tokio::test]
async fn only_operators_operate() {
    let plane = Plane::start().await;
    let east = plane.join("east").await;
    let before = plane.stored().await;
    for (call, outcome) in call_all(&plane, Some(&east.identity), 1).await {
        assert_refused(outcome, Code::PermissionDenied, "is no operator");
        assert_eq!(plane.stored().await, before, "{call}");
    }
    for (_, outcome) in call_all(&plane, Some(&plane.federator()), 1).await {
        assert_refused(outcome, Code::PermissionDenied, "is no operator");
    }
    for (_, outcome) in call_all(&plane, None, 1).await {
        assert_refused(outcome, Code::Unauthenticated, "client certificate");
    }
    assert_eq!(plane.stored().await, before);
    for (call, outcome) in call_all(&plane, Some(&plane.operator()), 1).await {
        assert!(outcome.is_ok(), "{call}: {outcome:?}");
    }
    // Unless another operator shut this one out.
    let admin = plane.operator().spiffe_id().unwrap().to_string();
    plane.store_deny_list(2, &[Shut::Identity(&admin)]).await;
    let mut watcher = plane.watch(&east.identity, TrustCursor::default());
    watcher.update().await;
    for (_, outcome) in call_all(&plane, Some(&plane.operator()), 3).await {
        assert_refused(outcome, Code::PermissionDenied, "is quarantined");
    }
}

#[tokio::test]
async fn a_deny_list_is_the_roots_word_and_only_grows() {
    let plane = Plane::start().await;
    let (east, west) = (plane.join("east").await, plane.join("west").await);
    let mut of_east = plane.watch(&east.identity, TrustCursor::default());
    let mut of_west = plane.watch(&west.identity, TrustCursor::default());
    of_east.update().await;
    of_west.update().await;
    assert_eq!(fetch_deny_list(plane.operations()).await.unwrap(), None);

    let quarantine = plane.deny_list(5, &[Shut::Cluster("east")]);
    let epoch = put_deny_list(plane.operations(), quarantine.clone()).await.unwrap();
    assert_eq!(put_deny_list(plane.operations(), quarantine.clone()).await.unwrap(), epoch, "the same again");
    let told = of_west.update().await;
    assert_eq!((told.epoch, told.deny_list.as_ref()), (epoch, Some(&quarantine)));
    assert_ended(&of_east.end().await, Code::PermissionDenied, "quarantined");
    assert_eq!(fetch_deny_list(plane.operations()).await.unwrap(), Some(quarantine.clone()));

    let stranger = MembershipRoot::generate().unwrap();
    let mut list = DenyList::empty(domain());
    list.epoch = 6;
    let mut foreign = DenyList::empty("other.example".parse().unwrap());
    foreign.epoch = 6;
    for (list, code, words) in [
        (plane.deny_list(4, &[]), Code::FailedPrecondition, "has epoch 4, the one in force has 5"),
        (plane.deny_list(5, &[]), Code::FailedPrecondition, "has epoch 5, the one in force has 5"),
        (stranger.deny(&list.to_wire()), Code::Unauthenticated, "signature"),
        (plane.root.deny(&foreign.to_wire()), Code::InvalidArgument, "other.example"),
        (Signed { message: vec![0; 600_000].into(), ..Signed::default() }, Code::InvalidArgument, "allowed are"),
    ] {
        assert_refused(put_deny_list(plane.operations(), list).await, code, words);
        assert_eq!(plane.stored().await["quarantine"], quarantine.encode_to_vec(), "{words}");
    }
    put_deny_list(plane.operations(), plane.root.deny(&list.to_wire())).await.unwrap();
    assert!(of_east.update_again().await.deny_list.is_some(), "released, it comes back by itself");
}

#[tokio::test]
async fn a_quarantined_cluster_cannot_lift_its_quarantine_and_neither_does_a_restart() {
    let plane = Plane::start().await;
    let released = plane.deny_list(1, &[]);
    put_deny_list(plane.operations(), released.clone()).await.unwrap();
    let east = plane.join("east").await;
    put_deny_list(plane.operations(), plane.deny_list(2, &[Shut::Cluster("east")])).await.unwrap();
    let plane = plane.restart().await;
    // With its own certificate, with one that claims an operator under a root of its own, and with an old list.
    for caller in [Some(&east.identity), None] {
        assert!(put_deny_list(plane.channel(caller), plane.deny_list(3, &[])).await.is_err());
    }
    let replayed = put_deny_list(plane.operations(), released).await;
    assert_refused(replayed, Code::FailedPrecondition, "has epoch 1, the one in force has 2");
    let newer = plane.token("east", SystemTime::now() + Duration::from_millis(1));
    assert_refused(plane.send(&Attempt::new(&newer)).await, Code::PermissionDenied, "quarantined");
    let csr = new_key_and_csr().unwrap().1;
    let refused = renew(plane.channel(Some(&east.identity)), csr).await;
    assert_refused(refused, Code::PermissionDenied, "cluster east is quarantined");
    put_deny_list(plane.operations(), plane.deny_list(3, &[])).await.unwrap();
    plane.watch(&east.identity, TrustCursor::default()).update_again().await;
}

#[tokio::test]
async fn tokens_are_listed_as_they_stand_and_a_revoked_one_joins_nobody() {
    let plane = Plane::start().await;
    let now = SystemTime::now();
    let (used, revoked) = (plane.token("east", now), plane.token("west", now));
    let (unknown, expired) = (plane.token("north", now), plane.token("south", now - 2 * HOUR));
    for token in [&used, &revoked, &expired] {
        register_token(plane.operations(), token.signed_delegation().unwrap().clone()).await.unwrap();
    }
    let uses = async || {
        let tokens = list_tokens(plane.operations()).await.unwrap();
        let mut uses: Vec<_> = tokens.into_iter().map(|token| (token.id.clone(), token.r#use())).collect();
        uses.sort();
        uses
    };
    let sorted = |mut uses: Vec<_>| {
        uses.sort();
        uses
    };
    let (unused, over) = (Use::Unused, Use::Expired);
    assert_eq!(uses().await, sorted(vec![(used.id(), unused), (revoked.id(), unused), (expired.id(), over)]));

    plane.join_with(&used).await;
    // What was used or revoked does not become new by being made known again.
    revoke_token(plane.operations(), revoked.id()).await.unwrap();
    revoke_token(plane.operations(), revoked.id()).await.unwrap();
    revoke_token(plane.operations(), unknown.id()).await.unwrap();
    for token in [&used, &revoked, &unknown] {
        register_token(plane.operations(), token.signed_delegation().unwrap().clone()).await.unwrap();
    }
    let expected =
        vec![(used.id(), Use::Used), (revoked.id(), Use::Revoked), (unknown.id(), Use::Revoked), (expired.id(), over)];
    assert_eq!(uses().await, sorted(expected));
    for token in [&revoked, &unknown] {
        assert_refused(plane.send(&Attempt::new(token)).await, Code::FailedPrecondition, "was revoked");
    }
    let spent = revoke_token(plane.operations(), used.id()).await;
    assert_refused(spent, Code::FailedPrecondition, "evict its cluster");
    assert_refused(revoke_token(plane.operations(), "x".to_owned()).await, Code::InvalidArgument, "id: ");
    let foreign = MembershipRoot::generate().unwrap().delegate(&Default::default());
    assert_refused(register_token(plane.operations(), foreign).await, Code::Unauthenticated, "signature");
    // The twin of the revoked one.
    assert_eq!(plane.join_with(&plane.token("west", now)).await.id(), control_plane("west"));
}

#[tokio::test]
async fn members_are_listed_with_what_they_said_and_how_far_they_are() {
    let plane = Plane::start().await;
    let (east, _west) = (plane.join("east").await, plane.join("west").await);
    let mut watcher = plane.watch(&east.identity, TrustCursor::default());
    let applied = watcher.update().await.cursor();
    watcher.acks.applied(applied.clone(), vec!["cart-7".to_owned()], 3);
    put_deny_list(plane.operations(), plane.deny_list(1, &[Shut::Cluster("west")])).await.unwrap();
    watcher.update().await;
    let members = crate::plane::within("the acknowledgement", async {
        loop {
            let members = list_members(plane.operations()).await.unwrap();
            if members[0].watchers.iter().any(|watcher| watcher.acknowledged == applied.epoch) {
                return members;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_eq!((members.len(), members[0].quarantined, members[1].quarantined), (2, false, true));
    assert_eq!((members[0].member.as_ref(), members[0].bundle.as_ref()), (Some(&east.member), Some(&east.bundle)));
    let [shown] = members[0].watchers.as_slice() else { panic!("{:?}", members[0].watchers) };
    assert_eq!((shown.identity.clone(), shown.connected, shown.pending_count), (east.id().to_string(), true, 1));
    assert_eq!(shown.pending_proxies, ["cart-7"]);
    drop(watcher);
    crate::plane::within("its going away", async {
        while list_watchers(plane.operations()).await.unwrap().watchers.iter().any(|watcher| watcher.connected) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let gone = list_watchers(plane.operations()).await.unwrap().watchers;
    assert_eq!((gone.len(), gone[0].acknowledged), (1, applied.epoch), "it is remembered");
}

#[tokio::test]
async fn every_change_and_every_refused_change_is_recorded_over_restarts() {
    let plane = Plane::start().await;
    let token = plane.token("east", SystemTime::now());
    let east = plane.join_with(&token).await;
    assert!(plane.send(&Attempt::new(&token)).await.is_err());
    let csr = new_key_and_csr().unwrap().1;
    renew(plane.channel(Some(&east.identity)), csr).await.unwrap();
    assert!(put_deny_list(plane.channel(Some(&east.identity)), plane.deny_list(9, &[])).await.is_err());
    put_deny_list(plane.operations(), plane.deny_list(1, &[Shut::Cluster("west")])).await.unwrap();
    let plane = plane.restart().await;
    revoke_token(plane.operations(), plane.token("west", SystemTime::now()).id()).await.unwrap();
    let entries = plane.audit().await;
    let (admin, east_id) = (plane.operator().spiffe_id().unwrap().to_string(), east.id().to_string());
    let told: Vec<_> = entries.iter().map(|it| (it.who.as_str(), it.action.as_str(), it.refused.is_empty())).collect();
    assert_eq!(told[0], (token.id().as_str(), "member.joined", true));
    assert_eq!((told[1].1, told[1].2), ("member.joined", false));
    assert_eq!(
        told[2..],
        [
            (east_id.as_str(), "certificate.renewed", true),
            (east_id.as_str(), "deny-list.put", false),
            (admin.as_str(), "deny-list.put", true),
            (admin.as_str(), "token.revoked", true),
        ]
    );
    assert!(entries[4].detail.contains("quarantined west"), "{}", entries[4].detail);
    assert_eq!(entries.iter().map(|entry| entry.number).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
}

#[tokio::test]
async fn the_audit_record_is_read_in_pages_and_written_by_many_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(directory.path().join("store")).await.unwrap();
    let audit = AuditLog::new(store.clone());
    let note = |number: u64| Note {
        who: "admin".to_owned(),
        action: "token.revoked",
        subject: number.to_string(),
        detail: "x".repeat(10_000),
    };
    futures_util::future::try_join_all((0..20).map(|number| {
        let audit = &audit;
        let note = note(number);
        async move { audit.done(&note).await }
    }))
    .await
    .unwrap();
    for number in 20..450 {
        audit.done(&note(number)).await.unwrap();
    }
    let (mut after, mut chain, mut pages) = (0, federation_api::audit::Chain::default(), 0);
    loop {
        let page = audit.after(after).await.unwrap();
        let Some(last) = page.last() else { break };
        assert!(page.len() <= 200 && page.iter().all(|entry| entry.detail.len() <= 500));
        page.iter().for_each(|entry| chain.follow(entry).unwrap());
        after = last.number;
        pages += 1;
    }
    assert_eq!((after, pages), (450, 3));
    store.close().await;
}
