//! How endpoints become a zone's capacity.

use federation::delegation::MAX_CAPACITY;
use federation::{Locality, ZoneCapacity};

fn added(endpoints: &[(&str, u32, bool)]) -> Vec<(String, u32, u32)> {
    let places: Vec<_> = endpoints.iter().map(|(zone, ..)| Locality::new("eu", *zone)).collect();
    let parts = places.iter().zip(endpoints).map(|(place, (_, weight, ready))| (place, *weight, *ready));
    ZoneCapacity::add_up(parts).into_iter().map(|it| (it.locality.zone, it.total, it.ready)).collect()
}

#[test]
fn weights_add_up_by_zone() {
    let zones = added(&[("b", 1, true), ("a", 4, false), ("b", 7, false), ("a", 3, true)]);
    assert_eq!(zones, [("a".to_owned(), 7, 3), ("b".to_owned(), 8, 1)]);
    assert_eq!(added(&[]), []);
}

#[test]
fn what_is_too_much_for_a_zone_keeps_its_ready_part() {
    let half = MAX_CAPACITY;
    assert_eq!(added(&[("a", half, true), ("a", half, false)]), [("a".to_owned(), MAX_CAPACITY, MAX_CAPACITY / 2)]);
    assert_eq!(added(&[("a", 1, true), ("a", u32::MAX, false), ("a", u32::MAX, false)])[0].2, 1, "one is not none");
    assert_eq!(added(&[("a", u32::MAX, true); 3]), [("a".to_owned(), MAX_CAPACITY, MAX_CAPACITY)]);
}
