//! The driver of [`ClientHelloReader`] over a stream.

use std::{io, time::Duration};

use bytes::{BufMut, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::{ClientHello, ClientHelloError, ClientHelloReader};

/// What a client may take before its hello is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelloLimits {
    /// The most bytes within which the hello must end, record headers included; also the most that is read ahead.
    pub max_bytes: usize,
    /// The time from the first call to the hello's last byte.
    pub deadline: Duration,
}

impl Default for HelloLimits {
    /// One full record (hellos with a hybrid key share are below 2 KiB, with large tickets or ECH below 8 KiB), and three seconds:
    /// two retransmissions of a lost segment.
    fn default() -> Self {
        Self { max_bytes: 16 * 1024, deadline: Duration::from_secs(3) }
    }
}

/// Why no hello was read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadHelloError {
    /// The bytes are refused.
    #[error(transparent)]
    Refused(#[from] ClientHelloError),
    /// The hello was not complete in time.
    #[error("no complete hello within {deadline:?}")]
    TooSlow {
        /// The limit.
        deadline: Duration,
    },
    /// The client closed before the hello was complete.
    #[error("the client closed after {received} bytes of a hello")]
    Closed {
        /// How many bytes it had sent: 0 for a mere probe of the port.
        received: usize,
    },
    /// The stream failed.
    #[error("reading the hello")]
    Io(#[from] io::Error),
}

impl ReadHelloError {
    /// The alert record that tells the client why, where there is one and somebody to read it.
    #[must_use]
    pub const fn alert(&self) -> Option<[u8; 7]> {
        match self {
            Self::Refused(error) => error.alert(),
            Self::TooSlow { .. } | Self::Closed { .. } | Self::Io(_) => None,
        }
    }
}

/// Reads a ClientHello; beside it come all bytes read, which the stream no longer has.
///
/// # Errors
/// The hello is refused, late or cut off; or the stream failed.
pub async fn read_client_hello<S: AsyncRead + Unpin>(
    stream: &mut S,
    limits: &HelloLimits,
) -> Result<(ClientHello, Bytes), ReadHelloError> {
    match tokio::time::timeout(limits.deadline, read(stream, limits.max_bytes)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(ReadHelloError::TooSlow { deadline: limits.deadline }),
    }
}

async fn read<S: AsyncRead + Unpin>(stream: &mut S, max_bytes: usize) -> Result<(ClientHello, Bytes), ReadHelloError> {
    let mut reader = ClientHelloReader::new(max_bytes);
    loop {
        // There is room: a reader that is full has refused.
        let (buffer, room) = reader.unfilled();
        if stream.read_buf(&mut buffer.limit(room)).await? == 0 {
            return Err(ReadHelloError::Closed { received: reader.buffered().len() });
        }
        if let Some(hello) = reader.advance()? {
            return Ok((hello, reader.into_buffered()));
        }
    }
}
