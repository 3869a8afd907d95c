//! `isthmus dig`: one real DNS query, and the answer as dig prints it.

mod answer;
mod exchange;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use federation::ServiceId;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RecordType};

use crate::admin::Admin;
use crate::arguments::Dig;
use crate::failure::Failure;
use crate::output::Output;
use answer::Answer;
use exchange::{Question, Transport};

/// DNS's own port.
const DNS_PORT: u16 = 53;

/// A record type by its name in any case, or as RFC 3597 writes unknown ones: `TYPE64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueryType(RecordType);

impl FromStr for QueryType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.to_ascii_uppercase();
        let number = name.strip_prefix("TYPE").and_then(|number| number.parse::<u16>().ok());
        match (number, name.parse::<RecordType>()) {
            (Some(number), _) => Ok(Self(RecordType::from(number))),
            (None, Ok(found)) => Ok(Self(found)),
            (None, Err(_)) => Err("write a record type, for example A, AAAA, SRV or TXT".to_owned()),
        }
    }
}

/// `ADDR` or `ADDR:PORT`; IPv6 with a port stands in brackets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ServerAddress(SocketAddr);

impl FromStr for ServerAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        match (bare.parse::<IpAddr>(), text.parse::<SocketAddr>()) {
            (Ok(address), _) => Ok(Self(SocketAddr::new(address, DNS_PORT))),
            (_, Ok(address)) => Ok(Self(address)),
            _ => Err("write an address, with or without a port: \"127.1.0.3:53\", \"[::1]:53\"".to_owned()),
        }
    }
}

/// Asks, and prints; whether the answer is `NOERROR`.
pub(crate) async fn dig(arguments: &Dig, admin: &Admin, output: &Output) -> Result<bool, Failure> {
    let question = Question {
        name: name(&arguments.name)?,
        record_type: arguments.record_type.0,
        first: if arguments.tcp { Transport::Tcp } else { Transport::Udp },
        deadline: arguments.timeout,
    };
    let servers = match arguments.server {
        Some(ServerAddress(server)) => vec![server],
        None => admin.status().await?.dns.into_iter().map(dialable).collect(),
    };
    let mut failures = Vec::new();
    for server in servers {
        match exchange::ask(server, &question).await {
            Ok(reply) => {
                let answer = Answer::of(&question, server, &reply);
                output.show(&answer, |_| if arguments.short { answer.short() } else { answer.page() })?;
                return Ok(reply.message.metadata.response_code == ResponseCode::NoError);
            }
            Err(error) => failures.push(format!("{server}: {error}")),
        }
    }
    let reason = if failures.is_empty() {
        "the control-plane names no DNS address: set its dns.listen, or ask a --server".to_owned()
    } else {
        failures.join("; ")
    };
    Err(Failure::Dns { name: arguments.name.clone(), reason })
}

/// A service's clusterset name, or the domain name as it is.
fn name(text: &str) -> Result<Name, Failure> {
    let text = match text.parse::<ServiceId>() {
        Ok(service) => service.host().to_string(),
        Err(error) if text.contains('/') => return Err(Failure::Usage(format!("NAME: {error}"))),
        Err(_) => text.to_owned(),
    };
    let mut name = Name::from_ascii(&text).map_err(|error| Failure::Usage(format!("NAME: {text:?}: {error}")))?;
    name.set_fqdn(true);
    Ok(name)
}

/// Who listens on every address listens on loopback too.
fn dialable(mut server: SocketAddr) -> SocketAddr {
    match server.ip() {
        IpAddr::V4(address) if address.is_unspecified() => server.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(address) if address.is_unspecified() => server.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    server
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn types_are_read_by_name_or_number() {
        let table =
            [("A", RecordType::A), ("srv", RecordType::SRV), ("TYPE28", RecordType::AAAA), ("any", RecordType::ANY)];
        for (text, expected) in table {
            assert_eq!(text.parse(), Ok(QueryType(expected)), "{text}");
        }
        for wrong in ["", "TYPE", "TYPE70000", "HOST"] {
            assert!(wrong.parse::<QueryType>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn servers_have_port_53_unless_said_otherwise() {
        let table = [
            ("127.1.0.3", "127.1.0.3:53"),
            ("127.1.0.3:5353", "127.1.0.3:5353"),
            ("::1", "[::1]:53"),
            ("[::1]", "[::1]:53"),
            ("[::1]:15053", "[::1]:15053"),
        ];
        for (text, expected) in table {
            assert_eq!(text.parse(), Ok(ServerAddress(expected.parse().unwrap())), "{text}");
        }
        assert!("dns.example".parse::<ServerAddress>().is_err());
    }

    #[test]
    fn a_service_stands_for_its_clusterset_name() {
        assert_eq!(name("shop/cart").unwrap().to_ascii(), "cart.shop.svc.clusterset.local.");
        assert_eq!(
            name("_http._tcp.cart.shop.svc.clusterset.local").unwrap().to_ascii(),
            "_http._tcp.cart.shop.svc.clusterset.local."
        );
        assert!(name("shop/cart/x").is_err());
        assert!(name("a..b").is_err());
    }
}
