//! From bytes to a ClientHello: records are joined into one handshake message, which is then parsed.

mod error;
mod message;

use bytes::{Bytes, BytesMut};

pub use error::ClientHelloError;

/// What a router needs to know of a ClientHello (RFC 8446, section 4.1.2).
///
/// With Encrypted Client Hello this is the outer one: the name is the public name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientHello {
    /// The `host_name` of the server name extension (RFC 6066), lower-cased: visible ASCII, 1 to 255 bytes. `None` when the extension is absent.
    pub server_name: Option<String>,
    /// The protocols offered by ALPN (RFC 7301) in the client's order, each 1 to 255 bytes; empty when the extension is absent.
    pub alpn: Vec<Vec<u8>>,
}

/// Content type `handshake` of a TLS record.
const HANDSHAKE: u8 = 22;
/// Every content type TLS has defined: change_cipher_spec, alert, handshake, application_data, heartbeat.
const CONTENT_TYPES: std::ops::RangeInclusive<u8> = 20..=24;
/// Handshake type `client_hello`.
const CLIENT_HELLO: u8 = 1;
/// Type, version and length before each record.
const RECORD_HEADER: usize = 5;
/// Type and length before each handshake message.
const MESSAGE_HEADER: usize = 4;
/// The longest fragment of a plaintext record.
const MAX_FRAGMENT: usize = 1 << 14;
/// Room for a hello with a hybrid key share (about 1.8 KiB), so that most are read without growing.
const INITIAL_CAPACITY: usize = 2048;

/// Reads one ClientHello out of bytes pushed into it, however records and segments cut it.
///
/// It keeps every byte pushed, for they are forwarded: see [`ClientHelloReader::into_buffered`]. Only the first `max_bytes` of them
/// are looked at, and a hello that does not end within them is refused.
#[derive(Debug)]
pub struct ClientHelloReader {
    max_bytes: usize,
    buffered: BytesMut,
    /// How far `buffered` has been consumed.
    position: usize,
    /// Bytes of the current record that are still to come.
    record_left: usize,
    /// The handshake message so far, its header included, joined over records.
    message: Vec<u8>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Reading,
    Done,
    Refused(ClientHelloError),
}

impl ClientHelloReader {
    /// A reader that refuses a hello which, record headers included, does not end within `max_bytes`.
    #[must_use]
    pub fn new(max_bytes: usize) -> Self {
        Self {
            max_bytes,
            buffered: BytesMut::with_capacity(INITIAL_CAPACITY.min(max_bytes)),
            position: 0,
            record_left: 0,
            message: Vec::new(),
            state: State::Reading,
        }
    }

    /// Adds bytes as they came: `Some` once with the whole hello, `None` while more is needed and again after the hello.
    ///
    /// # Errors
    /// The first thing wrong with the bytes, as early as it can be known, and the same again at every later call.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Option<ClientHello>, ClientHelloError> {
        self.buffered.extend_from_slice(bytes);
        self.advance()
    }

    /// Every byte pushed so far.
    #[must_use]
    pub fn buffered(&self) -> &[u8] {
        &self.buffered
    }

    /// Every byte pushed, to be sent on to whoever answers the hello.
    #[must_use]
    pub fn into_buffered(self) -> Bytes {
        self.buffered.freeze()
    }

    /// Where a driver may read into directly, and how many bytes; followed by [`ClientHelloReader::advance`].
    pub(crate) fn unfilled(&mut self) -> (&mut BytesMut, usize) {
        let room = self.max_bytes.saturating_sub(self.buffered.len());
        (&mut self.buffered, room)
    }

    /// Looks at what came since the last call.
    pub(crate) fn advance(&mut self) -> Result<Option<ClientHello>, ClientHelloError> {
        match self.state {
            State::Done => return Ok(None),
            State::Refused(error) => return Err(error),
            State::Reading => {}
        }
        let outcome = self.step();
        match &outcome {
            Ok(Some(_)) => {
                self.state = State::Done;
                self.message = Vec::new();
            }
            Ok(None) => {}
            Err(error) => self.state = State::Refused(*error),
        }
        outcome
    }

    fn step(&mut self) -> Result<Option<ClientHello>, ClientHelloError> {
        loop {
            let window = self.buffered.len().min(self.max_bytes);
            let unread = &self.buffered[self.position..window];
            if self.record_left == 0 {
                let Some(length) = record_header(unread, self.position == 0)? else { break };
                self.position += RECORD_HEADER;
                self.record_left = length;
                self.refuse_if_beyond_limit()?;
                continue;
            }
            // Up to the end of the header first: what it says decides how much more is wanted.
            let take = self.wanted().min(self.record_left).min(unread.len());
            if take == 0 {
                break;
            }
            self.message.extend_from_slice(&unread[..take]);
            self.position += take;
            self.record_left -= take;
            if self.message[0] != CLIENT_HELLO {
                return Err(ClientHelloError::NotClientHello { message: self.message[0] });
            }
            if self.message.len() == MESSAGE_HEADER {
                self.refuse_if_beyond_limit()?;
            }
            if self.wanted() == 0 {
                return message::parse(&self.message[MESSAGE_HEADER..]).map(Some);
            }
        }
        if self.buffered.len() >= self.max_bytes {
            return Err(self.too_large());
        }
        Ok(None)
    }

    /// How many bytes the message still needs, or its header while that is incomplete.
    fn wanted(&self) -> usize {
        match self.message.as_slice() {
            [_, high, middle, low, body @ ..] => {
                let length = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
                length.saturating_sub(body.len())
            }
            header => MESSAGE_HEADER - header.len(),
        }
    }

    fn refuse_if_beyond_limit(&self) -> Result<(), ClientHelloError> {
        if self.position.saturating_add(self.wanted()) > self.max_bytes { Err(self.too_large()) } else { Ok(()) }
    }

    fn too_large(&self) -> ClientHelloError {
        ClientHelloError::TooLarge { max_bytes: self.max_bytes }
    }
}

/// The length of a record's fragment, or `None` while its header is incomplete.
fn record_header(bytes: &[u8], first: bool) -> Result<Option<usize>, ClientHelloError> {
    let Some(&content_type) = bytes.first() else { return Ok(None) };
    if first && !CONTENT_TYPES.contains(&content_type) {
        return Err(ClientHelloError::NotTls);
    }
    let [content_type, major, minor, high, low, ..] = *bytes else { return Ok(None) };
    let length = usize::from(high) << 8 | usize::from(low);
    match (content_type, major) {
        (HANDSHAKE, 3) => {}
        (HANDSHAKE, _) if !first => return Err(ClientHelloError::RecordVersion { major, minor }),
        (_, 3) => return Err(ClientHelloError::UnexpectedRecord { content_type }),
        _ if first => return Err(ClientHelloError::NotTls),
        _ => return Err(ClientHelloError::UnexpectedRecord { content_type }),
    }
    match length {
        0 => Err(ClientHelloError::EmptyRecord),
        1..=MAX_FRAGMENT => Ok(Some(length)),
        _ => Err(ClientHelloError::RecordTooLong { length }),
    }
}
