//! One per cluster: watches services, publishes exports, writes imports, issues SVIDs, serves discovery and DNS.
