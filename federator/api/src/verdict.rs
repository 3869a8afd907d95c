//! `mesh.v1`'s frame: the server's sidecar speaks first, with its verdict on the connection.
//!
//! ```text
//! 0      1        2..4             4..
//! 0x49   version  length (be u16)  Verdict, `length` bytes
//! ```

use std::io;
use std::time::Duration;

use prost::Message as _;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::mesh::v1::Verdict;

/// The frame's first byte, 'I'.
pub const MAGIC: u8 = 0x49;
/// The version this crate speaks.
pub const VERSION: u8 = 1;
/// Bytes before the verdict.
pub const HEADER_BYTES: usize = 4;
/// The longest verdict that is read or written.
pub const MAX_VERDICT_BYTES: usize = 4_096;
/// The longest `detail` that is written, in bytes: the rest of a verdict always fits then.
const MAX_DETAIL_BYTES: usize = 1_024;

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
pub enum VerdictError {
    /// The peer does not speak mesh.v1.
    #[error("the first byte is {0:#04x}, not a verdict's")]
    Magic(u8),
    /// The peer speaks another version.
    #[error("the verdict is of version {0}, understood is {VERSION}")]
    Version(u8),
    /// Longer than [`MAX_VERDICT_BYTES`].
    #[error("the verdict has {0} bytes, allowed are {MAX_VERDICT_BYTES}")]
    Length(usize),
    /// Not the message.
    #[error("the verdict cannot be decoded")]
    Decode,
    /// The peer said nothing, or not all of it, in time.
    #[error("no verdict within {0:?}")]
    Deadline(Duration),
    /// The connection ended or failed.
    #[error("reading the verdict: {0}")]
    Io(#[from] io::Error),
}

/// The frame of a verdict. A `detail` that is too long is cut.
///
/// # Errors
/// [`VerdictError::Length`] when the other fields alone are longer than [`MAX_VERDICT_BYTES`].
pub fn encode(verdict: &Verdict) -> Result<Vec<u8>, VerdictError> {
    let mut cut = None;
    if verdict.detail.len() > MAX_DETAIL_BYTES {
        let end = verdict.detail.floor_char_boundary(MAX_DETAIL_BYTES);
        cut = Some(Verdict { detail: verdict.detail[..end].to_owned(), ..verdict.clone() });
    }
    let body = cut.as_ref().unwrap_or(verdict).encode_to_vec();
    let length = u16::try_from(body.len()).ok().filter(|_| body.len() <= MAX_VERDICT_BYTES);
    let length = length.ok_or(VerdictError::Length(body.len()))?;
    let mut frame = Vec::with_capacity(HEADER_BYTES + body.len());
    frame.extend([MAGIC, VERSION]);
    frame.extend(length.to_be_bytes());
    frame.extend(body);
    Ok(frame)
}

/// Checks a frame's header and says how long its verdict is.
///
/// # Errors
/// [`VerdictError`] for a header that this version does not read.
pub fn body_length(header: [u8; HEADER_BYTES]) -> Result<usize, VerdictError> {
    let [magic, version, length @ ..] = header;
    if magic != MAGIC {
        return Err(VerdictError::Magic(magic));
    }
    if version != VERSION {
        return Err(VerdictError::Version(version));
    }
    let length = usize::from(u16::from_be_bytes(length));
    if length > MAX_VERDICT_BYTES {
        return Err(VerdictError::Length(length));
    }
    Ok(length)
}

/// Reads a frame and not one byte more: what follows belongs to the application.
///
/// # Errors
/// [`VerdictError`]; the connection is of no use then. Nothing was sent on it.
pub async fn read<S: AsyncRead + Unpin>(stream: &mut S, deadline: Duration) -> Result<Verdict, VerdictError> {
    tokio::time::timeout(deadline, read_frame(stream)).await.map_err(|_| VerdictError::Deadline(deadline))?
}

async fn read_frame<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Verdict, VerdictError> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).await?;
    let mut body = vec![0; body_length(header)?];
    stream.read_exact(&mut body).await?;
    Verdict::decode(body.as_slice()).map_err(|_| VerdictError::Decode)
}
