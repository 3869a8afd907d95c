//! Files as people write them, and as they break them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use federation::{Locality, Protocol};
use federation_resources::pruned::{self, ServiceKind};
use federation_resources::{FileReading, Resource, mcs, read_file, read_text};

fn read(text: &str) -> FileReading {
    read_text(Path::new("m.yaml"), text)
}

fn only(text: &str) -> Resource {
    let reading = read(text);
    assert_eq!(reading.problems, []);
    let [(_, resource)] = reading.objects.as_slice() else { panic!("one object, not {:?}", reading.objects) };
    resource.as_ref().clone()
}

fn services(reading: &FileReading) -> BTreeMap<String, pruned::Service> {
    let services = reading.objects.iter().filter_map(|(_, resource)| match resource.as_ref() {
        Resource::Service(service) => Some((service.id.to_string(), service.clone())),
        _ => None,
    });
    services.collect()
}

#[test]
fn a_whole_application_is_read_as_it_is() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/manifests/shop.yaml");
    let reading = read_file(&path).unwrap();
    assert_eq!(reading.problems, []);
    let services = services(&reading);
    let names: Vec<_> = services.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "checkout/checkoutservice",
            "default/cartservice",
            "default/frontend",
            "default/frontend-external",
            "default/redis-cart"
        ]
    );
    assert_eq!(services["default/frontend"].ports[0].port, 80);
    let checkout = &services["checkout/checkoutservice"];
    assert_eq!(checkout.kind, ServiceKind::Headless);
    assert_eq!(checkout.client_ip_affinity, Some(Duration::from_secs(10_800)));
    assert_eq!(checkout.ports[0].app_protocol, "kubernetes.io/h2c");
    let passed_over: Vec<_> = reading.passed_over.iter().map(|(kind, count)| (kind.as_str(), *count)).collect();
    assert_eq!(
        passed_over,
        [
            ("apps/v1 Deployment", 2),
            ("networking.k8s.io/v1 NetworkPolicy", 1),
            ("v1 ConfigMap", 1),
            ("v1 ServiceAccount", 1)
        ]
    );
    assert_eq!(reading.objects[0].0, 73, "the line of the first service");
}

fn pod_of_weight(text: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  annotations:\n    isthmus.dev/weight: \"{text}\"\n")
}

#[test]
fn endpoint_slices_pods_and_nodes_keep_what_is_needed() {
    let slice = only(
        r"
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: cart-x1, namespace: shop, labels: {kubernetes.io/service-name: cart}}
addressType: IPv4
ports: [{name: grpc, port: 7070, protocol: TCP}]
endpoints:
- addresses: [10.0.0.7]
  conditions: {ready: false}
  nodeName: n1
  zone: a
  hostname: cart-0
  targetRef: {kind: Pod, name: cart-0, namespace: shop}
- addresses: [10.0.0.8]
",
    );
    let Resource::EndpointSlice(slice) = slice else { panic!("{slice:?}") };
    assert_eq!(slice.service.as_ref().unwrap().as_str(), "cart");
    assert_eq!((slice.ports[0].port, slice.ports[0].protocol), (Some(7070), Protocol::Tcp));
    assert_eq!(slice.endpoints[0].addresses, ["10.0.0.7".parse::<IpAddr>().unwrap()]);
    assert_eq!(slice.endpoints[0].pod.as_deref(), Some("cart-0"));
    assert_eq!(slice.endpoints.iter().map(|endpoint| endpoint.ready).collect::<Vec<_>>(), [false, true]);

    let pod = only(
        "{apiVersion: v1, kind: Pod, metadata: {name: cart-0, namespace: shop, annotations: {isthmus.dev/sidecar: \
         'true'}}, spec: {serviceAccountName: cart, nodeName: n1, containers: []}}",
    );
    let Resource::Pod(pod) = pod else { panic!("{pod:?}") };
    assert!(pod.sidecar);
    assert_eq!(pod.weight, 1, "it says none");
    for (text, weight) in [("1", 1), ("1000", 1000)] {
        let Resource::Pod(pod) = only(&pod_of_weight(text)) else { panic!("{text}") };
        assert_eq!(pod.weight, weight);
    }
    assert_eq!((pod.service_account.as_str(), pod.node.as_deref()), ("cart", Some("n1")));

    let node = only(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: n1\n  labels:\n    topology.kubernetes.io/region: eu\n    \
         topology.kubernetes.io/zone: eu-a\n",
    );
    let Resource::Node(node) = node else { panic!("{node:?}") };
    assert_eq!(node.locality, Locality::new("eu", "eu-a"));
}

