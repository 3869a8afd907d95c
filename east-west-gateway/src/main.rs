//! A layer-4 SNI router between clusters, holding no keys of the traffic it passes.

fn main() {}
