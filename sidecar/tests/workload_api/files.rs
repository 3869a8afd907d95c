//! The socket as a file.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;

use mesh_runtime::Process;
use sidecar::Sidecar;
use sidecar::config::WorkloadApiConfig;

use crate::client::{connect, pod};
use crate::cluster::Cluster;

#[tokio::test]
async fn the_socket_is_for_owner_and_group_and_goes_with_the_sidecar() {
    let east = Cluster::start("east").await;
    let (pod, socket) = pod(&east, "frontend-1").await;
    let metadata = std::fs::metadata(&socket).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o660);
    pod.sidecar.stop().await;
    assert!(!socket.exists());
}

#[tokio::test]
async fn what_a_killed_sidecar_left_is_replaced() {
    let east = Cluster::start("east").await;
    let config = east.config("frontend-1", "frontend");
    let left = config.state_directory.with_extension("sock");
    drop(UnixListener::bind(&left).unwrap());
    assert!(left.exists(), "a socket file without a listener");
    let (_pod, socket) = pod(&east, "frontend-1").await;
    assert_eq!(socket, left);
    connect(&socket).await;
}

#[tokio::test]
async fn a_living_process_keeps_its_socket() {
    let east = Cluster::start("east").await;
    let (first, socket) = pod(&east, "frontend-1").await;
    let mut config = east.config("frontend-2", "frontend");
    config.workload_api = Some(WorkloadApiConfig { socket: socket.clone() });
    let refused = Sidecar::start(config, Process::for_tests()).await.unwrap_err();
    assert!(format!("{refused:#}").contains("another process answers at"), "{refused:#}");
    connect(&socket).await;
    drop(first);
}

#[tokio::test]
async fn a_file_that_is_no_socket_is_not_touched() {
    let east = Cluster::start("east").await;
    let mut config = east.config("frontend-1", "frontend");
    let file = config.state_directory.with_extension("sock");
    std::fs::write(&file, "precious").unwrap();
    config.workload_api = Some(WorkloadApiConfig { socket: file.clone() });
    let refused = Sidecar::start(config, Process::for_tests()).await.unwrap_err();
    assert!(format!("{refused:#}").contains("is no socket"), "{refused:#}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}
