//! Every key of a cluster is replaced while others listen, and crashes come in between.

use std::time::{Duration, SystemTime};

use control_plane::config::Config;
use federation_api::discovery::v1::ProxyKind;
use federation_api::discovery::v1::resource::Resource as Content;
use federation_api::payload::Payload;
use federation_api::record::v1::{Signed, Statement};
use federation_api::verify::{VerifiedMember, verify_member};
use prost::Message as _;
use serde_json::{Value, json};
use spiffe_identity::{Bundle, pem};

use crate::federation_fake::Fake;
use crate::member::federation;
use crate::program::{EXPORT, Program, SHOP};
use crate::proxy::{Proxy, identity, options};

const WEST: &str = "spiffe://mesh.example/cluster/west/control-plane";

/// As short as the configuration allows.
fn quick(config: &mut Config) {
    config.svid_lifetime = Duration::from_secs(4);
    config.rotation.refresh_hint = Duration::from_secs(1);
    config.rotation.skew = Duration::ZERO;
}

async fn rotation(program: &Program, key: &str) -> Value {
    let answer = program.get("/v1/rotations").await;
    answer["rotations"].as_array().unwrap().iter().find(|it| it["key"] == key).unwrap().clone()
}

async fn until_phase(program: &Program, key: &str, phase: &str) -> Value {
    let reached = async |it: &Program| Some(rotation(it, key).await).filter(|it| it["phase"] == phase);
    program.until(&format!("{key} at {phase}"), reached).await
}

async fn rotate(program: &Program, body: Value) -> (u16, Value) {
    program.request("POST", "/v1/rotations", &body.to_string()).await.unwrap()
}

fn pins(program: &Program) -> usize {
    pem::certificates_from_pem(&std::fs::read(program.directory.join("state/root.crt")).unwrap()).unwrap().len()
}

fn member(fake: &Fake) -> VerifiedMember {
    verify_member(&fake.root.public(), &federation(), &fake.member("east").unwrap(), None).unwrap()
}

