//! The PROXY protocol, version 2: what a load balancer says of a connection before its first byte.
//!
//! The format is HAProxy's (doc/proxy-protocol.txt, section 2.2): a signature of 12 bytes, command, family, length, addresses, and
//! extensions, which are stepped over.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use tokio::io::{AsyncRead, AsyncReadExt};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, command, family and length.
const FIXED: usize = 16;
/// The longest header taken: addresses take 36 bytes, extensions of load balancers some hundred.
pub const MAX_PROXY_HEADER: usize = 2048;

/// Who is at the other end of a load balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyHeader {
    /// `LOCAL`: the load balancer itself, such as a health check.
    Local,
    /// `PROXY` over TCP: the client's address. A client that the load balancer tells nothing of is [`Self::Local`] too.
    Client(SocketAddr),
}

/// Why there is no header.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyHeaderError {
    /// Something else than the signature of version 2.
    #[error("no PROXY protocol header of version 2")]
    Signature,
    /// A command that is not defined.
    #[error("command {0:#04x} is not defined")]
    Command(u8),
    /// Addresses that do not fit the length.
    #[error("{length} bytes are too few for family {family:#04x}")]
    Truncated {
        /// Address family and transport.
        family: u8,
        /// The length said.
        length: usize,
    },
    /// Longer than [`MAX_PROXY_HEADER`].
    #[error("{length} bytes are too long")]
    TooLong {
        /// The length said.
        length: usize,
    },
    /// The stream failed or ended.
    #[error("reading the PROXY protocol header")]
    Io(#[from] io::Error),
}

/// Reads a header, and not a byte after it.
///
/// # Errors
/// The bytes are no header; the stream failed or ended.
pub async fn read_proxy_header<S: AsyncRead + Unpin>(stream: &mut S) -> Result<ProxyHeader, ProxyHeaderError> {
    let mut buffer = [0; MAX_PROXY_HEADER];
    stream.read_exact(&mut buffer[..FIXED]).await?;
    let length = rest(&buffer)?;
    stream.read_exact(&mut buffer[FIXED..FIXED + length]).await?;
    parse(&buffer[..FIXED + length])
}

/// How many bytes follow the fixed part.
fn rest(fixed: &[u8; MAX_PROXY_HEADER]) -> Result<usize, ProxyHeaderError> {
    if fixed[..SIGNATURE.len()] != SIGNATURE {
        return Err(ProxyHeaderError::Signature);
    }
    let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if FIXED + length > MAX_PROXY_HEADER { Err(ProxyHeaderError::TooLong { length }) } else { Ok(length) }
}

/// A whole header: the fixed part and as much as it says.
fn parse(header: &[u8]) -> Result<ProxyHeader, ProxyHeaderError> {
    let (fixed, addresses) = header.split_at(FIXED);
    let (command, family) = (fixed[12], fixed[13]);
    match command {
        0x20 => return Ok(ProxyHeader::Local),
        0x21 => {}
        command => return Err(ProxyHeaderError::Command(command)),
    }
    let truncated = ProxyHeaderError::Truncated { family, length: addresses.len() };
    let port = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    match family {
        // TCP over IPv4: source, destination, source port, destination port.
        0x11 => match *addresses {
            [a, b, c, d, _, _, _, _, high, low, _, _, ..] => {
                let source = IpAddr::V4(Ipv4Addr::new(a, b, c, d));
                Ok(ProxyHeader::Client(SocketAddr::new(source, port(high, low))))
            }
            _ => Err(truncated),
        },
        // TCP over IPv6.
        0x21 => match addresses.split_first_chunk::<16>() {
            Some((source, [_, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, high, low, _, _, ..])) => {
                let source = IpAddr::V6(Ipv6Addr::from(*source));
                Ok(ProxyHeader::Client(SocketAddr::new(source, port(*high, *low))))
            }
            _ => Err(truncated),
        },
        _ => Ok(ProxyHeader::Local),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, rest].concat()
    }

    async fn read(mut bytes: &[u8]) -> (Result<ProxyHeader, ProxyHeaderError>, usize) {
        let outcome = read_proxy_header(&mut bytes).await;
        (outcome, bytes.len())
    }

    #[tokio::test]
    async fn the_client_is_told_and_nothing_beyond_the_header_is_read() {
        let v4 = [192, 0, 2, 1, 192, 0, 2, 9, 0x30, 0x39, 0x3c, 0x53];
        let mut v6 = [0; 36];
        v6[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        v6[32..34].copy_from_slice(&[0x30, 0x39]);
        let table = [
            (header(0x21, 0x11, &v4), ProxyHeader::Client("192.0.2.1:12345".parse().unwrap())),
            (
                header(0x21, 0x11, &[&v4[..], &[3, 0, 4, 1, 2, 3, 4]].concat()),
                ProxyHeader::Client("192.0.2.1:12345".parse().unwrap()),
            ),
            (header(0x21, 0x21, &v6), ProxyHeader::Client("[2001:db8::]:12345".parse().unwrap())),
            (header(0x20, 0, &[]), ProxyHeader::Local),
            (header(0x21, 0, &[1, 2, 3]), ProxyHeader::Local),
        ];
        for (bytes, expected) in table {
            let (outcome, left) = read(&[&bytes[..], b"hello"].concat()).await;
            assert_eq!((outcome.unwrap(), left), (expected, 5));
            for cut in 0..bytes.len() {
                assert!(matches!(read(&bytes[..cut]).await.0, Err(ProxyHeaderError::Io(_))), "cut at {cut}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        assert!(matches!(read(b"PROXY TCP4 192.0.2.1 192.0.2.9 1 2\r\n").await.0, Err(ProxyHeaderError::Signature)));
        assert!(matches!(read(&header(0x31, 0x11, &[0; 12])).await.0, Err(ProxyHeaderError::Command(0x31))));
        assert!(matches!(read(&header(0x21, 0x11, &[0; 11])).await.0, Err(ProxyHeaderError::Truncated { .. })));
        assert!(matches!(read(&header(0x21, 0x21, &[0; 35])).await.0, Err(ProxyHeaderError::Truncated { .. })));
        let long = header(0x20, 0, &vec![0; MAX_PROXY_HEADER]);
        assert!(matches!(read(&long).await.0, Err(ProxyHeaderError::TooLong { length: MAX_PROXY_HEADER })));
    }
}
