//! A configuration is read as a whole: what is right arrives typed, what is wrong is told at once with source and field.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use mesh_runtime::{Configuration, LogFormat, RuntimeConfig, load};
use proptest::prelude::*;
use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Example {
    #[serde(default)]
    runtime: RuntimeConfig,
    cluster_name: String,
    #[serde(default)]
    gateways: Vec<Gateway>,
    #[serde(default)]
    weights: BTreeMap<String, u8>,
    #[serde(default, with = "mesh_runtime::duration::option")]
    idle: Option<Duration>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Gateway {
    address: SocketAddr,
    #[serde(default)]
    weight: u8,
}

impl Configuration for Example {
    fn runtime(&self) -> &RuntimeConfig {
        &self.runtime
    }

    fn problems(&self) -> Vec<String> {
        if self.cluster_name.contains('.') { vec!["clusterName: is no label".to_owned()] } else { vec![] }
    }
}

/// What one load gives; a problem's leading file name is cut to `FILE`.
fn read(yaml: &str, environment: &[(&str, &str)]) -> Result<Example, Vec<String>> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("example.yaml");
    std::fs::write(&file, yaml).unwrap();
    let environment = environment.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    load::<Example>("the-example", &file, environment).map_err(|error| {
        let file = file.display().to_string();
        error.problems.into_iter().map(|problem| problem.replacen(&file, "FILE", 1)).collect()
    })
}

proptest! {
    #[test]
    fn any_document_is_accepted_or_refused_with_a_reason(
        yaml in prop_oneof![
            "\\PC*",
            "(clusterName: [a-z.0-9]{1,4}\n)?(idle: [0-9]{1,3}(s|ms)?\n)?(gateways: (\\[\\]|\\[\\{[a-z]{0,3}: 1\\}, 2, \\[3\\]\\]|x)\n)?\
             (weights: (\\{a: -?[0-9]{1,3}, b: [0-9]{1,3}\\}|1)\n)?(runtime: (\\{\\}|\\{log: [a-z]?\\}|~|1)\n)?",
        ],
        variable in "[A-Z_]{0,20}",
        text in "\\PC*",
    ) {
        let variable = format!("ISTHMUS_THE_EXAMPLE_{variable}");
        if let Err(problems) = read(&yaml, &[(&variable, &text)]) {
            prop_assert!(!problems.is_empty());
            let sourced = |problem: &String| problem.starts_with("FILE: ") || problem.starts_with(&format!("{variable}: "));
            prop_assert!(problems.iter().all(sourced), "{problems:?}");
        }
    }
}

#[test]
fn a_file_with_the_required_fields_gets_every_default() {
    let example = read("clusterName: east\n", &[]).unwrap();
    assert_eq!(example.cluster_name, "east");
    assert_eq!(example.runtime.admin, "127.0.0.1:15020".parse().unwrap());
    assert_eq!(example.runtime.health, "127.0.0.1:15021".parse().unwrap());
    assert_eq!(example.runtime.log.format, LogFormat::Text);
    assert_eq!(example.runtime.log.filter, "info");
    assert_eq!(example.runtime.drain_deadline, Duration::from_secs(5));
    assert!(example.runtime.otlp.is_none());
}

#[test]
fn every_field_can_be_written() {
    let yaml = "
clusterName: east
idle: 1m30s
gateways:
  - address: 127.0.0.2:15443
    weight: 3
  - address: '[::1]:15443'
weights: { a: 1 }
runtime:
  admin: 127.0.0.1:1
  health: 127.0.0.1:1
  drainDeadline: 250ms
  log: { format: json, filter: 'warn,sidecar=debug' }
  otlp: { endpoint: 'http://127.0.0.1:4317', sampleRatio: 0.25 }
";
    let example = read(yaml, &[]).unwrap();
    assert_eq!(example.idle, Some(Duration::from_secs(90)));
    assert_eq!(example.gateways[0].weight, 3);
    assert_eq!(example.gateways[1].address, "[::1]:15443".parse().unwrap());
    assert_eq!(example.weights["a"], 1);
    assert_eq!(example.runtime.admin, example.runtime.health);
    assert_eq!(example.runtime.drain_deadline, Duration::from_millis(250));
    assert_eq!(example.runtime.log.format, LogFormat::Json);
    let otlp = example.runtime.otlp.unwrap();
    assert_eq!((otlp.endpoint.as_str(), otlp.sample_ratio), ("http://127.0.0.1:4317", 0.25));
}

#[test]
fn the_environment_goes_before_the_file() {
    let example = read(
        "clusterName: east\nruntime: { drainDeadline: 1s, log: { format: json } }\n",
        &[
            ("ISTHMUS_THE_EXAMPLE_RUNTIME__DRAIN_DEADLINE", "2s"),
            ("ISTHMUS_THE_EXAMPLE_RUNTIME__OTLP__ENDPOINT", "http://collector:4317"),
            ("ISTHMUS_THE_EXAMPLE_RUNTIME__ADMIN", "[::1]:15020"),
            ("ISTHMUS_THE_EXAMPLE_GATEWAYS", "[{address: '127.0.0.2:1'}]"),
            ("ISTHMUS_THE_EXAMPLE_WEIGHTS__A", "7"),
            ("ISTHMUS_CONFIG", "/elsewhere"),
            ("ISTHMUS_OTHER_CLUSTER_NAME", "not ours"),
        ],
    )
    .unwrap();
    assert_eq!(example.runtime.drain_deadline, Duration::from_secs(2));
    assert_eq!(example.runtime.log.format, LogFormat::Json, "what the environment leaves out stays");
    assert_eq!(example.runtime.otlp.unwrap().endpoint, "http://collector:4317");
    assert_eq!(example.runtime.admin, "[::1]:15020".parse().unwrap());
    assert_eq!(example.gateways[0].address, "127.0.0.2:1".parse().unwrap());
    assert_eq!(example.weights["a"], 7);
}

