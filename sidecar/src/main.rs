//! Originates and terminates mTLS for one workload; balances, fails over, retries.

fn main() {}
