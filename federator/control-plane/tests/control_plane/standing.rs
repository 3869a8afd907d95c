//! Memberships that end, and begin again: by the cluster's own word, the operator's, or a later token.

use std::path::Path;

use federation::RecordKey;
use federation_api::payload::Payload;
use federation_api::verify::DenyList;
use serde_json::Value;

use crate::federation_fake::Fake;
use crate::member::{Peer, cluster, federation};
use crate::program::{EXPORT, PATIENCE, Program, SHOP};

async fn until_status(program: &Program, what: &str, check: impl Fn(&Value) -> bool) -> Value {
    program.until(what, async |it| Some(it.get("/v1/status").await).filter(|status| check(status))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_leaves_withdraws_everything_first_and_joins_again_with_a_new_token() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::start().await;
    let program = Program::start(directory.path()).await;
    assert_eq!(program.request("POST", "/v1/leave", "").await.unwrap().0, 409, "it is no member");
    program.write("shop.yaml", &format!("{SHOP}---\n{EXPORT}"));
    program.join(&fake.token("east").to_string()).await;
    let mut west = Peer::new(&fake.root, "west");
    fake.add("west", &mut west);
    let records = vec![west.export("shop/cart", |_| {}), west.heads()];
    fake.publish(records);
    let exporters = |import: &Value| import["clusters"].as_array().unwrap().len();
    program.until_import("cart", |import| exporters(import) == 2).await;

    assert_eq!(program.request("POST", "/v1/leave", "").await.unwrap().0, 200);
    let left = until_status(&program, "the end", |status| status["joined"] == false).await;
    assert_eq!((&left["leaving"], &left["standing"]), (&Value::Bool(false), &Value::Null));
    assert_eq!(fake.departures(), 1);
    let alive = fake.published("east").into_iter().filter(|(key, said)| {
        use federation_api::record::v1::statement::Payload as Wire;
        key != "heads" && !matches!(said.payload, Some(Wire::Withdrawal(_)))
    });
    assert_eq!(alive.map(|(key, _)| key).collect::<Vec<_>>(), Vec::<String>::new());
    program.until_import("cart", |import| exporters(import) == 1).await;
    program.stop().await;

    let program = Program::start(directory.path()).await;
    until_status(&program, "it stays gone", |status| status["joined"] == false).await;
    program.join(&fake.token("east").to_string()).await;
    program.until_import("cart", |import| exporters(import) == 2).await;
    program
        .until("the export again", async |_| {
            use federation_api::record::v1::statement::Payload as Wire;
            let said = fake.published("east").remove("exports/shop/cart")?;
            matches!(said.payload, Some(Wire::Export(_))).then_some(())
        })
        .await;
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_says_that_it_is_quarantined_replaced_or_evicted() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::start().await;
    let program = Program::start(directory.path()).await;
    program.join(&fake.token("east").to_string()).await;
    assert_eq!(program.get("/v1/status").await["standing"], "member");
    let mut list = DenyList::empty(federation());
    list.epoch = 1;
    list.clusters.insert(cluster("east"));
    fake.deny(&list);
    until_status(&program, "quarantined", |status| status["standing"] == "quarantined").await;
    list.epoch = 2;
    list.clusters.clear();
    fake.deny(&list);
    until_status(&program, "released", |status| status["standing"] == "member").await;

    // The same name joined again from somewhere else.
    let mut successor = Peer::new(&fake.root, "east");
    fake.add("east", &mut successor);
    let expected = format!("replaced by generation {}", successor.verified.generation());
    until_status(&program, "replaced", |status| status["standing"] == expected.as_str()).await;
    list.epoch = 3;
    list.evictions.insert(cluster("east"), successor.verified.generation());
    fake.deny(&list);
    until_status(&program, "evicted", |status| status["standing"] == "evicted").await;
    program.join(&fake.token("east").to_string()).await;
    until_status(&program, "a member again", |status| status["standing"] == "member").await;
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_left_is_forgotten_and_not_brought_back_by_its_old_records() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::start().await;
    let program = Program::start(directory.path()).await;
    program.write("ns.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n");
    program.join(&fake.token("east").to_string()).await;
    let mut west = Peer::new(&fake.root, "west");
    fake.add("west", &mut west);
    let export = west.export("shop/cart", |_| {});
    let heads = west.heads();
    fake.publish(vec![export.clone(), heads]);
    program.until_import("cart", |_| true).await;
    fake.depart("west", west.say(&RecordKey::Membership, &Payload::Withdrawal));
    let gone = async |it: &Program| {
        let imports = it.get("/v1/imports").await;
        imports["imports"].as_array().is_some_and(Vec::is_empty).then_some(())
    };
    program.until("the end of the import", gone).await;
    fake.add("west", &mut west);
    fake.publish(vec![export]);
    let mut north = Peer::new(&fake.root, "north");
    fake.add("north", &mut north);
    until_status(&program, "what came after", |status| {
        status["clusters"].as_array().unwrap().iter().any(|it| it["cluster"] == "north")
    })
    .await;
    let status = program.get("/v1/status").await;
    assert_eq!(status["clusters"].as_array().unwrap().len(), 1, "{status}");
    program.until("still no import", gone).await;
    program.stop().await;
}

/// Deletes a state directory. A file that was being written when the program ended may still arrive: there, the end of the
/// process waits for that.
async fn lose(state: &Path) {
    let lost = async {
        while let Err(error) = std::fs::remove_dir_all(state) {
            assert_eq!(error.kind(), std::io::ErrorKind::DirectoryNotEmpty, "{error}");
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, lost).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_lost_its_disk_joins_anew_with_other_keys_and_a_higher_bundle() {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::start().await;
    let program = Program::start(directory.path()).await;
    program.write("shop.yaml", &format!("{SHOP}---\n{EXPORT}"));
    let used = fake.token("east").to_string();
    program.join(&used).await;
    let sequence = async |program: &Program| {
        let status = until_status(program, "its bundle", |status| status["authority"]["published"] == true).await;
        (status["authority"]["sequence"].as_u64().unwrap(), status["generation"].as_u64().unwrap())
    };
    let before = sequence(&program).await;
    program.stop().await;
    lose(&directory.path().join("state")).await;

    let program = Program::start(directory.path()).await;
    let (status, answer) = program.request("POST", "/v1/join", &format!(r#"{{"token": "{used}"}}"#)).await.unwrap();
    assert_eq!(status, 502, "a token is good once: {answer}");
    program.join(&fake.token("east").to_string()).await;
    let after = sequence(&program).await;
    assert!(after.0 >= before.0 && after.1 > before.1, "{before:?} {after:?}");
    program.until_import("cart", |import| import["clusters"][0]["local"] == true).await;
    program.stop().await;
}
