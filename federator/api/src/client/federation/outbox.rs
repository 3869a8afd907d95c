//! A cluster's records on their way to the federator: the newest per key, until the federator has answered for it.

use std::collections::BTreeMap;
use std::time::Duration;

use prost::Message as _;

use crate::federation::v1::PublishResult;
use crate::record::v1::{Signed, Statement};

/// Bytes of one Publish message, well below what any server refuses.
const MAX_BATCH_BYTES: usize = 1024 * 1024;

/// No server may make a client wait longer before it publishes again.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Waiting {
    generation: u64,
    sequence: u64,
    record: Signed,
}

/// Its size is bounded by the cluster's own number of records.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: BTreeMap<String, Waiting>,
}

impl Outbox {
    /// Takes a record unless a newer one of its key waits already. What cannot be decoded was not made by this crate.
    pub(super) fn put(&mut self, record: Signed) {
        let Ok(statement) = Statement::decode(record.message.as_ref()) else {
            tracing::warn!("a record to publish cannot be decoded");
            return;
        };
        let newer = self
            .waiting
            .get(&statement.key)
            .is_none_or(|waiting| (statement.generation, statement.sequence) > (waiting.generation, waiting.sequence));
        if newer {
            let (generation, sequence) = (statement.generation, statement.sequence);
            self.waiting.insert(statement.key, Waiting { generation, sequence, record });
        }
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// The next records in the order of their sequence, so that heads come after what they cover.
    pub(super) fn batch(&self, most: usize) -> Vec<(String, u64, Signed)> {
        let mut order: Vec<_> = self.waiting.iter().collect();
        order.sort_unstable_by_key(|(_, waiting)| (waiting.generation, waiting.sequence));
        let mut bytes = 0;
        let fits = |(_, waiting): &(&String, &Waiting)| {
            let first = bytes == 0;
            bytes += waiting.record.encoded_len();
            first || bytes <= MAX_BATCH_BYTES
        };
        let batch = order.into_iter().take(most.max(1)).take_while(fits);
        batch.map(|(key, waiting)| (key.clone(), waiting.sequence, waiting.record.clone())).collect()
    }

    /// The federator's answer ends the wait, unless it says that the record may be taken later: then that is returned. A
    /// newer record of the key waits on.
    pub(super) fn answered(&mut self, result: &PublishResult) -> Option<Duration> {
        let later = result.refusal.as_ref().map_or(0, |refusal| refusal.retry_after_ms);
        if later > 0 {
            return Some(Duration::from_millis(later.into()).min(LONGEST_PAUSE));
        }
        if self.waiting.get(&result.key).is_some_and(|waiting| waiting.sequence <= result.sequence) {
            self.waiting.remove(&result.key);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::federation::v1::Refusal;

    fn record(key: &str, sequence: u64, bytes: usize) -> Signed {
        let statement = Statement { key: key.to_owned(), sequence, ..Statement::default() };
        Signed { message: statement.encode_to_vec().into(), signature: vec![0; bytes].into() }
    }

    fn keys(batch: &[(String, u64, Signed)]) -> Vec<(&str, u64)> {
        batch.iter().map(|(key, sequence, _)| (key.as_str(), *sequence)).collect()
    }

    #[test]
    fn batches_follow_the_sequence_and_keep_the_newest_of_a_key() {
        let mut outbox = Outbox::default();
        for (key, sequence) in [("heads", 9), ("exports/a/b", 3), ("gateways", 5), ("exports/a/b", 7), ("gateways", 4)]
        {
            outbox.put(record(key, sequence, 64));
        }
        assert_eq!(keys(&outbox.batch(10)), [("gateways", 5), ("exports/a/b", 7), ("heads", 9)]);
        assert_eq!(keys(&outbox.batch(1)), [("gateways", 5)]);
    }

    #[test]
    fn a_batch_is_bounded_in_bytes_but_never_empty() {
        let mut outbox = Outbox::default();
        outbox.put(record("a", 1, 2 * MAX_BATCH_BYTES));
        outbox.put(record("b", 2, MAX_BATCH_BYTES / 2));
        outbox.put(record("c", 3, MAX_BATCH_BYTES / 4));
        outbox.put(record("d", 4, MAX_BATCH_BYTES / 2));
        assert_eq!(keys(&outbox.batch(10)), [("a", 1)]);
        outbox.answered(&PublishResult { key: "a".to_owned(), sequence: 1, ..PublishResult::default() });
        assert_eq!(keys(&outbox.batch(10)), [("b", 2), ("c", 3)]);
    }

    #[test]
    fn a_record_that_may_be_taken_later_waits() {
        let mut outbox = Outbox::default();
        outbox.put(record("gateways", 5, 64));
        let later = |retry_after_ms| PublishResult {
            key: "gateways".to_owned(),
            sequence: 5,
            refusal: Some(Refusal { retry_after_ms, ..Refusal::default() }),
            ..PublishResult::default()
        };
        assert_eq!(outbox.answered(&later(250)), Some(Duration::from_millis(250)));
        assert_eq!(outbox.answered(&later(u32::MAX)), Some(LONGEST_PAUSE));
        assert_eq!(outbox.len(), 1);
        assert_eq!(outbox.answered(&later(0)), None, "refused for good");
        assert_eq!(outbox.len(), 0);
    }

    #[test]
    fn an_answer_for_an_older_record_leaves_the_newer_one_waiting() {
        let mut outbox = Outbox::default();
        outbox.put(record("gateways", 5, 64));
        outbox.answered(&PublishResult { key: "gateways".to_owned(), sequence: 4, ..PublishResult::default() });
        assert_eq!(outbox.len(), 1);
        outbox.answered(&PublishResult { key: "gateways".to_owned(), sequence: 5, ..PublishResult::default() });
        assert_eq!(outbox.len(), 0);
    }
}
