//! ClientHellos written field by field, so that any of them can be wrong.

/// The parts of a ClientHello; `body` puts them together.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) version: [u8; 2],
    pub(crate) session_id: Vec<u8>,
    pub(crate) cipher_suites: Vec<u8>,
    pub(crate) compression: Vec<u8>,
    /// `None`: a hello that ends before the extensions' length, as TLS 1.2 allows.
    pub(crate) extensions: Option<Vec<u8>>,
    pub(crate) trailing: Vec<u8>,
}

impl Default for Parts {
    fn default() -> Self {
        Self {
            version: [3, 3],
            session_id: vec![7; 32],
            // GREASE first, as browsers send it (RFC 8701).
            cipher_suites: vec![0x3a, 0x3a, 0x13, 0x01],
            compression: vec![0],
            extensions: Some(Vec::new()),
            trailing: Vec::new(),
        }
    }
}

impl Parts {
    pub(crate) fn with_extensions(extensions: &[Vec<u8>]) -> Self {
        Self { extensions: Some(extensions.concat()), ..Self::default() }
    }

    pub(crate) fn body(&self) -> Vec<u8> {
        let mut body = self.version.to_vec();
        body.extend_from_slice(&[9; 32]);
        body.extend(vector8(&self.session_id));
        body.extend(vector16(&self.cipher_suites));
        body.extend(vector8(&self.compression));
        if let Some(extensions) = &self.extensions {
            body.extend(vector16(extensions));
        }
        body.extend_from_slice(&self.trailing);
        body
    }

    pub(crate) fn message(&self) -> Vec<u8> {
        message(1, &self.body())
    }

    pub(crate) fn record(&self) -> Vec<u8> {
        super::into_records(&self.message(), &[1 << 14])
    }
}

pub(crate) fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[kind], &length[1..], body].concat()
}

pub(crate) fn vector8(bytes: &[u8]) -> Vec<u8> {
    [&[u8::try_from(bytes.len()).unwrap()], bytes].concat()
}

pub(crate) fn vector16(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

pub(crate) fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [kind.to_be_bytes().to_vec(), vector16(data)].concat()
}

/// A server name extension with names of these types.
pub(crate) fn server_names(names: &[(u8, &[u8])]) -> Vec<u8> {
    let list: Vec<u8> = names.iter().flat_map(|(kind, name)| [vec![*kind], vector16(name)].concat()).collect();
    extension(0, &vector16(&list))
}

pub(crate) fn host_name(name: &[u8]) -> Vec<u8> {
    server_names(&[(0, name)])
}

pub(crate) fn alpn(protocols: &[&[u8]]) -> Vec<u8> {
    let list: Vec<u8> = protocols.iter().flat_map(|protocol| vector8(protocol)).collect();
    extension(16, &vector16(&list))
}
