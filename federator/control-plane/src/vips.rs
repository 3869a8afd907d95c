//! Clusterset IPs: which imported service, and which endpoint of a headless one in another cluster, has which address in this
//! cluster.
//!
//! Pure. An address stays with its host for the import's life, comes back to the same host when that returns within
//! [`QUARANTINE`], and goes to no other one before: resolvers and connections outlive an import. Endpoints come and go with
//! pods, and another cluster says which there are: all of one cluster's have at most an [`ENDPOINT_SHARE`]th of a range,
//! resting addresses included, and beyond it take over what has rested longest of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime};

use federation::export::IpFamily;
use federation::{ClusterName, ServiceHost, ServiceId};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// A released address is given to no other host for this long.
pub const QUARANTINE: Duration = Duration::from_secs(24 * 60 * 60);

/// What part of a range the endpoints of one other cluster may have.
pub const ENDPOINT_SHARE: u64 = 8;

/// No address is left.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no free address in {range} for {host}")]
pub struct Exhausted {
    range: String,
    host: String,
}

/// Gives addresses to hosts.
#[derive(Clone, Debug)]
pub struct VipAllocator {
    ipv4: Ipv4Net,
    ipv6: Option<Ipv6Net>,
    assigned: BTreeMap<ServiceHost, BTreeMap<IpFamily, IpAddr>>,
    taken: BTreeSet<IpAddr>,
    released: BTreeMap<IpAddr, Released>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Released {
    host: ServiceHost,
    until: SystemTime,
}

/// An allocator's state, as it is kept on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedVips {
    assigned: Vec<SavedVip>,
    released: Vec<SavedRelease>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedVip {
    /// `<namespace>/<name>`, or an endpoint's host.
    service: String,
    address: IpAddr,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedRelease {
    service: String,
    address: IpAddr,
    until_unix_seconds: u64,
}

impl SavedVips {
    /// What imports that are there say, where nothing else was kept.
    #[must_use]
    pub fn of_imports(addresses: impl IntoIterator<Item = (ServiceHost, IpAddr)>) -> Self {
        let saved = |(host, address): (ServiceHost, IpAddr)| SavedVip { service: kept(&host), address };
        Self { assigned: addresses.into_iter().map(saved).collect(), released: Vec::new() }
    }

    /// Whether nothing was kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.assigned.is_empty() && self.released.is_empty()
    }
}

impl VipAllocator {
    /// An allocator with what was saved; addresses outside of the ranges, which may have changed, are forgotten.
    #[must_use]
    pub fn new(ipv4: Ipv4Net, ipv6: Option<Ipv6Net>, saved: SavedVips) -> Self {
        let mut allocator =
            Self { ipv4, ipv6, assigned: BTreeMap::new(), taken: BTreeSet::new(), released: BTreeMap::new() };
        for SavedVip { service, address } in saved.assigned {
            let Some(host) = of_kept(&service) else { continue };
            if allocator.in_range(address) && allocator.taken.insert(address) {
                allocator.assigned.entry(host).or_default().insert(family(address), address);
            }
        }
        for SavedRelease { service, address, until_unix_seconds } in saved.released {
            let Some(host) = of_kept(&service) else { continue };
            if allocator.in_range(address) && !allocator.taken.contains(&address) {
                let until = SystemTime::UNIX_EPOCH + Duration::from_secs(until_unix_seconds.min(1 << 40));
                allocator.released.insert(address, Released { host, until });
            }
        }
        allocator
    }

    /// The ranges that addresses come from, as CIDRs.
    #[must_use]
    pub fn ranges(&self) -> Vec<String> {
        let ipv4 = self.ipv4.trunc().to_string();
        std::iter::once(ipv4).chain(self.ipv6.map(|range| range.trunc().to_string())).collect()
    }

    /// What to keep on disk.
    #[must_use]
    pub fn saved(&self) -> SavedVips {
        let assigned = self.assigned.iter().flat_map(|(host, addresses)| {
            addresses.values().map(|address| SavedVip { service: kept(host), address: *address })
        });
        let released = self.released.iter().map(|(address, released)| SavedRelease {
            service: kept(&released.host),
            address: *address,
            until_unix_seconds: released.until.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs(),
        });
        SavedVips { assigned: assigned.collect(), released: released.collect() }
    }

    /// Whether addresses of the family are given out at all.
    #[must_use]
    pub fn supports(&self, family: IpFamily) -> bool {
        family == IpFamily::IPv4 || self.ipv6.is_some()
    }