fn bundle(fake: &Fake) -> Bundle {
    let statement = member(fake).verify(&fake.bundle_of("east").unwrap()).unwrap();
    let Payload::Bundle { trust_domain, jwks } = statement.payload else { panic!("no bundle") };
    Bundle::from_jwks(trust_domain.parse().unwrap(), &jwks).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_is_replaced_once_everybody_knows_the_next_one() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::start().await;
    fake.set_watcher(WEST, 0, &[]);
    let program = Program::start_with(directory.path(), quick).await;
    program.write("shop.yaml", SHOP);
    program.join(&fake.token("east").to_string()).await;
    let before = bundle(&fake);
    let workload = identity(&program, "shop", "cart").await;
    let mut proxy = Proxy::watch(&program, &workload, ProxyKind::Sidecar, options("cart-0"));
    let roots =
        |count: usize| move |it: &Content| matches!(it, Content::TrustBundle(it) if it.x509_authorities.len() == count);
    proxy.until("trust/east.mesh.example", roots(1)).await;

    let (status, _) = rotate(&program, json!({"key": "root"})).await;
    assert_eq!(status, 200);
    let (status, answer) = rotate(&program, json!({"key": "root"})).await;
    assert_eq!((status, answer["error"].as_str()), (409, Some("a rotation is under way already")));
    let waits_for = async |names: &[&str]| {
        let names = json!(names);
        program
            .until(&format!("it waits for {names}"), async |it| {
                let status = rotation(it, "root").await;
                (status["phase"] == "spread" && status["waitingFor"] == names).then_some(())
            })
            .await;
    };
    waits_for(&["cluster/west/control-plane", "sidecar cart-0"]).await;
    assert_eq!(pins(&program), 2, "a proxy that starts now is to know both");
    let spread = bundle(&fake);
    assert!(spread.x509_authorities.len() == 2 && spread.sequence > before.sequence);
    proxy.until("trust/east.mesh.example", roots(2)).await;
    waits_for(&["cluster/west/control-plane"]).await;
    fake.set_watcher(WEST, fake.epoch(), &["gw-1", "frontend-0"]);
    waits_for(&["cluster/west/control-plane: gw-1, frontend-0"]).await;
    fake.set_watcher(WEST, u64::MAX, &[]);
    until_phase(&program, "root", "drain").await;
    // Like any proxy, it has another SVID before the old root goes.
    let workload = identity(&program, "shop", "cart").await;
    let mut proxy = Proxy::watch(&program, &workload, ProxyKind::Sidecar, options("cart-0"));
    proxy.until("trust/east.mesh.example", roots(2)).await;
    proxy.until("trust/east.mesh.example", roots(1)).await;
    until_phase(&program, "root", "idle").await;
    let after = bundle(&fake);
    assert!(after.sequence > spread.sequence && after.x509_authorities != before.x509_authorities);
    assert_eq!((after.x509_authorities.len(), pins(&program)), (1, 1));
    program.stop().await;

    let program = Program::start_with(directory.path(), quick).await;
    let sequence =
        async |it: &Program| it.get("/v1/status").await["authority"]["sequence"].as_u64().filter(|it| *it > 0);
    let sequence = program.until("the own bundle", sequence).await;
    assert_eq!(sequence, after.sequence, "a restart makes no other bundle");
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_goes_on_after_a_crash_in_any_phase() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::start().await;
    fake.set_watcher(WEST, 0, &[]);
    let program = Program::start_with(directory.path(), quick).await;
    program.join(&fake.token("east").to_string()).await;
    let before = bundle(&fake);
    fake.stop();
    rotate(&program, json!({"key": "root", "emergency": false})).await;
    program
        .until("nobody to tell", async |it| {
            let status = rotation(it, "root").await;
            (status["phase"] == "publish").then_some(())
        })
        .await;
    let mut program = crashed(program).await;
    fake.serve().await;
    for phase in ["spread", "drain", "settle"] {
        if phase == "drain" {
            fake.set_watcher(WEST, u64::MAX, &[]);
        }
        if phase == "settle" {
            // It has to say again what it knows.
            fake.set_watcher(WEST, 0, &[]);
        }
        until_phase(&program, "root", phase).await;
        program = crashed(program).await;
    }
    fake.set_watcher(WEST, u64::MAX, &[]);
    until_phase(&program, "root", "idle").await;
    let after = bundle(&fake);
    assert_eq!(after.x509_authorities.len(), 1);
    assert!(after.x509_authorities != before.x509_authorities && after.sequence > before.sequence);
    program.stop().await;
}

