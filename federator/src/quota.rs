//! What one cluster may use, and how fast.

use std::time::{Duration, Instant};

use serde::Deserialize;

/// What one cluster may use. Withdrawals of what is stored are always taken, at the pace that is allowed.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Quota {
    /// Live exports and headless slices.
    pub exports: usize,
    /// Records: live ones, and withdrawals until they are collected.
    pub records: usize,
    /// Bytes of all records.
    pub bytes: usize,
    /// Bytes of one record.
    pub record_bytes: usize,
    /// Records in one message.
    pub publish_records: usize,
    /// Records a second, over a longer time.
    pub updates_per_second: u32,
    /// Records at once.
    pub updates_burst: u32,
}

impl Default for Quota {
    fn default() -> Self {
        Self {
            exports: 5_000,
            records: 15_000,
            bytes: 16 * 1024 * 1024,
            record_bytes: 64 * 1024,
            publish_records: 100,
            updates_per_second: 100,
            updates_burst: 10_000,
        }
    }
}

impl Quota {
    /// What is wrong with it.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let limits = [self.exports, self.records, self.bytes, self.record_bytes, self.publish_records];
        if limits.contains(&0) || self.updates_per_second == 0 || self.updates_burst == 0 {
            problems.push("quota: every limit must be at least 1".to_owned());
        }
        if self.records < self.exports {
            problems.push("quota.records: must be at least quota.exports".to_owned());
        }
        if self.publish_records > crate::admission::MOST_RECORDS {
            let most = crate::admission::MOST_RECORDS;
            problems.push(format!("quota.publishRecords: must be at most {most}, what one transaction holds"));
        }
        problems
    }
}

/// A token bucket: time is an argument.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    /// A full one.
    #[must_use]
    pub fn full(quota: &Quota, now: Instant) -> Self {
        Self { tokens: f64::from(quota.updates_burst), filled: now }
    }

    /// How many updates are free now.
    pub fn free(&mut self, quota: &Quota, now: Instant) -> usize {
        let earned = now.saturating_duration_since(self.filled).as_secs_f64() * f64::from(quota.updates_per_second);
        self.tokens = (self.tokens + earned).min(f64::from(quota.updates_burst));
        self.filled = now;
        // Never negative, and no larger than a u32.
        self.tokens as usize
    }

    /// Uses so many.
    pub fn take(&mut self, count: usize) {
        self.tokens = (self.tokens - count as f64).max(0.0);
    }

    /// After which time `count` updates will be free.
    #[must_use]
    pub fn wait(&self, quota: &Quota, count: usize) -> Duration {
        let count = (count as f64).min(f64::from(quota.updates_burst));
        Duration::from_secs_f64((count - self.tokens).max(0.0) / f64::from(quota.updates_per_second))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_allows_its_burst_and_then_its_pace() {
        let quota = Quota { updates_per_second: 10, updates_burst: 20, ..Quota::default() };
        let start = Instant::now();
        let mut bucket = Bucket::full(&quota, start);
        assert_eq!(bucket.free(&quota, start), 20);
        bucket.take(20);
        assert_eq!(bucket.free(&quota, start), 0);
        assert_eq!(bucket.wait(&quota, 5), Duration::from_millis(500));
        assert_eq!(bucket.free(&quota, start + Duration::from_millis(500)), 5);
        assert_eq!(bucket.free(&quota, start + Duration::from_secs(3600)), 20, "never more than the burst");
    }
}
