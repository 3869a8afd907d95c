//! The shop's federation: three clusters of two regions, and which of its services run where.

use super::{ClusterDescription, ServiceDescription};
use crate::shop::Role;

fn service(name: &'static str, role: Role, port: u16, target_port: u16, port_name: &'static str) -> ServiceDescription {
    ServiceDescription { name, role, port, target_port, port_name, replicas: 1 }
}

fn frontend() -> ServiceDescription {
    service("frontend", Role::Frontend, 80, 8080, "http")
}

fn catalog() -> ServiceDescription {
    service("productcatalogservice", Role::Productcatalogservice, 3550, 3550, "grpc")
}

fn cart() -> ServiceDescription {
    service("cartservice", Role::Cartservice, 7070, 7070, "grpc")
}

/// east and west in one region, north in another; a page view from east asks west or north for the cart, and the cart
/// asks north for its store.
#[must_use]
pub fn shop_federation() -> Vec<ClusterDescription> {
    let cluster = |name, region, zone, services| ClusterDescription {
        name,
        region,
        zone,
        gateways: 2,
        egress_restricted: false,
        services,
        collector: None,
    };
    vec![
        cluster("east", "eu", "eu-a", vec![frontend(), ServiceDescription { replicas: 2, ..catalog() }]),
        cluster("west", "eu", "eu-b", vec![frontend(), catalog(), cart()]),
        cluster(
            "north",
            "us",
            "us-a",
            vec![
                frontend(),
                catalog(),
                cart(),
                service("checkoutservice", Role::Checkoutservice, 5050, 5050, "grpc"),
                service("redis-cart", Role::RedisCart, 6379, 6379, "tcp-redis"),
            ],
        ),
    ]
}
