//! `/debug/routes`: where connections go now.

use std::{sync::Arc, time::Instant};

use axum::{Json, Router, routing::get};
use serde::Serialize;

use crate::routes::{Routes, ServiceRoute};

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
    /// Could not be reached a moment ago, and is tried last.
    avoided: bool,
    connections: usize,
}

/// The routes in the order of their hosts, as JSON.
pub(crate) fn router(routes: Arc<Routes>) -> Router {
    Router::new().route("/debug/routes", get(move || async move { Json(view(&routes)) }))
}

fn view(routes: &Routes) -> Vec<RouteView> {
    let mut all = routes.all();
    all.sort_by(|left, right| left.host.cmp(&right.host));
    let now = Instant::now();
    all.iter().map(|route| view_of(route, now)).collect()
}

fn view_of(route: &ServiceRoute, now: Instant) -> RouteView {
    let endpoints = route.endpoints.iter().map(|endpoint| EndpointView {
        id: endpoint.id.clone(),
        address: endpoint.address.to_string(),
        region: endpoint.locality.region.clone(),
        zone: endpoint.locality.zone.clone(),
        ready: endpoint.ready,
        avoided: endpoint.avoided(now),
        connections: endpoint.connections(),
    });
    RouteView {
        host: route.host.to_string(),
        ports: route.ports.clone(),
        connections: route.connections(),
        endpoints: endpoints.collect(),
    }
}
