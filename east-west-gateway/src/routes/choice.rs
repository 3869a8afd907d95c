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
    endpoints: &'a [Arc<Endpoint>],
    ready: usize,
    /// How many have been returned, the last one of them, and those before it. Mostly there is none before: nothing is allocated.
    returned: usize,
    last: Option<usize>,
    earlier: Vec<usize>,
}

impl<'a> Candidates<'a> {
    /// The candidates of a route for a gateway at `locality`.
    #[must_use]
    pub fn new(route: &'a ServiceRoute, locality: &'a Locality, slot: Option<u16>) -> Self {
        let endpoints = &route.endpoints[..];
        let ready = endpoints.iter().filter(|endpoint| endpoint.ready).count();
        Self { locality, slot, endpoints, ready, returned: 0, last: None, earlier: Vec::new() }
    }

    /// How many have not been returned yet.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.ready - self.returned
    }

    /// Whether all have been returned.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The best one left, judged by what is known now.
    pub fn next(&mut self, now: Instant, random: &mut impl Rng) -> Option<&'a Arc<Endpoint>> {
        self.earlier.extend(self.last.take());
        let place = match self.slot {
            None => self.nearest_and_least_loaded(now, random),
            // Avoided endpoints only when there is no other.
            Some(slot) => self.hashed(slot, |endpoint| !endpoint.avoided(now)).or_else(|| self.hashed(slot, |_| true)),
        }?;
        self.last = Some(place);
        self.returned += 1;
        Some(&self.endpoints[place])
    }

    fn is_left(&self, place: usize) -> bool {
        self.endpoints[place].ready && !self.earlier.contains(&place)
    }

    fn nearest_and_least_loaded(&self, now: Instant, random: &mut impl Rng) -> Option<usize> {
        let mut best = None;
        let mut equals = 0_u32;
        for (place, endpoint) in self.endpoints.iter().enumerate().filter(|(place, _)| self.is_left(*place)) {
            let rank = (endpoint.avoided(now), self.distance(&endpoint.locality), endpoint.connections());
            match best {
                Some((_, least)) if rank > least => continue,
                Some((_, least)) if rank == least => equals += 1,
                _ => equals = 1,
            }
            // Each of n equals is kept with a chance of 1/n.
            if equals == 1 || random.random_range(0..equals) == 0 {
                best = Some((place, rank));
            }
        }
        best.map(|(place, _)| place)
    }

    fn hashed(&self, slot: u16, eligible: impl Fn(&Endpoint) -> bool) -> Option<usize> {
        let weight = |(place, endpoint): (usize, &'a Arc<Endpoint>)| {
            (endpoint.id.as_str(), u32::from(self.is_left(place) && eligible(endpoint)))
        };
        slot::choose(slot, self.endpoints.iter().enumerate().map(weight))
    }

    fn distance(&self, locality: &Locality) -> u8 {
        match () {
            () if self.locality.same_zone(locality) => 0,
            () if self.locality.same_region(locality) => 1,
            () => 2,
        }
    }
}
