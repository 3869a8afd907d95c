//! Where etcd is, and how to speak to it.

use std::path::PathBuf;

use serde::Deserialize;

/// The longest prefix: with it, a transaction at [`MAX_REQUEST_BYTES`](crate::MAX_REQUEST_BYTES) stays within etcd's limit.
const MAX_PREFIX_BYTES: usize = 96;

/// An etcd cluster, spoken to over TLS with a client certificate.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct EtcdConfig {
    /// The members, each `https://host:port`. Requests go to one of them and fail over to the others.
    pub endpoints: Vec<String>,
    /// The certificates (PEM) that vouch for the members. Read again for every new connection, as are the next two.
    pub ca_file: PathBuf,
    /// The own certificate chain (PEM). Under etcd's `--client-cert-auth` its common name is the user.
    pub certificate_file: PathBuf,
    /// The own key (PEM).
    pub key_file: PathBuf,
    /// Before every key, for example `/isthmus/federator/`: what the user's role must be granted. One program, one prefix.
    pub prefix: String,
}

impl EtcdConfig {
    /// Everything that is wrong with it, each as `field: what is wrong`.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.endpoints.is_empty() {
            problems.push("endpoints: at least one is needed".to_owned());
        }
        for endpoint in self.endpoints.iter().filter(|endpoint| !endpoint.starts_with("https://")) {
            problems.push(format!("endpoints: {endpoint} does not begin with https://"));
        }
        if !self.prefix.ends_with('/') || self.prefix.len() > MAX_PREFIX_BYTES {
            problems.push(format!("prefix: must end with / and have at most {MAX_PREFIX_BYTES} bytes"));
        }
        let files =
            [("caFile", &self.ca_file), ("certificateFile", &self.certificate_file), ("keyFile", &self.key_file)];
        for (field, file) in files {
            if !file.is_file() {
                problems.push(format!("{field}: {} is no file", file.display()));
            }
        }
        problems
    }
}
