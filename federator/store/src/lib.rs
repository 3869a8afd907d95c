//! A revisioned key-value store: one trait, an embedded backend.