#[test]
fn a_namespace_opts_its_services_in_by_a_label_and_their_addresses_are_read() {
    for (labels, expected) in [
        ("{}", false),
        ("{isthmus.dev/local-services: disabled}", false),
        ("{isthmus.dev/local-services: enabled}", true),
    ] {
        let text = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: shop, labels: {labels}}}}}");
        let Resource::Namespace(namespace) = only(&text) else { panic!("{labels}") };
        assert_eq!((namespace.name.as_str(), namespace.local_services), ("shop", expected), "{labels}");
    }
    for (spec, expected) in [
        ("", &[][..]),
        ("clusterIP: None", &[]),
        ("clusterIP: ''", &[]),
        ("clusterIP: 10.96.0.7", &["10.96.0.7"]),
        ("clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7, 'fd00:96::7']", &["10.96.0.7", "fd00:96::7"]),
    ] {
        let service = format!("{{apiVersion: v1, kind: Service, metadata: {{name: ads}}, spec: {{{spec}}}}}");
        let Resource::Service(service) = only(&service) else { panic!("{spec}") };
        let addresses: Vec<_> = service.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, expected, "{spec}");
    }
}

#[test]
fn service_exports_are_read_in_both_versions_with_and_without_a_spec() {
    for version in ["v1beta1", "v1alpha1"] {
        let text =
            format!("apiVersion: multicluster.x-k8s.io/{version}\nkind: ServiceExport\nmetadata: {{name: cart}}\n");
        let Resource::ServiceExport(export) = only(&text) else { panic!() };
        assert_eq!(export.id.to_string(), "default/cart");
        assert!(export.labels.is_empty());
    }
    let Resource::ServiceExport(export) = only(
        "apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata:\n  name: cart\n  labels: {own: \"1\"}\n  \
         creationTimestamp: \"2024-01-02T03:04:05Z\"\nspec:\n  exportedLabels: {team: shop}\n",
    ) else {
        panic!()
    };
    assert_eq!(export.labels.iter().collect::<Vec<_>>(), [(&"team".to_owned(), &"shop".to_owned())]);
    assert_eq!(export.created, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_704_164_645)));
}

#[test]
fn policies_are_read_and_hold_the_rules_of_their_schemas() {
    let policy = |kind: &str, spec: &str| {
        read(&format!(
            "apiVersion: isthmus.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
        ))
    };
    let failover = policy("FailoverPolicy", "{service: cart, prefer: [cluster, zone], ejection: {baseTime: 500ms}}");
    let [(_, resource)] = failover.objects.as_slice() else { panic!("{failover:?}") };
    let Resource::FailoverPolicy(read) = resource.as_ref() else { panic!("{resource:?}") };
    assert_eq!(read.service.as_ref().map(ToString::to_string).as_deref(), Some("cart"));
    let base: Duration = read.spec.ejection.as_ref().unwrap().base_time.unwrap().into();
    assert_eq!(base, Duration::from_millis(500));
    let access = policy("AccessPolicy", "{action: Deny, ports: [8080], rules: [{clusters: [west]}]}");
    assert!(matches!(access.objects.as_slice(), [(_, one)] if matches!(one.as_ref(), Resource::AccessPolicy(_))));
    let bad = [
        ("FailoverPolicy", "{localOnly: true, targets: [{mode: None}]}", "localOnly"),
        ("FailoverPolicy", "{targets: [{mode: Only}]}", "to names clusters"),
        ("FailoverPolicy", "{prefer: [zone, zone]}", "at most once"),
        ("FailoverPolicy", "{overprovisioningPercent: 99}", "overprovisioningPercent"),
        ("FailoverPolicy", "{ejection: {baseTime: 2m, maxTime: 1m}}", "longer"),
        ("FailoverPolicy", "{prefer: [planet]}", "planet"),
        ("AccessPolicy", "{action: Perhaps}", "Perhaps"),
        ("AccessPolicy", "{action: Allow, rules: [{}]}", "what it matches"),
        ("AccessPolicy", "{action: Allow, rules: [{spiffeIds: [\"spiffe://*/x\"]}]}", "at its end"),
        ("AccessPolicy", "{action: Allow, ports: [0]}", "ports[0]"),
    ];
    for (kind, spec, expected) in bad {
        let problems = policy(kind, spec).problems;
        assert!(problems.len() == 1 && problems[0].to_string().contains(expected), "{spec}: {problems:?}");
    }
}

#[test]
fn json_and_lists_are_read_too() {
    let reading = read(
        "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"List\",\n\t\"items\": [\n\t\t{\"apiVersion\": \"v1\", \"kind\": \
         \"Namespace\", \"metadata\": {\"name\": \"shop\"}},\n\t\t{\"apiVersion\": \"v1\", \"kind\": \"Secret\"},\n\t\t\
         {\"apiVersion\": \"v1\", \"kind\": \"Service\", \"metadata\": {\"name\": \"a\"}, \"spec\": {\"ports\": \
         [{\"port\": \"eighty\"}]}}\n\t]\n}\n",
    );
    assert_eq!(
        reading.objects.iter().map(|(_, object)| object.key().to_string()).collect::<Vec<_>>(),
        ["Namespace shop"]
    );
    assert_eq!(reading.passed_over.get("v1 Secret"), Some(&1));
    let [problem] = reading.problems.as_slice() else { panic!("{:?}", reading.problems) };
    assert_eq!((problem.line, problem.field.as_deref()), (Some(7), Some("items[2].spec.ports[0].port")));
}

