//! How connections spread over endpoints of different weights.

use std::time::Instant;

use east_west_gateway::routes::{Candidates, Engaged, RouteChange, Routes};
use federation::Locality;
use federation_api::discovery::v1 as wire;
use rand::{SeedableRng, rngs::StdRng};

use super::lab::{endpoint, name, route};

fn routes(weights: &[u32]) -> Routes {
    let weighted = |(number, weight): (usize, &u32)| {
        let address = ([192, 0, 2, 1 + u8::try_from(number).unwrap()], 15008).into();
        wire::Endpoint { weight: *weight, ..endpoint(&format!("east/shop/echo-{number}"), address, "eu-1") }
    };
    let endpoints: Vec<_> = weights.iter().enumerate().map(weighted).collect();
    let routes = Routes::new("east".parse().unwrap());
    assert_eq!(routes.apply([RouteChange::Set(&route(&endpoints))]), []);
    routes
}

/// How many of so many connections each endpoint gets, whether they stay or end at once.
fn spread(weights: &[u32], connections: usize, slots: bool, stay: bool) -> Vec<usize> {
    let (routes, locality, mut random) = (routes(weights), Locality::new("eu", "eu-1"), StdRng::seed_from_u64(7));
    let found = routes.find(&name("")).unwrap();
    let mut counts = vec![0; weights.len()];
    let mut kept: Vec<Engaged> = Vec::new();
    for number in 0..connections {
        let slot = slots.then(|| u16::try_from(number).unwrap());
        let chosen =
            Candidates::new(&found.route.endpoints, &locality, slot).next(Instant::now(), &mut random).unwrap();
        let place = found.route.endpoints.iter().position(|endpoint| endpoint.id == chosen.id).unwrap();
        counts[place] += 1;
        if stay {
            kept.push(chosen.engage());
        }
    }
    counts
}

#[test]
fn connections_that_stay_are_shared_by_weight_exactly() {
    assert_eq!(spread(&[1, 3], 400, false, true), [100, 300]);
    assert_eq!(spread(&[5, 1, 2, 2], 1000, false, true), [500, 100, 200, 200]);
    assert_eq!(spread(&[0, 1, 2], 400, false, true), [100, 100, 200], "0 stands for 1");
}

#[test]
fn connections_that_end_at_once_are_shared_by_weight_on_average() {
    for slots in [false, true] {
        let counts = spread(&[1, 3, 6], 10_000, slots, false);
        for (count, share) in counts.iter().zip([1000, 3000, 6000]) {
            assert!(count.abs_diff(share) < 200, "slots {slots}: {counts:?}");
        }
    }
}

#[test]
fn the_largest_weights_do_not_overflow() {
    let counts = spread(&[u32::MAX, 1, u32::MAX], 100, false, true);
    assert_eq!(counts[1], 1, "each gets one before others get their second");
    assert!(counts[0].abs_diff(counts[2]) <= 1, "{counts:?}");
}
