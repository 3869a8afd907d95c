//! Which endpoint a connection goes to, and which ones after it when that cannot be reached.

use std::{sync::Arc, time::Instant};

use federation::{Locality, slot};
use rand::{Rng, RngExt};

use super::{Endpoint, ServiceRoute};

/// The ready endpoints of a route in the order in which one connection tries them.
///
/// Without a slot: those not avoided, then the nearest (zone, region, elsewhere), then those with the fewest connections,
/// equal ones by chance. With a slot: the one it hashes to, wherever that is; when that cannot be reached, the one it
/// hashes to among the rest, and so on.
#[derive(Debug)]
pub struct Candidates<'a> {
    locality: &'a Locality,
    slot: Option<u16>,
    left: Vec<&'a Arc<Endpoint>>,
}

impl<'a> Candidates<'a> {
    /// The candidates of a route for a gateway at `locality`.
    #[must_use]
    pub fn new(route: &'a ServiceRoute, locality: &'a Locality, slot: Option<u16>) -> Self {
        Self { locality, slot, left: route.endpoints.iter().filter(|endpoint| endpoint.ready).collect() }
    }

    /// How many have not been returned yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.left.len()
    }

    /// Whether all have been returned.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    /// The best one left, judged by what is known now.
    pub fn next(&mut self, now: Instant, random: &mut impl Rng) -> Option<&'a Arc<Endpoint>> {
        let place = match self.slot {
            None => self.nearest_and_least_loaded(now, random),
            // Avoided endpoints only when there is no other.
            Some(slot) => self.hashed(slot, |endpoint| !endpoint.avoided(now)).or_else(|| self.hashed(slot, |_| true)),
        };
        place.map(|place| self.left.swap_remove(place))
    }

    fn nearest_and_least_loaded(&self, now: Instant, random: &mut impl Rng) -> Option<usize> {
        let count = self.left.len();
        if count == 0 {
            return None;
        }
        // From a random place on, the first of the best: every one of them has a chance.
        let start = random.random_range(0..count);
        (0..count).map(|step| (start + step) % count).min_by_key(|place| {
            let endpoint = self.left[*place];
            (endpoint.avoided(now), self.distance(&endpoint.locality), endpoint.connections())
        })
    }

    fn hashed(&self, slot: u16, eligible: impl Fn(&Endpoint) -> bool) -> Option<usize> {
        slot::choose(slot, self.left.iter().map(|endpoint| (endpoint.id.as_str(), u32::from(eligible(endpoint)))))
    }

    fn distance(&self, locality: &Locality) -> u8 {
        match () {
            () if self.locality.same_zone(locality) => 0,
            () if self.locality.same_region(locality) => 1,
            () => 2,
        }
    }
}
