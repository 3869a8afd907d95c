//! Which endpoint a connection goes to, and which ones after it when that cannot be reached.

use std::{cmp::Ordering, sync::Arc, time::Instant};

use federation::{Locality, slot};
use rand::{Rng, RngExt};

use super::Endpoint;

/// The ready endpoints of a route in the order in which one connection tries them.
///
/// Without a slot: those not avoided, then the nearest (zone, region, elsewhere), then those with the fewest connections for their
/// weight, equal ones by chance in proportion to it. With a slot: the one it hashes to, wherever that is; when that cannot be reached, the one it
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
    /// The candidates among a route's endpoints for a gateway at `locality`.
    #[must_use]
    pub fn new(endpoints: &'a [Arc<Endpoint>], locality: &'a Locality, slot: Option<u16>) -> Self {
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
        let mut best: Option<(usize, Rank)> = None;
        let mut weights = 0_u64;
        for (place, endpoint) in self.endpoints.iter().enumerate().filter(|(place, _)| self.is_left(*place)) {
            let rank = Rank {
                avoided: endpoint.avoided(now),
                distance: self.distance(&endpoint.locality),
                connections: endpoint.connections() as u64,
                weight: endpoint.weight.into(),
            };
            match best.as_ref().map(|(_, least)| rank.compare(least)) {
                Some(Ordering::Greater) => continue,
                Some(Ordering::Equal) => weights += rank.weight,
                Some(Ordering::Less) | None => weights = rank.weight,
            }
            // Of equals each is kept with a chance of its weight in theirs.
            if weights == rank.weight || random.random_range(0..weights) < rank.weight {
                best = Some((place, rank));
            }
        }
        best.map(|(place, _)| place)
    }

    fn hashed(&self, slot: u16, eligible: impl Fn(&Endpoint) -> bool) -> Option<usize> {
        let weight = |(place, endpoint): (usize, &'a Arc<Endpoint>)| {
            let counts = self.is_left(place) && eligible(endpoint);
            (endpoint.id.as_str(), if counts { endpoint.weight } else { 0 })
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

/// Why one endpoint is tried before another.
struct Rank {
    avoided: bool,
    distance: u8,
    connections: u64,
    weight: u64,
}

impl Rank {
    /// The lesser one comes first.
    fn compare(&self, other: &Self) -> Ordering {
        // Connections for each unit of weight, without a division; saturated only beyond any number of connections.
        let load = |one: &Self, other: &Self| one.connections.saturating_mul(other.weight);
        (self.avoided, self.distance)
            .cmp(&(other.avoided, other.distance))
            .then_with(|| load(self, other).cmp(&load(other, self)))
    }
}
