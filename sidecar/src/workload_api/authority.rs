//! Lets clients in whose `:authority` is the socket's own path, percent-encoded: all that are made of gRPC's C core (Python, C++,
//! Ruby). `http` takes no `%` in an authority, and `h2` resets such a request as malformed. Nothing here looks at it.
//!
//! Within header frames each `%` of a literal, plain `:authority` becomes a `_`: as long as before, so nothing else moves.

/// What a client says before its first frame.
const PREFACE: u8 = 24;

/// The name as a literal in HPACK, behind its length. No header's value can hold a line feed, so it is nothing else.
const NAME: &[u8] = b"\x0a:authority";

/// Frames with headers: HEADERS and CONTINUATION.
const HEADER_FRAMES: [u8; 2] = [1, 9];

/// Follows one connection's bytes.
#[derive(Debug)]
pub(super) struct Authority {
    place: Place,
    scan: Scan,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Preface { left: u8 },
    FrameHead { have: u8, length: u32, headers: bool },
    Payload { left: u32, headers: bool },
}

#[derive(Clone, Copy, Debug)]
enum Scan {
    Name { matched: usize },
    Length,
    Value { left: u8 },
}

impl Authority {
    pub(super) fn new() -> Self {
        Self { place: Place::Preface { left: PREFACE }, scan: Scan::Name { matched: 0 } }
    }

    /// Takes the next bytes that were read, and changes what has to be.
    pub(super) fn pass(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.place = match self.place {
                Place::Preface { left: 1 } => Place::FrameHead { have: 0, length: 0, headers: false },
                Place::Preface { left } => Place::Preface { left: left - 1 },
                Place::FrameHead { have, length, headers } => frame_head(have, length, headers, *byte),
                Place::Payload { left, headers } => {
                    if headers {
                        self.scan = self.scan.next(byte);
                    }
                    payload(left - 1, headers)
                }
            };
        }
    }
}

/// Length in three bytes, type in one, flags and stream in five.
fn frame_head(have: u8, length: u32, headers: bool, byte: u8) -> Place {
    let (length, headers) = match have {
        0..=2 => (length << 8 | u32::from(byte), headers),
        3 => (length, HEADER_FRAMES.contains(&byte)),
        _ => (length, headers),
    };
    if have == 8 { payload(length, headers) } else { Place::FrameHead { have: have + 1, length, headers } }
}

fn payload(left: u32, headers: bool) -> Place {
    match left {
        0 => Place::FrameHead { have: 0, length: 0, headers: false },
        left => Place::Payload { left, headers },
    }
}

impl Scan {
    fn next(self, byte: &mut u8) -> Self {
        const START: Scan = Scan::Name { matched: 0 };
        match self {
            Self::Name { matched } if *byte == NAME[matched] && matched + 1 == NAME.len() => Self::Length,
            Self::Name { matched } if *byte == NAME[matched] => Self::Name { matched: matched + 1 },
            // The name's first byte is not in the rest of it.
            Self::Name { .. } => Self::Name { matched: usize::from(*byte == NAME[0]) },
            // Compressed, or longer than any socket's path.
            Self::Length if *byte == 0 || *byte >= 0x7f => START,
            Self::Length => Self::Value { left: *byte },
            Self::Value { left } => {
                if *byte == b'%' {
                    *byte = b'_';
                }
                if left == 1 { START } else { Self::Value { left: left - 1 } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap_or(u8::MAX);
        [&[0, 0, length, kind, 4, 0, 0, 0, 1], payload].concat()
    }

    /// As gRPC's C core writes it.
    fn connection(path: &[u8], authority: &[u8], data: &[u8]) -> Vec<u8> {
        let length = u8::try_from(authority.len()).unwrap_or(u8::MAX);
        let headers =
            [b"@\x05:path\x04" as &[u8], path, b"@\x0a:authority", &[length], authority, b"\x83\x86"].concat();
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, b""), frame(1, &headers), frame(0, data)].concat()
    }

    #[test]
    fn only_the_authority_is_changed_however_the_bytes_are_cut() {
        let data = b"\x0a:authority\x03%2F";
        let sent = connection(b"/a%b", b"tmp%2Fa%2Fb.sock", data);
        let wanted = connection(b"/a%b", b"tmp_2Fa_2Fb.sock", data);
        for cut in 0..sent.len() {
            let mut bytes = sent.clone();
            let mut authority = Authority::new();
            let (first, second) = bytes.split_at_mut(cut);
            authority.pass(first);
            authority.pass(second);
            assert_eq!(bytes, wanted, "cut at {cut}");
        }
    }

    #[test]
    fn an_authority_that_needs_nothing_stays() {
        for authority in [b"localhost".as_slice(), b"", &[0x25; 0x7f]] {
            let sent = connection(b"/a%b", authority, b"");
            let mut bytes = sent.clone();
            Authority::new().pass(&mut bytes);
            assert_eq!(bytes, sent);
        }
    }
}