#[test]
fn a_variable_is_text_where_text_is_wanted_whatever_it_looks_like() {
    for text in ["5", "007", "true", "-1", "x", "", "~", "[a", "[a]", "a: b", "# a", "\"\\"] {
        let example = read("{}", &[("ISTHMUS_THE_EXAMPLE_CLUSTER_NAME", text)]).unwrap();
        assert_eq!(example.cluster_name, text);
    }
}

#[test]
fn variables_that_kubernetes_injects_for_a_service_are_no_configuration() {
    let injected = [
        ("ISTHMUS_THE_EXAMPLE_SERVICE_HOST", "10.0.0.1"),
        ("ISTHMUS_THE_EXAMPLE_SERVICE_PORT", "15012"),
        ("ISTHMUS_THE_EXAMPLE_SERVICE_PORT_GRPC", "15012"),
        ("ISTHMUS_THE_EXAMPLE_PORT", "tcp://10.0.0.1:15012"),
        ("ISTHMUS_THE_EXAMPLE_PORT_15012_TCP_PROTO", "tcp"),
    ];
    assert_eq!(read("clusterName: east", &injected).unwrap().cluster_name, "east");
}

#[test]
fn every_problem_is_told_at_once_with_its_source_and_field() {
    let yaml = "
clusterNam: east
idle: 5
gateways:
  - address: nowhere
  - address: 127.0.0.2:15443
    wieght: 3
  - weight: 300
    address: 127.0.0.2:15443
  - weight: 1
weights: { a: 1, b: -1 }
runtime:
  drainDeadline: 5 weeks
  log: { format: xml }
";
    let problems = read(yaml, &[("ISTHMUS_THE_EXAMPLE_RUNTIME__ADMIN", "localhost")]).unwrap_err();
    let expected = [
        "FILE: clusterNam: is not a known field; known here: runtime, clusterName, gateways, weights, idle",
        "FILE: gateways[0].address: ",
        "FILE: gateways[1].wieght: is not a known field; known here: address, weight",
        "FILE: gateways[2].weight: ",
        "FILE: gateways[3].address: is required",
        "FILE: idle: ",
        "ISTHMUS_THE_EXAMPLE_RUNTIME__ADMIN: runtime.admin: ",
        "FILE: runtime.drainDeadline: \"5 weeks\" is not a duration; ",
        "FILE: runtime.log.format: \"xml\" is not one of json, text",
        "FILE: weights.b: ",
        "FILE: clusterName: is required",
    ];
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
    for (problem, expected) in problems.iter().zip(expected) {
        assert!(problem.starts_with(expected), "{problem}\nshould begin with\n{expected}");
        assert!(!problem.contains('\n'), "{problem}");
    }
}

#[test]
fn what_types_cannot_say_is_told_together_and_with_its_source() {
    let yaml = "
clusterName: ea.st
runtime:
  log: { filter: 'info,=,what=ever' }
  otlp: { endpoint: 'https://collector:4317', sampleRatio: 2 }
";
    let problems = read(yaml, &[("ISTHMUS_THE_EXAMPLE_RUNTIME__OTLP__ENDPOINT", "collector")]).unwrap_err();
    let expected = [
        "FILE: runtime.log.filter: ",
        "ISTHMUS_THE_EXAMPLE_RUNTIME__OTLP__ENDPOINT: runtime.otlp.endpoint: \"collector\" is not of the form",
        "FILE: runtime.otlp.sampleRatio: 2 is not between 0 and 1",
        "FILE: clusterName: is no label",
    ];
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
    for (problem, expected) in problems.iter().zip(expected) {
        assert!(problem.starts_with(expected), "{problem}\nshould begin with\n{expected}");
    }
}

#[test]
fn only_plain_text_collectors_are_accepted() {
    for endpoint in ["https://collector:4317", "collector:4317", "http://", "grpc://collector:4317", ""] {
        let yaml = format!("clusterName: east\nruntime: {{ otlp: {{ endpoint: '{endpoint}' }} }}\n");
        let problems = read(&yaml, &[]).unwrap_err();
        assert!(problems[0].starts_with("FILE: runtime.otlp.endpoint: "), "{problems:?}");
    }
}

#[test]
fn a_file_that_is_no_document_is_refused_in_one_line() {
    for (yaml, expected) in [
        ("clusterName: [east", "FILE: is not valid YAML: "),
        ("clusterName: east\nclusterName: west\n", "FILE: is not valid YAML: "),
        ("- east\n", "FILE: is not a mapping of fields"),
        ("east", "FILE: is not a mapping of fields"),
        ("", "FILE: clusterName: is required"),
        ("# nothing yet\n", "FILE: clusterName: is required"),
    ] {
        let problems = read(yaml, &[]).unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with(expected), "{problems:?}");
        assert!(!problems[0].contains('\n'), "{problems:?}");
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let file = PathBuf::from("/nowhere/example.yaml");
    let error = load::<Example>("the-example", &file, []).unwrap_err();
    assert_eq!(error.problems, ["/nowhere/example.yaml: there is no such file"]);
    let error = load::<Example>("the-example", &PathBuf::from("/proc"), []).unwrap_err();
    assert!(error.to_string().starts_with("/proc: cannot be read: "), "{error}");
}
