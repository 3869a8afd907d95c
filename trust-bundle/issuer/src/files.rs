//! Where an authority lies on disk, and writing it so that a crash leaves the old file or the new one.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// The mode of the private key's file, and of directories made for it.
const KEY_MODE: u32 = 0o600;
const CERTIFICATE_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o700;

/// An authority's two files, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityFiles {
    /// The signing certificate, followed by those above it, the root last. A root alone signs by itself.
    pub certificates: PathBuf,
    /// The signing certificate's private key (PKCS#8), readable by its owner only.
    pub key: PathBuf,
}

impl AuthorityFiles {
    /// `ca.crt` and `ca.key` in `directory`.
    pub fn in_directory(directory: &Path) -> Self {
        Self { certificates: directory.join("ca.crt"), key: directory.join("ca.key") }
    }

    pub(crate) fn write_key(&self, pem: &str) -> io::Result<()> {
        write_whole(&self.key, pem.as_bytes(), KEY_MODE)
    }

    pub(crate) fn write_certificates(&self, pem: &str) -> io::Result<()> {
        write_whole(&self.certificates, pem.as_bytes(), CERTIFICATE_MODE)
    }
}

/// Writes beside the target, syncs, renames, syncs the directory.
fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory)?;
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_os_string();
    name.push(format!(".{}.new", std::process::id()));
    let beside = directory.join(name);
    // A file left by an earlier crash may have another mode: never write a key into it.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&beside, path));
    if let Err(error) = written {
        // The first error says more than a failure to tidy up.
        let _ = fs::remove_file(&beside);
        return Err(error);
    }
    File::open(directory)?.sync_all()
}
