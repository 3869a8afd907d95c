//! What scenarios play on.

use e2e::demo::faults::Faults;
use e2e::demo::screen::Screen;
use e2e::demo::story;
use e2e::demo::table::Row;
use e2e::lab::binaries::Binaries;
use e2e::lab::federation::Storage;
use e2e::lab::shop_federation::shop_federation;
use e2e::lab::{ClusterDescription, Lab, NAMESPACE};
use e2e::load::Load;
use tempfile::TempDir;

pub(crate) struct Stage {
    pub(crate) lab: Lab,
    screen: Screen,
    directory: TempDir,
}

impl Stage {
    /// The shop's federation, everything exported and imported.
    pub(crate) async fn set() -> Self {
        Self::set_with(shop_federation()).await
    }

    /// The shop's services in clusters of the caller's making.
    pub(crate) async fn set_with(clusters: Vec<ClusterDescription>) -> Self {
        let (mut screen, directory) = (Screen::silent(), tempfile::tempdir().unwrap());
        let mut lab = story::bring_up(&mut screen, directory.path(), clusters).await.unwrap();
        story::export(&mut screen, &mut lab).await.unwrap();
        Self { lab, screen, directory }
    }

    /// The shop's federation with the plane on three etcd members, two replicas of each service.
    pub(crate) async fn set_on_etcd() -> Self {
        let (mut screen, directory) = (Screen::silent(), tempfile::tempdir().unwrap());
        let binaries = Binaries::build().unwrap();
        let mut lab = Lab::start_on(directory.path(), binaries, Storage::Etcd).await.unwrap();
        lab.add(shop_federation()).await.unwrap();
        story::export(&mut screen, &mut lab).await.unwrap();
        Self { lab, screen, directory }
    }

    /// A federation without clusters.
    pub(crate) async fn bare() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let lab = Lab::start(directory.path(), Binaries::build().unwrap()).await.unwrap();
        Self { lab, screen: Screen::silent(), directory }
    }

    /// 200 requests a second from east.
    pub(crate) fn faults(&mut self) -> Faults<'_> {
        let load = Load::start(self.lab.cluster("east").unwrap().client_proxy(), NAMESPACE).unwrap();
        Faults { lab: &mut self.lab, load, screen: &mut self.screen, rows: Vec::new() }
    }

    /// Ends every process and removes what they wrote.
    pub(crate) async fn end(self) {
        self.lab.stop().await;
        drop(self.directory);
    }
}

/// A cluster of a control-plane only.
pub(crate) fn small(name: &'static str) -> ClusterDescription {
    ClusterDescription {
        name,
        region: "eu",
        zone: "eu-a",
        gateways: 0,
        egress_restricted: false,
        services: Vec::new(),
        collector: None,
    }
}

/// No request failed, in any of the faults.
pub(crate) fn assert_unharmed(rows: &[Row]) {
    assert!(!rows.is_empty());
    for Row { fault, impact, .. } in rows {
        assert!(impact.requests > 100, "{fault}: only {} requests", impact.requests);
        assert!(impact.failed.is_empty(), "{fault}: {} failed, the first: {}", impact.failed.len(), impact.failed[0]);
    }
}
