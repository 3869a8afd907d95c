//! Memory that sessions have used and freed goes back to the system.
//!
//! A first snapshot takes buffers of TLS and HTTP/2 that it frees again, between what stays for as long as the session does. glibc
//! returns free memory only from the top of its heap: with a thousand sessions a quarter of what the process holds would stay free
//! and resident.

use std::time::Duration;

use crate::metrics::Metrics;

/// Between two looks. After one in which nothing was told the sessions are at rest.
const LOOK: Duration = Duration::from_secs(1);
/// How many records are told before it is worth while.
const WORTH: u64 = 1_000;

/// Gives back what is free whenever sessions are at rest after they were told much. Runs until dropped.
pub(crate) async fn follow(metrics: Metrics) {
    let (mut given_back_at, mut last) = (0, 0);
    loop {
        tokio::time::sleep(LOOK).await;
        let told = metrics.told_records();
        if told == last && told.saturating_sub(given_back_at) >= WORTH {
            given_back_at = told;
            // It walks the whole heap: milliseconds, and it locks the part where it is. A thread that has died has done nothing.
            let _ = tokio::task::spawn_blocking(give_back).await;
        }
        last = told;
    }
}

/// Returns the free pages of the heap to the system, where its allocator does not do so by itself.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "glibc offers it in C alone")]
fn give_back() {
    // SAFETY: it may be called from any thread at any time (malloc_trim(3)), and touches only what is free.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn give_back() {}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    /// Resident memory of this process, in bytes.
    fn resident() -> usize {
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
        pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }

    #[test]
    fn what_is_free_between_what_stays_is_given_back() {
        const EACH: usize = 1_000;
        const COUNT: usize = 64_000;
        let mut all: Vec<Option<Box<[u8]>>> = (0..COUNT).map(|_| Some(vec![1; EACH].into_boxed_slice())).collect();
        let full = resident();
        for (number, one) in all.iter_mut().enumerate() {
            if !number.is_multiple_of(64) {
                *one = None;
            }
        }
        give_back();
        let after = resident();
        assert!(after + EACH * COUNT / 2 < full, "{full} bytes, then {after}");
        assert_eq!(all.iter().flatten().count(), COUNT / 64);
    }
}
