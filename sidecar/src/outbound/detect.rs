//! What an application speaks on a port that does not declare it.
//!
//! The first bytes of the client decide: an HTTP/1 request line or the HTTP/2 preface is HTTP, anything else opaque. A client
//! that stays silent waits for its server to speak first, as those of SMTP, MySQL and FTP do: its connection is opened after a
//! moment, and opaque as soon as the server speaks, or after [`WINDOW`].

use std::time::Duration;

use tokio::net::TcpStream;

/// A client silent for this long is not the first to speak.
pub(crate) const WINDOW: Duration = Duration::from_millis(100);

/// Before the server is asked as well, the client has this long to speak, as clients of HTTP do at once.
pub(crate) const HEAD_START: Duration = Duration::from_millis(10);

/// Between two looks at bytes that do not yet tell.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Bytes that are looked at: a longer request line is not taken for HTTP.
const MAX_LINE: usize = 4096;

/// The longest method that is taken for one: `UNSUBSCRIBE` has 11 letters.
const MAX_METHOD: usize = 16;

/// How an HTTP/2 client begins with prior knowledge (RFC 9113, section 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the first bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spoken {
    /// HTTP/1 or HTTP/2.
    Http,
    /// Something else.
    Opaque,
}

/// Judges the first bytes; `None` while they do not tell.
pub(crate) fn judge(bytes: &[u8]) -> Option<Spoken> {
    if bytes.len() >= PREFACE.len() && bytes.starts_with(PREFACE) {
        return Some(Spoken::Http);
    }
    if PREFACE.starts_with(bytes) {
        return None;
    }
    let method = bytes.iter().take_while(|byte| byte.is_ascii_uppercase() || **byte == b'-').count();
    match bytes.get(method) {
        None if method <= MAX_METHOD => return None,
        Some(b' ') if (3..=MAX_METHOD).contains(&method) => {}
        _ => return Some(Spoken::Opaque),
    }
    let rest = &bytes[method + 1..];
    let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
        let printable = rest.iter().all(|byte| byte.is_ascii_graphic() || matches!(byte, b' ' | b'\r'));
        return (!printable || bytes.len() >= MAX_LINE).then_some(Spoken::Opaque);
    };
    let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
    let version = line.iter().rposition(|byte| *byte == b' ').map(|space| &line[space + 1..]);
    let http = matches!(version, Some(b"HTTP/1.1" | b"HTTP/1.0"));
    Some(if http { Spoken::Http } else { Spoken::Opaque })
}

/// Looks at what the client says first, without taking it.
pub(crate) async fn first_bytes(stream: &TcpStream) -> Spoken {
    let looking = async {
        let mut bytes = vec![0; MAX_LINE];
        let mut before = 0;
        loop {
            match stream.peek(&mut bytes).await {
                // The end of what it says, or of the connection.
                Ok(0) | Err(_) => return Spoken::Opaque,
                Ok(length) => {
                    if let Some(spoken) = judge(&bytes[..length]) {
                        return spoken;
                    }
                    if length == before {
                        tokio::time::sleep(LOOK_AGAIN).await;
                    }
                    before = length;
                }
            }
        }
    };
    tokio::time::timeout(WINDOW, looking).await.unwrap_or(Spoken::Opaque)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_http_and_other_protocols_are_not() {
        let cases: [(&[u8], Option<Spoken>); 16] = [
            (b"", None),
            (b"GE", None),
            (b"GET /index.html HT", None),
            (b"GET /index.html HTTP/1.1\r\n", Some(Spoken::Http)),
            (b"GET / HTTP/1.0\nhost: x\n", Some(Spoken::Http)),
            (b"M-SEARCH * HTTP/1.1\r\n", Some(Spoken::Http)),
            (b"PRI * HTTP/2.0\r\n\r\n", None),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", Some(Spoken::Http)),
            (b"PING\r\n", Some(Spoken::Opaque)),
            (b"SET key HTTP/1.1x\r\n", Some(Spoken::Opaque)),
            (b"EHLO client.example\r\n", Some(Spoken::Opaque)),
            (b"*1\r\n$4\r\nPING\r\n", Some(Spoken::Opaque)),
            (b"\x16\x03\x01\x02\0\x01", Some(Spoken::Opaque)),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", Some(Spoken::Opaque)),
            (b"GET \0", Some(Spoken::Opaque)),
            (b"ABCDEFGHIJKLMNOPQRST", Some(Spoken::Opaque)),
        ];
        for (bytes, expected) in cases {
            assert_eq!(judge(bytes), expected, "{}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(judge(&[b"GET /".to_vec(), vec![b'a'; MAX_LINE]].concat()), Some(Spoken::Opaque));
    }
}
