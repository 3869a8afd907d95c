//! Every base of `deploy/` is what an API server takes.

use e2e::kubernetes::deploy;

use crate::with_lab;

#[test]
fn every_base_applies_with_unknown_fields_refused() {
    with_lab(async |lab| {
        let servers = &lab.clusters[1].servers;
        for base in ["crds", "control-plane", "east-west-gateway", "federator", "trust-bundle"] {
            // The Secrets and addresses are the operator's; Deployments whose pods lack them wait.
            let folder = deploy(base).display().to_string();
            let dry =
                ["apply", "--server-side", "--force-conflicts", "--validate=strict", "--dry-run=server", "-k", &folder];
            if base.ends_with("federator") || base.ends_with("trust-bundle") {
                servers.namespace("isthmus-federation").await.unwrap();
            }
            let applied = servers.kubectl(&dry).await.unwrap_or_else(|error| panic!("{base}: {error:#}"));
            assert!(applied.contains("serverside-applied"), "{applied}");
        }
    });
}
