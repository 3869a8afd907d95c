//! How the rivals are configured: one worker each, nothing logged, limits out of the way, HTTP/2 between the two sides as here.

use std::{fmt::Write, net::SocketAddr, path::Path};

/// Where a side listens, what it asks for next, and the files.
pub(super) struct Side<'a> {
    pub(super) directory: &'a Path,
    /// Where each of HTTP/1.1 and HTTP/2 arrives; the same for raw TCP.
    pub(super) listen: [SocketAddr; 2],
    /// Where each goes.
    pub(super) to: [SocketAddr; 2],
    /// It faces the load, and speaks TLS to the other side; otherwise the other way round.
    pub(super) client: bool,
    pub(super) http: bool,
}

impl Side<'_> {
    fn name(&self) -> &'static str {
        if self.client { "client" } else { "server" }
    }

    pub(super) fn haproxy(&self) -> String {
        let directory = self.directory.display();
        let mut text = format!(
            "global
  nbthread 1
  maxconn 9000
  ssl-default-bind-ciphersuites TLS_AES_256_GCM_SHA384
  ssl-default-server-ciphersuites TLS_AES_256_GCM_SHA384
  ssl-default-bind-options ssl-min-ver TLSv1.3
  ssl-default-server-options ssl-min-ver TLSv1.3
defaults
  mode {}
  timeout connect 5s
  timeout client 5m
  timeout server 5m
  timeout http-keep-alive 5m
",
            if self.http { "http\n  http-reuse always" } else { "tcp" },
        );
        let tls = format!("ssl crt {directory}/{}.pem ca-file {directory}/root.pem verify required", self.name());
        for (number, (listen, to)) in self.listen.iter().zip(self.to).enumerate() {
            let (mut bind, mut server) = (String::from("backlog 4096"), String::new());
            if self.client {
                let _ = write!(server, "{tls} sni str(bench.local) verifyhost bench.local");
            } else {
                let _ = write!(bind, " {tls}");
            }
            match (self.http, self.client) {
                (true, true) => server.push_str(" alpn h2"),
                (true, false) => {
                    bind.push_str(" alpn h2");
                    server.push_str(if number == 1 { " proto h2" } else { "" });
                }
                (false, _) => {}
            }
            let _ = write!(
                text,
                "frontend in{number}\n  bind {listen} {bind}\n  default_backend out{number}\nbackend out{number}\n  server one {to} {server}\n"
            );
        }
        text
    }

    pub(super) fn envoy(&self) -> String {
        let mut text = String::from("static_resources:\n  listeners:\n");
        for (number, listen) in self.listen.iter().enumerate() {
            let _ = write!(
                text,
                "  - name: in{number}\n    address: {}\n    filter_chains:\n    - filters:\n",
                socket(*listen)
            );
            text.push_str(&self.envoy_filter(number));
            if !self.client {
                let _ = writeln!(
                    text,
                    "      transport_socket: {{ name: tls, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, require_client_certificate: true, {} }} }}",
                    self.envoy_tls()
                );
            }
        }
        text.push_str("  clusters:\n");
        for (number, to) in self.to.iter().enumerate() {
            let _ = write!(
                text,
                "  - name: out{number}
    type: STATIC
    connect_timeout: 5s
    circuit_breakers: {{ thresholds: [{{ max_connections: 100000, max_pending_requests: 100000, max_requests: 100000, max_retries: 1000 }}] }}
    load_assignment: {{ cluster_name: out{number}, endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {} }} }}] }}] }}
",
                socket(*to)
            );
            if self.http && (self.client || number == 1) {
                text.push_str("    typed_extension_protocol_options: { envoy.extensions.upstreams.http.v3.HttpProtocolOptions: { '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: { http2_protocol_options: { max_concurrent_streams: 1000 } } } }\n");
            }
            if self.client {
                let _ = writeln!(
                    text,
                    "    transport_socket: {{ name: tls, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, sni: bench.local, {} }} }}",
                    self.envoy_tls()
                );
            }
        }
        text
    }

    fn envoy_filter(&self, number: usize) -> String {
        if !self.http {
            return format!(
                "      - {{ name: tcp, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: in, cluster: out{number} }} }}\n"
            );
        }
        format!(
            "      - name: http
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          codec_type: AUTO
          generate_request_id: false
          http_filters: [{{ name: router, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }} }}]
          route_config: {{ virtual_hosts: [{{ name: all, domains: ['*'], routes: [{{ match: {{ prefix: / }}, route: {{ cluster: out{number}, timeout: 0s }} }}] }}] }}
"
        )
    }

    fn envoy_tls(&self) -> String {
        let directory = self.directory.display();
        let alpn = if self.http { "alpn_protocols: [h2], " } else { "" };
        format!(
            "common_tls_context: {{ {alpn}tls_params: {{ tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3 }}, tls_certificates: [{{ certificate_chain: {{ filename: {directory}/{name}.crt }}, private_key: {{ filename: {directory}/{name}.key }} }}], validation_context: {{ trusted_ca: {{ filename: {directory}/root.pem }} }} }}",
            name = self.name()
        )
    }
}

fn socket(address: SocketAddr) -> String {
    format!("{{ socket_address: {{ address: {}, port_value: {} }} }}", address.ip(), address.port())
}
