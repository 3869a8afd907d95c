//! The body of a ClientHello (RFC 8446, section 4.1.2; older versions differ only in that extensions may be absent).

use super::{ClientHello, ClientHelloError};

/// `server_name` (RFC 6066, section 3).
const SERVER_NAME: u16 = 0;
/// `application_layer_protocol_negotiation` (RFC 7301).
const ALPN: u16 = 16;
/// The only name type ever defined for `server_name`.
const HOST_NAME: u8 = 0;
/// The longest DNS name.
const MAX_SERVER_NAME: usize = 255;
/// The longest `legacy_session_id`.
const MAX_SESSION_ID: usize = 32;

/// Reads what a router needs; everything else is the endpoint's to judge, and is only stepped over.
pub(super) fn parse(body: &[u8]) -> Result<ClientHello, ClientHelloError> {
    let mut body = Fields(body);
    match body.take(2, "legacy_version")? {
        [3, minor] if *minor >= 1 => {}
        version => return Err(ClientHelloError::ClientVersion { major: version[0], minor: version[1] }),
    }
    body.take(32, "random")?;
    let session_id = body.vector8("legacy_session_id")?;
    if session_id.len() > MAX_SESSION_ID {
        return Err(ClientHelloError::Length { field: "legacy_session_id", length: session_id.len() });
    }
    let cipher_suites = body.vector16("cipher_suites")?;
    if cipher_suites.is_empty() || !cipher_suites.len().is_multiple_of(2) {
        return Err(ClientHelloError::Length { field: "cipher_suites", length: cipher_suites.len() });
    }
    let compression = body.vector8("legacy_compression_methods")?;
    if compression.is_empty() {
        return Err(ClientHelloError::Length { field: "legacy_compression_methods", length: 0 });
    }
    if body.is_empty() {
        return Ok(ClientHello::default());
    }
    let hello = extensions(Fields(body.vector16("extensions")?))?;
    body.end("ClientHello")?;
    Ok(hello)
}

fn extensions(mut extensions: Fields<'_>) -> Result<ClientHello, ClientHelloError> {
    let mut server_name_data = None;
    let mut alpn_data = None;
    while !extensions.is_empty() {
        let extension = extensions.u16("extension_type")?;
        let data = extensions.vector16("extension_data")?;
        let seen = match extension {
            SERVER_NAME => &mut server_name_data,
            ALPN => &mut alpn_data,
            _ => continue,
        };
        if seen.replace(data).is_some() {
            return Err(ClientHelloError::DuplicateExtension { extension });
        }
    }
    Ok(ClientHello {
        server_name: server_name_data.map(server_name).transpose()?,
        alpn: alpn_data.map_or(Ok(Vec::new()), alpn)?,
    })
}

fn server_name(data: &[u8]) -> Result<String, ClientHelloError> {
    let mut names = list(data, "server_name_list", "server_name")?;
    let mut host_name = None;
    while !names.is_empty() {
        // Every name type, known or not, begins with a length of 16 bits (RFC 6066, section 3).
        let kind = names.u8("name_type")?;
        let name = names.vector16("HostName")?;
        if kind == HOST_NAME && host_name.replace(name).is_some() {
            return Err(ClientHelloError::TwoServerNames);
        }
    }
    let name = host_name.ok_or(ClientHelloError::NotHostName)?;
    match name.len() {
        0 => return Err(ClientHelloError::Length { field: "HostName", length: 0 }),
        1..=MAX_SERVER_NAME => {}
        length => return Err(ClientHelloError::ServerNameTooLong { length }),
    }
    if let Some(&byte) = name.iter().find(|byte| !byte.is_ascii_graphic()) {
        return Err(ClientHelloError::ServerNameByte { byte });
    }
    Ok(name.iter().map(|byte| char::from(byte.to_ascii_lowercase())).collect())
}

fn alpn(data: &[u8]) -> Result<Vec<Vec<u8>>, ClientHelloError> {
    let mut names = list(data, "protocol_name_list", "application_layer_protocol_negotiation")?;
    let mut protocols = Vec::new();
    while !names.is_empty() {
        let name = names.vector8("ProtocolName")?;
        if name.is_empty() {
            return Err(ClientHelloError::Length { field: "ProtocolName", length: 0 });
        }
        protocols.push(name.to_vec());
    }
    Ok(protocols)
}

/// The elements of an extension that is one non-empty list and nothing else.
fn list<'a>(data: &'a [u8], field: &'static str, extension: &'static str) -> Result<Fields<'a>, ClientHelloError> {
    let mut data = Fields(data);
    let elements = Fields(data.vector16(field)?);
    data.end(extension)?;
    if elements.is_empty() { Err(ClientHelloError::Length { field, length: 0 }) } else { Ok(elements) }
}

/// What is left to read of a structure.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, length: usize, field: &'static str) -> Result<&'a [u8], ClientHelloError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(ClientHelloError::Truncated { field })?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self, field: &'static str) -> Result<u8, ClientHelloError> {
        Ok(self.take(1, field)?[0])
    }

    fn u16(&mut self, field: &'static str) -> Result<u16, ClientHelloError> {
        let bytes = self.take(2, field)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// Bytes after a length of 8 bits.
    fn vector8(&mut self, field: &'static str) -> Result<&'a [u8], ClientHelloError> {
        let length = self.u8(field)?;
        self.take(usize::from(length), field)
    }

    /// Bytes after a length of 16 bits.
    fn vector16(&mut self, field: &'static str) -> Result<&'a [u8], ClientHelloError> {
        let length = self.u16(field)?;
        self.take(usize::from(length), field)
    }

    const fn end(&self, field: &'static str) -> Result<(), ClientHelloError> {
        if self.is_empty() { Ok(()) } else { Err(ClientHelloError::TrailingBytes { field }) }
    }
}
