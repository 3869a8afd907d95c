//! When imports are there, as a client of their API sees it.

use std::collections::HashSet;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::StreamExt;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use kube::runtime::watcher::{Config, Event};
use kube::runtime::{WatchStreamExt, watcher};

/// ServiceImports, without their schema.
fn imports(client: &Client) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("multicluster.x-k8s.io", "v1beta1", "ServiceImport");
    Api::all_with(client.clone(), &ApiResource::from_gvk_with_plural(&kind, "serviceimports"))
}

/// Waits until as many imports have an address.
pub(super) async fn until_imported(client: &Client, count: usize, patience: Duration) -> anyhow::Result<()> {
    let config = Config { bookmarks: true, ..Config::default() };
    let mut events = pin!(watcher(imports(client), config).default_backoff());
    let mut there = HashSet::new();
    let waiting = async {
        while there.len() < count {
            match events.next().await.context("the watch has ended")? {
                Ok(Event::Apply(import) | Event::InitApply(import)) => {
                    let addressed = import.data["spec"]["ips"].as_array().is_some_and(|ips| !ips.is_empty());
                    if addressed {
                        there.insert((import.metadata.namespace, import.metadata.name));
                    }
                }
                Ok(Event::Delete(import)) => {
                    there.remove(&(import.metadata.namespace, import.metadata.name));
                }
                _ => {}
            }
        }
        anyhow::Ok(())
    };
    let outcome = tokio::time::timeout(patience, waiting).await;
    match outcome {
        Ok(outcome) => outcome,
        Err(_) => bail!("{} imports of {count} after {patience:?}", there.len()),
    }
}