    /// The address of a family that the host has.
    #[must_use]
    pub fn address(&self, host: &ServiceHost, family: IpFamily) -> Option<IpAddr> {
        self.assigned.get(host)?.get(&family).copied()
    }

    /// The host's address of a family, a new one if it has none; `None` when the family is not supported.
    ///
    /// # Errors
    /// [`Exhausted`]
    pub fn allocate(
        &mut self,
        host: &ServiceHost,
        family: IpFamily,
        now: SystemTime,
    ) -> Result<Option<IpAddr>, Exhausted> {
        if let Some(address) = self.address(host, family) {
            return Ok(Some(address));
        }
        self.released.retain(|_, released| released.until > now);
        let Some(range) = self.range(family) else { return Ok(None) };
        let own = self
            .released
            .iter()
            .find(|(address, released)| released.host == *host && self::family(**address) == family)
            .map(|(address, _)| *address);
        let address = own.or_else(|| match host.endpoint() {
            Some((cluster, _)) if self.held(cluster, family) >= (range.size / ENDPOINT_SHARE).max(1) => {
                self.longest_rested(cluster, family)
            }
            _ => self.free(&range, host),
        });
        let address = address.ok_or_else(|| Exhausted { range: range.name.clone(), host: kept(host) })?;
        self.released.remove(&address);
        self.taken.insert(address);
        self.assigned.entry(host.clone()).or_default().insert(family, address);
        Ok(Some(address))
    }

    /// Only these hosts of a service are imported from now on: the addresses of its others rest. Returns whether there were any.
    pub fn keep_only(&mut self, service: &ServiceId, hosts: &BTreeSet<ServiceHost>, now: SystemTime) -> bool {
        let known = self.assigned.range(service.host()..).map(|(host, _)| host);
        let known = known.take_while(|host| host.service() == service);
        let gone: Vec<ServiceHost> = known.filter(|host| !hosts.contains(*host)).cloned().collect();
        for host in &gone {
            for address in self.assigned.remove(host).unwrap_or_default().into_values() {
                self.taken.remove(&address);
                self.released.insert(address, Released { host: host.clone(), until: now + QUARANTINE });
            }
        }
        !gone.is_empty()
    }

    /// Services with addresses, or with endpoints that have some.
    pub fn services(&self) -> impl Iterator<Item = &ServiceId> {
        self.assigned.keys().map(ServiceHost::service)
    }

    /// How many addresses of a family the endpoints of a cluster have, resting ones included.
    fn held(&self, cluster: &ClusterName, family: IpFamily) -> u64 {
        let assigned =
            self.assigned.iter().filter(|(host, addresses)| is_of(host, cluster) && addresses.contains_key(&family));
        (assigned.count() + self.rested(cluster, family).count()) as u64
    }

    fn longest_rested(&self, cluster: &ClusterName, family: IpFamily) -> Option<IpAddr> {
        self.rested(cluster, family).min_by_key(|(_, released)| released.until).map(|(address, _)| *address)
    }

    fn rested(&self, cluster: &ClusterName, family: IpFamily) -> impl Iterator<Item = (&IpAddr, &Released)> {
        let of = move |(address, released): &(&IpAddr, &Released)| {
            is_of(&released.host, cluster) && self::family(**address) == family
        };
        self.released.iter().filter(of)
    }

    fn in_range(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.ipv4.contains(&address),
            IpAddr::V6(address) => self.ipv6.is_some_and(|range| range.contains(&address)),
        }
    }

    fn range(&self, family: IpFamily) -> Option<Range> {
        match family {
            IpFamily::IPv4 => Some(Range {
                name: self.ipv4.to_string(),
                network: IpAddr::V4(self.ipv4.network()),
                // Without the first and the last address, which some stacks take for network and broadcast.
                size: (1_u64 << (32 - u32::from(self.ipv4.prefix_len()))) - 2,
            }),
            IpFamily::IPv6 => self.ipv6.map(|range| Range {
                name: range.to_string(),
                network: IpAddr::V6(range.network()),
                size: (1_u64 << (128 - u32::from(range.prefix_len())).min(32)) - 1,
            }),
        }
    }

    /// A free address, searched from where the host's name hashes to: after a loss of the state most hosts get what they had.
    fn free(&self, range: &Range, host: &ServiceHost) -> Option<IpAddr> {
        let start = hash(&kept(host)) % range.size;
        let candidates = (0..range.size).map(|step| range.address((start + step) % range.size));
        // Of more candidates than are in use, one is free.
        let used = self.taken.len() + self.released.len() + 1;
        candidates.take(used).find(|address| !self.taken.contains(address) && !self.released.contains_key(address))
    }
}

