//! The federation's domain, pure: names, localities, exports, merge and failover order.