async fn crashed(program: Program) -> Program {
    let directory = program.directory.clone();
    program.crash().await;
    Program::start_with(&directory, quick).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_is_given_up_before_the_next_root_signs_and_hurried_in_an_emergency() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::start().await;
    fake.set_watcher(WEST, 0, &[]);
    let program = Program::start_with(directory.path(), quick).await;
    program.join(&fake.token("east").to_string()).await;
    let before = bundle(&fake);
    let cancel = async || program.request("DELETE", "/v1/rotations/root", "").await.unwrap().0;
    assert_eq!(cancel().await, 409, "there is nothing to give up");
    rotate(&program, json!({"key": "root"})).await;
    until_phase(&program, "root", "spread").await;
    assert_eq!(cancel().await, 200);
    program
        .until("one root again", async |_| {
            (bundle(&fake).x509_authorities == before.x509_authorities && pins(&program) == 1).then_some(())
        })
        .await;
    rotate(&program, json!({"key": "root"})).await;
    until_phase(&program, "root", "spread").await;
    assert_eq!(rotate(&program, json!({"key": "root", "emergency": true})).await.0, 200);
    until_phase(&program, "root", "idle").await;
    let after = bundle(&fake);
    assert!(after.x509_authorities.len() == 1 && after.x509_authorities != before.x509_authorities);
    assert_eq!(rotate(&program, json!({"key": "intermediate"})).await.0, 200);
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_key_is_replaced_and_no_record_is_lost_over_a_crash() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::start().await;
    fake.set_watcher(WEST, 0, &[]);
    let program = Program::start(directory.path()).await;
    assert_eq!(rotate(&program, json!({"key": "publish-key"})).await.0, 409, "it is no member");
    program.write("shop.yaml", &format!("{SHOP}---\n{EXPORT}"));
    program.join(&fake.token("east").to_string()).await;
    let published = async |program: &Program, alive: bool| {
        program
            .until("the export", async |_| {
                let records = fake.records("east");
                let said = records.iter().map(|it| Statement::decode(it.message.as_ref()).unwrap());
                let export = said.filter(|it| it.key == "exports/shop/cart").last()?;
                let withdrawn =
                    matches!(export.payload, Some(federation_api::record::v1::statement::Payload::Withdrawal(_)));
                (withdrawn != alive).then_some(())
            })
            .await;
    };
    published(&program, true).await;
    assert_eq!(rotate(&program, json!({"key": "publish-key"})).await.0, 200);
    program
        .until("west to be waited for", async |it| {
            let status = rotation(it, "publish-key").await;
            (status["phase"] == "spread" && status["waitingFor"] == json!(["cluster/west/control-plane"])).then_some(())
        })
        .await;
    program.crash().await;
    let program = Program::start(directory.path()).await;
    until_phase(&program, "publish-key", "spread").await;
    fake.set_watcher(WEST, u64::MAX, &[]);
    until_phase(&program, "publish-key", "idle").await;
    let member = member(&fake);
    assert_eq!(member.publish_keys(), 2);
    program.write("shop.yaml", SHOP);
    published(&program, false).await;
    let verified: Vec<_> = fake.records("east").iter().map(|it: &Signed| member.verify(it)).collect();
    assert!(!verified.is_empty() && verified.iter().all(Result::is_ok), "{verified:?}");

    assert_eq!(rotate(&program, json!({"key": "publish-key", "emergency": true})).await.0, 200);
    until_phase(&program, "publish-key", "idle").await;
    assert_eq!(crate::rotation::member(&fake).publish_keys(), 3);
    program.write("shop.yaml", &format!("{SHOP}---\n{EXPORT}"));
    published(&program, true).await;
    let member = crate::rotation::member(&fake);
    assert!(fake.records("east").iter().all(|it| member.verify(it).is_ok()));
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_root_needs_its_sealing_key_and_a_missing_one_raises_an_alarm() {
    let directory = tempfile::tempdir().unwrap();
    let key = directory.path().join("sealing.key");
    std::fs::write(&key, svid_issuer::SealingKey::generate().unwrap().1).unwrap();
    let program =
        Program::start_with(directory.path(), |config| config.authority.sealing_key_file = Some(key.clone())).await;
    let text = std::fs::read_to_string(directory.path().join("state/ca.key")).unwrap();
    assert!(text.starts_with("isthmus sealed key"), "{text}");
    assert_eq!(program.get("/v1/status").await["authority"]["problem"], Value::Null);
    let away = directory.path().join("away");
    std::fs::rename(directory.path().join("state/ca.key"), &away).unwrap();
    let (status, answer) = rotate(&program, json!({"key": "intermediate"})).await;
    assert!(status == 500 && answer["error"].as_str().unwrap().contains("ca.key"), "{answer}");
    std::fs::rename(away, directory.path().join("state/ca.key")).unwrap();
    assert_eq!(rotate(&program, json!({"key": "intermediate"})).await.0, 200);
    let until = program.get("/v1/status").await["authority"]["intermediateNotAfter"].clone();
    assert!(until.as_str().unwrap() > jiff_now().as_str(), "{until}");
    program.stop().await;
}

/// RFC 3339, comparable as text.
fn jiff_now() -> String {
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    jiff::Timestamp::from_second(i64::try_from(seconds).unwrap()).unwrap().to_string()
}
