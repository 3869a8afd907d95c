//! The alert rules speak of metrics, and of kinds, that a federator really exports, and fire for what they are about.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use federation_api::client::federation::SessionCursor;
use federation_api::federation::v1::refusal::Reason;
use federation_api::payload::Payload;
use federation_api::record::v1::Statement;
use federator::quota::Quota;
use prost::Message as _;

use super::eventually;
use super::plane::{Client, Plane, export, export_in, key};

const PREFIX: &str = "isthmus_federator_";

fn alerts() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/alerts"))
}

fn rules() -> String {
    std::fs::read_to_string(alerts().join("federator.yaml")).unwrap()
}

/// The metrics that rules name, but for the store's: the embedded store has none, and those of etcd are its own tests'.
fn named(rules: &str) -> BTreeSet<&str> {
    let words = rules.split(|it: char| !(it.is_ascii_alphanumeric() || it == '_' || it == ':'));
    words.filter_map(|word| word.strip_prefix(PREFIX)).filter(|name| !name.starts_with("store_")).collect()
}

/// The kinds of refusals that rules ask for: `kind=~"a|b"`, `kind="c"`.
fn kinds(rules: &str) -> BTreeSet<&str> {
    let published = rules.lines().filter(|line| line.contains("published_records_total"));
    let asked = published.flat_map(|line| line.split("kind").skip(1));
    let quoted = asked.filter_map(|rest| rest.split('"').nth(1));
    quoted.flat_map(|list| list.split('|')).filter(|kind| !kind.is_empty()).collect()
}

/// A replica on which everything has happened that is counted by kind, and a session that it still has.
async fn eventful() -> (Plane, Client) {
    let plane = Plane::with_quota(Quota { exports: 2, ..Quota::default() }).await;
    let mut east = plane.client("east", &["shop"], true, SessionCursor::default()).await;
    let mut west = plane.client("west", &["shop"], false, SessionCursor::default()).await;
    let sign = |sequence, name: &str| plane.sign("east", sequence, &key(name), &export(name));
    assert_eq!(east.publish(sign(10, "a")).await, Ok(()));
    let secret = plane.sign("east", 20, &"exports/secret/cart".parse().unwrap(), &export_in("secret", "cart"));
    let contradiction = plane.sign("east", 10, &key("a"), &Payload::Withdrawal);
    assert_eq!(east.publish(plane.sign("west", 11, &key("w"), &export("w"))).await, Err(Reason::NotYours));
    assert_eq!(east.publish(secret).await, Err(Reason::NotDelegated));
    assert_eq!(east.publish(contradiction).await, Err(Reason::Equivocation));
    assert_eq!(east.publish(sign(9, "a")).await, Err(Reason::Stale));
    assert_eq!(east.publish(sign(21, "b")).await, Ok(()));
    assert_eq!(east.publish(sign(22, "c")).await, Err(Reason::Quota));
    let mut nonsense = Statement::decode(sign(23, "a").message).unwrap();
    nonsense.key = "nonsense".to_owned();
    let nonsense = plane.speaker("east").key.sign_statement(&nonsense);
    assert_eq!(east.publish(nonsense).await, Err(Reason::Malformed));
    plane.store.set_full(true);
    assert_eq!(east.publish(sign(24, "a")).await, Err(Reason::NoSpace));
    west.next_record().await;
    drop(west);
    (plane, east)
}

#[tokio::test]
async fn every_metric_and_kind_that_the_rules_name_is_exported() {
    let (rules, (plane, _east)) = (rules(), eventful().await);
    let (named, kinds) = (named(&rules), kinds(&rules));
    assert!(named.len() >= 8 && kinds.len() >= 6, "{named:?} {kinds:?}");
    let missing = || {
        // The test's process has another name.
        let text = plane.replica(0).process.metrics_text().unwrap().replace("isthmus_test_", PREFIX);
        let samples: Vec<_> = text.lines().filter_map(|line| line.strip_prefix(PREFIX)).collect();
        let exported: BTreeSet<_> = samples.iter().filter_map(|line| line.split(['{', ' ']).next()).collect();
        let counted = |kind: &str| {
            let wanted = format!("published_records_total{{kind=\"{kind}\"}}");
            samples.iter().any(|line| line.starts_with(&wanted))
        };
        let metrics = named.iter().filter(|name| !exported.contains(*name)).map(ToString::to_string);
        metrics.chain(kinds.iter().filter(|kind| !counted(kind)).map(ToString::to_string)).collect::<Vec<_>>()
    };
    eventually(&format!("named by a rule, and exported; at first these were missing: {:?}", missing()), || {
        missing().is_empty()
    })
    .await;
}

fn promtool(arguments: &[&str]) {
    let ran = Command::new("promtool").args(arguments).current_dir(alerts()).output();
    let ran = ran.unwrap_or_else(|error| panic!("promtool: {error}: run `make tools`"));
    let said = [ran.stdout, ran.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(ran.status.success(), "{}", said.concat());
}

#[test]
fn alerts_fire_for_what_they_are_about_and_put_up_with_the_rest() {
    promtool(&["check", "rules", "federator.yaml", "identity.yaml"]);
    promtool(&["test", "rules", "tests/federator.yaml"]);
    let (rules, tests) = (rules(), std::fs::read_to_string(alerts().join("tests/federator.yaml")).unwrap());
    let alerts = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    let untried: Vec<_> = alerts.filter(|name| !tests.contains(&format!("alertname: {name}\n"))).collect();
    assert!(untried.is_empty(), "no test lets these fire: {untried:?}");
}
