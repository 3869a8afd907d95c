//! What an operator does to the trust-bundle, with the keys that `trust-bundle init` wrote: for what is measured to the
//! millisecond, without the start of a command in between.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use federation::FederationDomain;
use federation_api::client::trust::{list_watchers, operations};
use federation_api::signing::MembershipRoot;
use federation_api::trust::v1::Watcher;
use federation_api::verify::{DenyList, verify_deny_list};
use mesh_tls::rpc::{self, ChannelOptions};
use mesh_tls::{ExpectedPeer, Identity, TrustStore, client_config, pem};
use serde::Deserialize;
use spiffe_identity::{Bundle, SpiffeId, TrustDomain};
use tonic::transport::Channel;

use super::wait;

/// `federation.json`
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FederationFile {
    federation: FederationDomain,
    trust_bundle_addresses: Vec<String>,
}

/// An operator's connection to the trust-bundle.
#[derive(Debug)]
pub struct TrustOperator {
    channel: Channel,
    root: MembershipRoot,
    federation: FederationDomain,
}

impl TrustOperator {
    /// With the operator's directory.
    ///
    /// # Errors
    /// A file of it cannot be used.
    pub fn open(directory: &Path) -> anyhow::Result<Self> {
        let read = |name: &str| std::fs::read(directory.join(name)).with_context(|| name.to_owned());
        let file: FederationFile = serde_json::from_slice(&read("federation.json")?)?;
        let plane: TrustDomain = file.federation.as_str().parse()?;
        let trust = TrustStore::new();
        trust.insert(Bundle {
            trust_domain: plane.clone(),
            x509_authorities: pem::certificates_from_pem(&read("federation-root.crt")?)?,
            sequence: 0,
            refresh_hint: None,
        });
        let identity = Identity::from_pem(&read("operator.crt")?, &read("operator.key")?)?;
        let expected = ExpectedPeer::exactly(SpiffeId::service(&plane, "trust-bundle")?);
        let config = client_config(Some(&identity), &trust, expected, &[rpc::ALPN]);
        let channel = rpc::channel(file.trust_bundle_addresses, config, ChannelOptions::default());
        let root = MembershipRoot::from_pem(std::str::from_utf8(&read("membership-root.key")?)?)?;
        Ok(Self { channel, root, federation: file.federation })
    }

    /// Signs and puts the next deny-list; returns the epoch of the trust state that holds it.
    ///
    /// # Errors
    /// The trust-bundle refuses, or the list in force is not the operator's.
    pub async fn change(&self, change: impl FnOnce(&mut DenyList)) -> anyhow::Result<u64> {
        let mut list = match operations::fetch_deny_list(self.channel.clone()).await? {
            Some(signed) => verify_deny_list(&self.root.public(), &self.federation, &signed)?,
            None => DenyList::empty(self.federation.clone()),
        };
        change(&mut list);
        list.epoch += 1;
        list.issued = SystemTime::now();
        Ok(operations::put_deny_list(self.channel.clone(), self.root.deny(&list.to_wire())).await?)
    }

    /// Who watches, by identity.
    ///
    /// # Errors
    /// The trust-bundle refuses.
    pub async fn watchers(&self) -> anyhow::Result<BTreeMap<String, Watcher>> {
        let listed = list_watchers(self.channel.clone()).await?.watchers;
        let connected = listed.into_iter().filter(|watcher| watcher.connected);
        Ok(connected.map(|watcher| (watcher.identity.clone(), watcher)).collect())
    }

    /// Waits until control-planes and all proxies behind them have applied an epoch.
    ///
    /// # Errors
    /// One has not in time; the error names it.
    pub async fn until_applied(&self, clusters: &[&str], epoch: u64, deadline: Duration) -> anyhow::Result<()> {
        wait::until("the acknowledgements", deadline, || async {
            let watchers = self.watchers().await?;
            for cluster in clusters {
                let identity = format!("spiffe://{}/cluster/{cluster}/control-plane", self.federation);
                let watcher = watchers.get(&identity).with_context(|| format!("{cluster} does not watch"))?;
                let pending = &watcher.pending_proxies;
                ensure!(watcher.acknowledged >= epoch && watcher.pending_count == 0, "{cluster}: {pending:?}");
            }
            Ok(())
        })
        .await
    }
}