#[test]
fn a_broken_field_is_named_with_its_line() {
    let service =
        |ports: &str| format!("---\napiVersion: v1\nkind: Service\nmetadata:\n  name: a\nspec:\n  ports:\n{ports}");
    let cases = [
        (service("  - port: eighty\n"), Some(8), Some("spec.ports[0].port"), "eighty"),
        (
            service("  - port: 80\n    name: x\n  - port: 70000\n    name: y\n"),
            Some(10),
            Some("spec.ports[1].port"),
            "70000",
        ),
        (service("  - port: 80\n  - port: 81\n"), Some(8), Some("spec.ports[0].name"), "missing"),
        (service("  - port: 80\n    protocol: ICMP\n"), Some(9), Some("spec.ports[0].protocol"), "ICMP"),
        (service("  - name: x\n"), None, Some("spec.ports[0].port"), "no port"),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: A_b}\n".to_owned(), Some(3), Some("metadata.name"), "A_b"),
        ("apiVersion: v1\nkind: Service\n".to_owned(), Some(1), Some("metadata.name"), "missing"),
        ("# c\nkind: Service\n".to_owned(), Some(2), Some("apiVersion"), "missing"),
        ("a: 1\nb: [\n".to_owned(), None, None, ""),
        ("a:\n  b: 1\n c: 2\n".to_owned(), Some(3), None, ""),
        (
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  annotations:\n    isthmus.dev/sidecar: \"yes\"\n"
                .to_owned(),
            Some(6),
            Some("metadata.annotations.isthmus.dev/sidecar"),
            "yes",
        ),
        (pod_of_weight("0"), Some(6), Some("metadata.annotations.isthmus.dev/weight"), "from 1 to 1000"),
        (
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  labels:\n    isthmus.dev/local-services: \"true\"\n"
                .to_owned(),
            Some(6),
            Some("metadata.labels.isthmus.dev/local-services"),
            "neither",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: a\nspec:\n  clusterIP: 0.0.0.0\n".to_owned(),
            Some(6),
            Some("spec.clusterIP"),
            "no address of a service",
        ),
        (
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a}\naddressType: IPv4\nendpoints:\n\
             - addresses: [10.0.0.7]\n- addresses: [10.0.0.8]\n  hostname: Bad_Host.x\n"
                .to_owned(),
            Some(8),
            Some("endpoints[1].hostname"),
            "no RFC 1123 label",
        ),
        (pod_of_weight("1001"), Some(6), Some("metadata.annotations.isthmus.dev/weight"), "1001"),
        (pod_of_weight("1.5"), Some(6), Some("metadata.annotations.isthmus.dev/weight"), "1.5"),
        (pod_of_weight(""), Some(6), Some("metadata.annotations.isthmus.dev/weight"), "whole number"),
    ];
    for (text, line, field, what) in cases {
        let reading = read(&text);
        let [problem] = reading.problems.as_slice() else { panic!("{text}: {:?}", reading.problems) };
        if line.is_some() {
            assert_eq!(problem.line, line, "{problem} of\n{text}");
        }
        if let Some(field) = field {
            assert_eq!(problem.field.as_deref(), Some(field), "{problem} of\n{text}");
        }
        assert!(problem.what.contains(what) && !problem.what.is_empty(), "{problem} of\n{text}");
        assert!(reading.objects.is_empty());
    }
}

#[test]
fn one_broken_document_leaves_the_others() {
    let reading = read(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\nkind: [\n---\napiVersion: v1\nkind: Namespace\nmetadata: \
         {name: b}\n",
    );
    assert_eq!(reading.objects.len(), 2);
    assert_eq!(reading.problems.len(), 1);
    let text = reading.problems[0].to_string();
    assert!(text.starts_with("m.yaml:5: ") || text.starts_with("m.yaml:6: "), "{text}");
}

#[test]
fn definitions_of_the_custom_kinds_can_be_written() {
    use kube::CustomResourceExt;
    let export = mcs::ServiceExport::crd();
    assert_eq!(export.metadata.name.as_deref(), Some("serviceexports.multicluster.x-k8s.io"));
    let import = serde_json::to_value(mcs::ServiceImport::crd()).unwrap();
    assert_eq!(import["spec"]["names"]["shortNames"][0], "svcim");
    assert!(import.pointer("/spec/versions/0/subresources/status").is_some());
    let text = serde_saphyr::to_string(&mcs::ServiceExport::new("cart", mcs::ServiceExportSpec::default())).unwrap();
    assert!(matches!(only(&text), Resource::ServiceExport(_)), "{text}");
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "(---\n|kind: Service\n|apiVersion: v1\n|metadata:\n|  name: [a-z{}&*]{0,5}\n|spec: |ports:|\\[|\\{|- |[ -~\n\t]{0,12}){0,20}") {
        let _ = read(&text);
    }
}
