//! rustls configurations that verify by trust domain.
