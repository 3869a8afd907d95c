use crate::alert;

/// Why bytes are not a ClientHello that can be routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientHelloError {
    /// The first bytes are no TLS record.
    #[error("the first bytes are not TLS")]
    NotTls,
    /// A record of another content type before the end of the hello, such as an alert.
    #[error("a record of content type {content_type} where a handshake record must be")]
    UnexpectedRecord {
        /// The content type as sent.
        content_type: u8,
    },
    /// A later record with a version that is not 3.x.
    #[error("a record of version {major}.{minor}")]
    RecordVersion {
        /// The first byte of the version.
        major: u8,
        /// The second byte of the version.
        minor: u8,
    },
    /// A record of more than 2^14 bytes.
    #[error("a record of {length} bytes; at most 16384 are allowed")]
    RecordTooLong {
        /// The length as sent.
        length: usize,
    },
    /// A handshake record without a byte (RFC 8446, section 5.1).
    #[error("a handshake record of no bytes")]
    EmptyRecord,
    /// The first handshake message is another one.
    #[error("the first handshake message is of type {message}, not a ClientHello")]
    NotClientHello {
        /// The handshake type as sent.
        message: u8,
    },
    /// The hello does not end within the limit.
    #[error("the hello does not end within {max_bytes} bytes")]
    TooLarge {
        /// The limit, in bytes, record headers included.
        max_bytes: usize,
    },
    /// `legacy_version` is older than TLS 1.0 or is no version of TLS.
    #[error("the client asks for version {major}.{minor}")]
    ClientVersion {
        /// The first byte of the version.
        major: u8,
        /// The second byte of the version.
        minor: u8,
    },
    /// A field reaches beyond the bytes that hold it.
    #[error("{field} is cut short")]
    Truncated {
        /// The field's name in the RFC that defines it.
        field: &'static str,
    },
    /// Bytes follow the last element of a field.
    #[error("bytes follow the end of {field}")]
    TrailingBytes {
        /// The field's name in the RFC that defines it.
        field: &'static str,
    },
    /// A field's length is outside the range its definition allows.
    #[error("{field} may not be {length} bytes long")]
    Length {
        /// The field's name in the RFC that defines it.
        field: &'static str,
        /// Its length, in bytes.
        length: usize,
    },
    /// The server name or the ALPN extension is there twice: which one counts would be a guess.
    #[error("extension {extension} is there twice")]
    DuplicateExtension {
        /// The extension's number.
        extension: u16,
    },
    /// The server name extension holds two host names (RFC 6066 forbids it).
    #[error("the server name extension holds two host names")]
    TwoServerNames,
    /// The server name extension holds names, but none of type `host_name`.
    #[error("the server name extension holds no host name")]
    NotHostName,
    /// The host name is longer than 255 bytes.
    #[error("a server name of {length} bytes; at most 255 are allowed")]
    ServerNameTooLong {
        /// Its length, in bytes.
        length: usize,
    },
    /// The host name holds a byte that is not visible ASCII.
    #[error("byte {byte:#04x} in the server name")]
    ServerNameByte {
        /// The first such byte.
        byte: u8,
    },
}

impl ClientHelloError {
    /// The alert record that tells the client why, or `None` for one that speaks no TLS and could not read it.
    #[must_use]
    pub const fn alert(&self) -> Option<[u8; 7]> {
        Some(match self {
            Self::NotTls => return None,
            Self::UnexpectedRecord { .. } | Self::EmptyRecord | Self::NotClientHello { .. } => {
                alert::UNEXPECTED_MESSAGE
            }
            Self::RecordTooLong { .. } => alert::RECORD_OVERFLOW,
            Self::RecordVersion { .. } | Self::ClientVersion { .. } => alert::PROTOCOL_VERSION,
            Self::Truncated { .. } | Self::TrailingBytes { .. } | Self::Length { .. } => alert::DECODE_ERROR,
            Self::TooLarge { .. }
            | Self::DuplicateExtension { .. }
            | Self::TwoServerNames
            | Self::ServerNameTooLong { .. }
            | Self::ServerNameByte { .. } => alert::ILLEGAL_PARAMETER,
            Self::NotHostName => alert::UNRECOGNIZED_NAME,
        })
    }
}
