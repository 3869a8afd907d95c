//! The Kubernetes, MCS and isthmus.dev kinds, and the manifest reader.
