//! The routing table at the size of a large federation. A test program of its own, for it counts allocations.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use allocation_counter::measure;
use east_west_gateway::{
    Refusal,
    routes::{Candidates, RouteChange, Routes},
};
use federation::Locality;
use federation_api::discovery::v1 as wire;

const NAMES: usize = 100_000;

fn route(number: usize, port: u32) -> wire::Route {
    let endpoint = |pod: u8| wire::Endpoint {
        id: format!("east/shop/service-{number}-{pod}"),
        address: format!("192.0.2.{pod}"),
        mesh_port: 15008,
        ready: true,
        ..wire::Endpoint::default()
    };
    wire::Route {
        namespace: "shop".to_owned(),
        name: format!("service-{number}"),
        host: format!("service-{number}.shop.svc.clusterset.local"),
        ports: vec![port],
        endpoints: vec![endpoint(1), endpoint(2)],
    }
}

fn name(number: usize, port: u32) -> String {
    format!("outbound_.{port}_.c-east.e-7_.service-{number}.shop.svc.clusterset.local")
}

#[test]
fn of_100_000_names_a_lookup_allocates_nothing_and_an_update_copies_one_path() {
    let routes = Routes::new("east".parse().unwrap());
    let all: Vec<_> = (0..NAMES).map(|number| route(number, 80)).collect();
    assert_eq!(routes.apply(all.iter().map(RouteChange::Set)), []);
    assert_eq!(routes.len(), NAMES);

    let names: Vec<_> = (0..NAMES).step_by(97).map(|number| name(number, 80)).collect();
    let locality = Locality::new("eu", "eu-1");
    // The first lookup of a thread makes what arc-swap and the generator keep for it.
    let look_up = |name: &String| {
        let found = routes.find(name).unwrap();
        let mut candidates = Candidates::new(&found.route.endpoints, &locality, None);
        candidates.next(std::time::Instant::now(), &mut rand::rng()).unwrap().address
    };
    look_up(&names[0]);
    let looking = measure(|| names.iter().for_each(|name| assert!(look_up(name).is_ipv4())));
    assert_eq!(looking.count_total, 0, "{looking:?}");

    let changed = route(4711, 81);
    let before = routes.find(&name(4711, 80)).unwrap();
    let updating = measure(|| assert_eq!(routes.apply([RouteChange::Set(&changed)]), []));
    // The table itself is many megabytes.
    assert!(updating.bytes_total < 16 * 1024, "{updating:?}");
    assert_eq!(routes.find(&name(4711, 80)).unwrap_err(), Refusal::PortNotExported);
    assert_eq!(routes.find(&name(4711, 81)).unwrap().route.ports, [81]);
    assert_eq!(before.route.ports, [80], "who looked before keeps what it saw");

    let host = "service-4711.shop.svc.clusterset.local".parse().unwrap();
    let removing = measure(|| assert_eq!(routes.apply([RouteChange::Remove(&host)]), []));
    assert!(removing.bytes_total < 16 * 1024, "{removing:?}");
    assert_eq!(routes.find(&name(4711, 81)).unwrap_err(), Refusal::NotExported);
    assert_eq!(routes.len(), NAMES - 1);
    assert!(routes.find(&name(4712, 80)).is_ok());
}
