//! Process plumbing: configuration, telemetry, readiness, drain, admin endpoint.
