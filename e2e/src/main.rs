//! The lab: N clusters as real processes; the demo and the scenario tests.

fn main() {}
