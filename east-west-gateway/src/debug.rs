//! `/debug/routes` and `/debug/remotes`: where connections go now, from outside and from inside.

use std::{sync::Arc, time::Instant};

use axum::{Json, Router, routing::get};
use serde::Serialize;

use crate::{
    remotes::Remotes,
    routes::{Endpoint, Routes, ServiceRoute},
};

#[derive(Serialize)]
struct RouteView {
    host: String,
    ports: Vec<u16>,
    connections: usize,
    endpoints: Vec<EndpointView>,
}

#[derive(Serialize)]
struct EndpointView {
    id: String,
    address: String,
    region: String,
    zone: String,
    ready: bool,
    weight: u32,
    /// Could not be reached a moment ago, and is tried last.
    avoided: bool,
    connections: usize,
}

#[derive(Serialize)]
struct RemoteView {
    cluster: String,
    connections: usize,
    gateways: Vec<EndpointView>,
}

/// The routes in the order of their hosts, and other clusters in the order of their names, as JSON.
pub(crate) fn router(routes: Arc<Routes>, remotes: Arc<Remotes>) -> Router {
    Router::new()
        .route("/debug/routes", get(move || async move { Json(view(&routes)) }))
        .route("/debug/remotes", get(move || async move { Json(remotes_view(&remotes)) }))
}

fn remotes_view(remotes: &Remotes) -> Vec<RemoteView> {
    let now = Instant::now();
    let view = |remote: &Arc<crate::remotes::RemoteCluster>| RemoteView {
        cluster: remote.cluster.to_string(),
        connections: remote.connections(),
        gateways: remote.gateways.iter().map(|gateway| endpoint_view(gateway, now)).collect(),
    };
    remotes.all().iter().map(view).collect()
}

fn view(routes: &Routes) -> Vec<RouteView> {
    let mut all = routes.all();
    all.sort_by(|left, right| left.host.cmp(&right.host));
    let now = Instant::now();
    all.iter().map(|route| view_of(route, now)).collect()
}

fn view_of(route: &ServiceRoute, now: Instant) -> RouteView {
    RouteView {
        host: route.host.to_string(),
        ports: route.ports.clone(),
        connections: route.connections(),
        endpoints: route.endpoints.iter().map(|endpoint| endpoint_view(endpoint, now)).collect(),
    }
}

fn endpoint_view(endpoint: &Endpoint, now: Instant) -> EndpointView {
    EndpointView {
        id: endpoint.id.clone(),
        address: endpoint.address.to_string(),
        region: endpoint.locality.region.clone(),
        zone: endpoint.locality.zone.clone(),
        ready: endpoint.ready,
        weight: endpoint.weight,
        avoided: endpoint.avoided(now),
        connections: endpoint.connections(),
    }
}
