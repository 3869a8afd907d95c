//! A client of another mesh: a real Envoy that writes its SNI and ALPN as Istio's sidecars do, and knows nothing of ours.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::Command,
    time::{Instant, timeout},
};

use super::lab::{Authority, Endpoint, PATIENCE, Running, endpoint, name, refusing_address};

/// What Istio's sidecars offer each other for TCP.
const ALPN: &str = "istio-peer-exchange";

fn envoy() -> PathBuf {
    let installed = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/envoy");
    let path = std::env::var_os("ISTHMUS_ENVOY").map_or_else(installed, PathBuf::from);
    assert!(path.is_file(), "no Envoy at {}: `make tools` installs it, or name one in ISTHMUS_ENVOY", path.display());
    path
}

/// A sidecar's outbound listener: what comes is sent to the gateway in mutual TLS.
fn configuration(directory: &Path, authority: &Authority, listen: SocketAddr, gateway: SocketAddr) -> PathBuf {
    let (leaf, key) = authority.leaf("istio-client");
    for (file, text) in [("root.pem", &authority.root), ("leaf.pem", &leaf.pem()), ("key.pem", &key.serialize_pem())] {
        std::fs::write(directory.join(file), text).unwrap();
    }
    let text = format!(
        "static_resources:
  listeners:
  - name: outbound
    address: {{ socket_address: {{ address: {listen_ip}, port_value: {listen_port} }} }}
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: outbound
          cluster: gateway
  clusters:
  - name: gateway
    type: STATIC
    connect_timeout: 5s
    load_assignment:
      cluster_name: gateway
      endpoints:
      - lb_endpoints:
        - endpoint:
            address: {{ socket_address: {{ address: {gateway_ip}, port_value: {gateway_port} }} }}
    transport_socket:
      name: tls
      typed_config:
        '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: {sni}
        common_tls_context:
          alpn_protocols: [{ALPN}, istio]
          tls_params: {{ tls_maximum_protocol_version: TLSv1_3 }}
          tls_certificates:
          - certificate_chain: {{ filename: {directory}/leaf.pem }}
            private_key: {{ filename: {directory}/key.pem }}
          validation_context:
            trusted_ca: {{ filename: {directory}/root.pem }}
            match_typed_subject_alt_names:
            - {{ san_type: URI, matcher: {{ exact: 'spiffe://east.mesh.example/ns/shop/sa/echo-1' }} }}
",
        listen_ip = listen.ip(),
        listen_port = listen.port(),
        gateway_ip = gateway.ip(),
        gateway_port = gateway.port(),
        sni = name(""),
        directory = directory.display(),
    );
    let path = directory.join("envoy.yaml");
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test]
async fn an_envoy_that_speaks_as_istio_reaches_a_workload() {
    let envoy = envoy();
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    // The workload's sidecar is of that mesh too: ours would refuse a protocol that it does not know.
    let echo = Endpoint::start_with(&authority, "echo-1", ALPN.as_bytes()).await;
    let gone = endpoint("east/shop/echo-2", refusing_address().await, "eu-1");
    let gateway = Running::start(&[gone, echo.wire("eu-2")]).await;
    let listen = refusing_address().await;
    let _envoy = Command::new(envoy)
        .args(["--concurrency", "1", "--log-level", "error", "--use-dynamic-base-id", "-c"])
        .arg(configuration(directory.path(), &authority, listen, gateway.address))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let until = Instant::now() + PATIENCE;
    let stream = loop {
        match TcpStream::connect(listen).await {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < until, "Envoy does not listen: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let mut stream = BufReader::new(stream);
    let mut said = String::new();
    timeout(PATIENCE, stream.read_line(&mut said)).await.unwrap().unwrap();
    assert_eq!(said.trim(), echo.id);
    // More than one record, and more than one buffer.
    let sent: Vec<u8> = (0..100_000_u32).map(|number| number.to_be_bytes()[3]).collect();
    let mut received = vec![0; sent.len()];
    let (mut reader, mut writer) = tokio::io::split(stream);
    let exchange = async { tokio::join!(writer.write_all(&sent), reader.read_exact(&mut received)) };
    let (written, read) = timeout(PATIENCE, exchange).await.unwrap();
    written.unwrap();
    read.unwrap();
    assert_eq!(received, sent);
    gateway.metric("connections 1").await;
}
