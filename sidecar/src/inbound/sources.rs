//! Handshakes under way by source address: one address must not take all places.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Handshakes of one address at a time. Gateways bring many peers under one address.
const MAX_PER_SOURCE: usize = 128;

/// Counts handshakes by source. Clones share the counts.
#[derive(Clone, Default)]
pub(crate) struct Sources(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One handshake's place, given back on drop.
pub(crate) struct Source {
    sources: Sources,
    address: IpAddr,
}

impl Sources {
    /// A place; `None` if the address has too many.
    pub(crate) fn enter(&self, address: IpAddr) -> Option<Source> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= MAX_PER_SOURCE {
            return None;
        }
        *count += 1;
        Some(Source { sources: self.clone(), address })
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let mut counts = self.sources.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn one_address_takes_its_share_of_places_and_gives_them_back() {
        let sources = Sources::default();
        let one = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let mut places: Vec<_> = (0..MAX_PER_SOURCE).filter_map(|_| sources.enter(one)).collect();
        assert_eq!(places.len(), MAX_PER_SOURCE);
        assert!(sources.enter(one).is_none());
        assert!(sources.enter(IpAddr::V6(Ipv6Addr::LOCALHOST)).is_some());
        places.pop();
        assert!(sources.enter(one).is_some());
        places.clear();
        assert!(sources.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty());
    }
}