struct Range {
    name: String,
    network: IpAddr,
    /// Usable addresses, from the network's own plus one.
    size: u64,
}

impl Range {
    fn address(&self, offset: u64) -> IpAddr {
        match self.network {
            // The range has at most 2^32 addresses, so the sum stays in it.
            IpAddr::V4(network) => {
                let offset = u32::try_from(offset + 1).unwrap_or(u32::MAX);
                IpAddr::V4(Ipv4Addr::from(u32::from(network).wrapping_add(offset)))
            }
            IpAddr::V6(network) => IpAddr::V6(Ipv6Addr::from(u128::from(network) + u128::from(offset) + 1)),
        }
    }
}

/// A host as it is kept on disk.
fn kept(host: &ServiceHost) -> String {
    match host.endpoint() {
        None => host.service().to_string(),
        Some(_) => host.to_string(),
    }
}

fn of_kept(text: &str) -> Option<ServiceHost> {
    match text.parse::<ServiceId>() {
        Ok(service) => Some(service.host()),
        Err(_) => text.parse().ok(),
    }
}

fn is_of(host: &ServiceHost, cluster: &ClusterName) -> bool {
    host.endpoint().is_some_and(|(of, _)| of == cluster)
}

fn family(address: IpAddr) -> IpFamily {
    match address {
        IpAddr::V4(_) => IpFamily::IPv4,
        IpAddr::V6(_) => IpFamily::IPv6,
    }
}

