//! When imports come in a burst, and everything else waits for them. Time is an argument.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// So many imports within [`WINDOW`] are a burst.
const IMPORTS: usize = 16;

/// The rest of the work begins this long after a burst has ebbed away.
const WINDOW: Duration = Duration::from_secs(1);

/// A burst holds everything else up no longer than this: conditions and slices are waited for, too.
const LONGEST: Duration = Duration::from_secs(10);

/// The last imports.
#[derive(Debug, Default)]
pub(super) struct Burst {
    last: VecDeque<Instant>,
    since: Option<Instant>,
}

impl Burst {
    /// An import is written now.
    pub(super) fn import(&mut self, now: Instant) {
        if self.last.len() == IMPORTS {
            self.last.pop_front();
        }
        self.last.push_back(now);
    }

    /// Until when everything but imports waits, as far as is known now; `None`: nothing waits.
    pub(super) fn holds_until(&mut self, now: Instant) -> Option<Instant> {
        let ebbed = self.last.front().filter(|_| self.last.len() == IMPORTS).map(|oldest| *oldest + WINDOW);
        let Some(ebbed) = ebbed.filter(|ebbed| *ebbed > now) else {
            self.since = None;
            return None;
        };
        let since = *self.since.get_or_insert(now);
        Some(ebbed.min(since + LONGEST)).filter(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_imports_hold_nothing_up() {
        let (mut burst, now) = (Burst::default(), Instant::now());
        for _ in 1..IMPORTS {
            burst.import(now);
            assert_eq!(burst.holds_until(now), None);
        }
        let mut slow = Burst::default();
        for number in 0..100 {
            let now = now + WINDOW * number / 8;
            slow.import(now);
            assert_eq!(slow.holds_until(now), None, "{number}");
        }
    }

    #[test]
    fn a_burst_holds_the_rest_until_it_ebbs_away() {
        let (mut burst, begun) = (Burst::default(), Instant::now());
        let mut now = begun;
        for _ in 0..100 {
            now += Duration::from_millis(2);
            burst.import(now);
        }
        let until = burst.holds_until(now);
        assert!(until.is_some_and(|until| until > now && until < now + WINDOW), "{until:?}");
        assert_eq!(burst.holds_until(now + WINDOW), None);
    }

    #[test]
    fn a_burst_without_an_end_does_not_hold_the_rest_for_ever() {
        let (mut burst, begun) = (Burst::default(), Instant::now());
        for _ in 0..IMPORTS {
            burst.import(begun);
        }
        let mut now = begun;
        while burst.holds_until(now).is_some() {
            now += Duration::from_millis(5);
            burst.import(now);
            assert!(now <= begun + LONGEST);
        }
        assert_eq!(now, begun + LONGEST);
        // And not again before it has ebbed away once.
        burst.import(now);
        assert_eq!(burst.holds_until(now), None);
        assert_eq!(burst.holds_until(now + WINDOW), None);
        for _ in 0..IMPORTS {
            burst.import(now + WINDOW);
        }
        assert!(burst.holds_until(now + WINDOW).is_some());
    }
}
