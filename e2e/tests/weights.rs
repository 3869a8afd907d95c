//! From the annotations of pods to the shares of a gateway's connections.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::time::Instant;

use control_plane::local::LocalIndex;
use control_plane::resources;
use east_west_gateway::routes::{Candidates, Engaged, RouteChange, Routes};
use federation::Locality;
use federation_api::discovery::v1::resource::Resource;
use federation_resources::{Change, read_text};
use rand::SeedableRng;
use rand::rngs::StdRng;

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {ports: [{name: grpc, port: 7070}]}
---
apiVersion: multicluster.x-k8s.io/v1beta1
kind: ServiceExport
metadata: {name: cart, namespace: shop}
";

/// A service with pods of these weights, the first one without an annotation.
fn manifests(weights: &[u32]) -> String {
    let mut text = SERVICE.to_owned();
    let mut endpoints = String::new();
    for (number, weight) in weights.iter().enumerate() {
        let weight = if number == 0 { String::new() } else { format!(", isthmus.dev/weight: '{weight}'") };
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: cart-{number}, namespace: shop, annotations: \
             {{isthmus.dev/sidecar: 'true'{weight}}}}}\nspec: {{containers: []}}\n"
        );
        let _ = writeln!(
            endpoints,
            "- {{addresses: [10.0.0.{number}], conditions: {{ready: true}}, zone: a, targetRef: {{kind: Pod, name: \
             cart-{number}}}}}"
        );
    }
    text + "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: cart-x, namespace: shop, labels: \
            {kubernetes.io/service-name: cart}}\naddressType: IPv4\nports: [{name: grpc, port: 7070}]\nendpoints:\n"
        + &endpoints
}

#[test]
fn a_gateways_connections_follow_the_weights_that_pods_are_annotated_with() {
    let reading = read_text(Path::new("shop.yaml"), &manifests(&[1, 3, 6]));
    assert_eq!(reading.problems, []);
    let mut index = LocalIndex::new("east".parse().unwrap());
    for (_, object) in reading.objects {
        index.apply(Change::Applied(object));
    }
    let service = index.service(&"shop/cart".parse().unwrap()).unwrap();
    let zones: Vec<_> = service.zones().iter().map(|zone| (zone.total, zone.ready)).collect();
    assert_eq!(zones, [(10, 10)]);

    let routes = resources::routes(&service, &"east".parse().unwrap(), "east.mesh.example");
    let [resource] = routes.values().collect::<Vec<_>>()[..] else { panic!("{routes:?}") };
    let Some(Resource::Route(route)) = &resource.resource else { panic!("{resource:?}") };
    let routes = Routes::new("east".parse().unwrap());
    assert_eq!(routes.apply([RouteChange::Set(route)]), []);

    let found = routes.find("outbound_.7070_._.cart.shop.svc.clusterset.local").unwrap();
    let (place, mut random) = (Locality::new("", "a"), StdRng::seed_from_u64(1));
    let mut open: Vec<Engaged> = Vec::new();
    for _ in 0..200 {
        let mut candidates = Candidates::new(&found.route.endpoints, &place, None);
        open.push(candidates.next(Instant::now(), &mut random).unwrap().engage());
    }
    let mut shares: BTreeMap<&str, usize> = BTreeMap::new();
    for connection in &open {
        *shares.entry(&connection.endpoint().id).or_default() += 1;
    }
    assert_eq!(shares.into_values().collect::<Vec<_>>(), [20, 60, 120]);
}