/// FNV-1a: spreads names, nothing more.
fn hash(text: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    fn service(number: u8) -> ServiceHost {
        format!("shop/s{number}").parse::<ServiceId>().unwrap().host()
    }

    fn endpoint(number: u8) -> ServiceHost {
        format!("db-{number}.west.db.shop.svc.clusterset.local").parse().unwrap()
    }

    fn release(vips: &mut VipAllocator, host: &ServiceHost, now: SystemTime) -> bool {
        vips.keep_only(host.service(), &BTreeSet::new(), now)
    }

    fn allocator(range: &str, saved: SavedVips) -> VipAllocator {
        VipAllocator::new(range.parse().unwrap(), None, saved)
    }

    #[test]
    fn an_address_stays_and_comes_back_within_a_day() {
        let now = SystemTime::UNIX_EPOCH + QUARANTINE * 1000;
        let mut vips = allocator("241.7.0.0/16", SavedVips::default());
        let first = vips.allocate(&service(1), IpFamily::IPv4, now).unwrap().unwrap();
        assert_eq!(vips.allocate(&service(1), IpFamily::IPv4, now).unwrap(), Some(first));
        assert_eq!(vips.allocate(&service(1), IpFamily::IPv6, now), Ok(None));
        release(&mut vips, &service(1), now);
        let mut vips = allocator("241.7.0.0/16", vips.saved());
        let later = now + QUARANTINE - Duration::from_secs(1);
        assert_eq!(vips.allocate(&service(1), IpFamily::IPv4, later).unwrap(), Some(first));
    }

    #[test]
    fn what_imports_say_is_gone_on_with() {
        let standing = |number: u8, address: &str| (service(number), address.parse().unwrap());
        let saved =
            SavedVips::of_imports([standing(1, "241.7.0.9"), standing(2, "241.7.0.9"), standing(3, "10.0.0.1")]);
        assert!(!saved.is_empty() && SavedVips::default().is_empty());
        let mut vips = allocator("241.7.0.0/16", saved);
        let mut of = |number| vips.allocate(&service(number), IpFamily::IPv4, SystemTime::now()).unwrap().unwrap();
        assert_eq!(of(1), "241.7.0.9".parse::<IpAddr>().unwrap());
        assert_ne!(of(2), of(1), "an address that two claim is the first one's");
        assert!(
            allocator("241.7.0.0/16", SavedVips::default()).in_range(of(3)),
            "outside of the range it means nothing"
        );
    }

    #[test]
    fn a_full_range_is_an_error_until_the_quarantine_ends() {
        let now = SystemTime::UNIX_EPOCH + QUARANTINE * 1000;
        let mut vips = allocator("241.7.0.0/29", SavedVips::default());
        for number in 0..6 {
            vips.allocate(&service(number), IpFamily::IPv4, now).unwrap();
        }
        assert!(vips.allocate(&service(9), IpFamily::IPv4, now).is_err());
        release(&mut vips, &service(0), now);
        let error = vips.allocate(&service(9), IpFamily::IPv4, now).unwrap_err();
        assert_eq!(error.to_string(), "no free address in 241.7.0.0/29 for shop/s9");
        assert!(vips.allocate(&service(9), IpFamily::IPv4, now + QUARANTINE).unwrap().is_some());
    }

    #[test]
    fn endpoints_keep_their_addresses_and_those_that_go_leave_the_others() {
        let now = SystemTime::UNIX_EPOCH + QUARANTINE * 1000;
        let mut vips = allocator("241.7.0.0/16", SavedVips::default());
        let addresses = [0, 1].map(|number| vips.allocate(&endpoint(number), IpFamily::IPv4, now).unwrap().unwrap());
        assert_ne!(addresses[0], addresses[1]);
        let other = vips.allocate(&service(1), IpFamily::IPv4, now).unwrap();
        assert!(vips.keep_only(endpoint(0).service(), &BTreeSet::from([endpoint(1)]), now));
        assert!(!vips.keep_only(endpoint(0).service(), &BTreeSet::from([endpoint(1)]), now), "it is gone already");
        let mut vips = allocator("241.7.0.0/16", vips.saved());
        let again = [0, 1].map(|number| vips.allocate(&endpoint(number), IpFamily::IPv4, now).unwrap().unwrap());
        assert_eq!(again, addresses, "a restarted pod is where it was");
        assert_eq!(vips.allocate(&service(1), IpFamily::IPv4, now).unwrap(), other);
    }

    #[test]
    fn a_cluster_whose_endpoints_never_stay_uses_up_nobody_elses_addresses() {
        let now = SystemTime::UNIX_EPOCH + QUARANTINE * 1000;
        let mut vips = allocator("241.7.0.0/25", SavedVips::default());
        let share = u8::try_from(126 / ENDPOINT_SHARE).unwrap();
        let mut seen = BTreeSet::new();
        for number in 0..200 {
            let later = now + Duration::from_secs(number.into());
            let address = vips.allocate(&endpoint(number), IpFamily::IPv4, later).unwrap().unwrap();
            seen.insert(address);
            vips.keep_only(endpoint(0).service(), &BTreeSet::new(), later);
        }
        assert_eq!(seen.len(), usize::from(share), "beyond its share a cluster gets its own oldest ones");
        for number in 0..share {
            vips.allocate(&endpoint(number), IpFamily::IPv4, now).unwrap();
        }
        let error = vips.allocate(&endpoint(99), IpFamily::IPv4, now).unwrap_err().to_string();
        assert_eq!(error, "no free address in 241.7.0.0/25 for db-99.west.db.shop.svc.clusterset.local");
        assert!(vips.allocate(&service(1), IpFamily::IPv4, now).unwrap().is_some());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Allocate(u8),
        Release(u8),
        Restart,
        Wait(u32),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..12_u8).prop_map(Step::Allocate),
            3 => (0..12_u8).prop_map(Step::Release),
            1 => Just(Step::Restart),
            1 => (0..100_000_u32).prop_map(Step::Wait),
        ];
        proptest::collection::vec(step, 1..60)
    }

    proptest! {
        #[test]
        fn no_address_is_shared_or_reused_too_soon(steps in steps()) {
            let mut now = SystemTime::UNIX_EPOCH + QUARANTINE * 1000;
            let range = "241.7.0.0/28";
            let mut vips = allocator(range, SavedVips::default());
            let mut owner: BTreeMap<IpAddr, (ServiceHost, Option<SystemTime>)> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Allocate(number) => {
                        let Ok(Some(address)) = vips.allocate(&service(number), IpFamily::IPv4, now) else { continue };
                        let within = matches!(address, IpAddr::V4(address) if range.parse::<Ipv4Net>().unwrap().contains(&address));
                        prop_assert!(within, "{} is not in {}", address, range);
                        if let Some((before, released)) = owner.get(&address)
                            && *before != service(number)
                        {
                            prop_assert!(released.is_some_and(|released| released + QUARANTINE <= now), "{before} had {address}");
                        }
                        owner.insert(address, (service(number), None));
                    }
                    Step::Release(number) => {
                        if release(&mut vips, &service(number), now) {
                            for (by, released) in owner.values_mut() {
                                if *by == service(number) && released.is_none() {
                                    *released = Some(now);
                                }
                            }
                        }
                    }
                    Step::Restart => vips = allocator(range, vips.saved()),
                    Step::Wait(seconds) => now += Duration::from_secs(seconds.into()),
                }
            }
        }
    }
}
