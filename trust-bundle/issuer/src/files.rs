//! Where an authority lies on disk, and writing it so that a crash leaves the old file or the new one.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// The mode of the private key's file, and of directories made for it.
const KEY_MODE: u32 = 0o600;
const CERTIFICATE_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o700;

/// An authority's two files, both PEM. What it makes for itself lies beside the certificates, under their name with another
/// ending: `ca.online.pem`, `ca.online-next.pem` (intermediates with their keys), `ca.next.pem`, `ca.old.crt` and
/// `ca.rotation.json` (a root's rotation).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityFiles {
    /// The signing certificate, followed by those above it, the root last. A root alone signs intermediates.
    pub certificates: PathBuf,
    /// The first certificate's private key (PKCS#8), readable by its owner only; sealed if there is a sealing key. A root's
    /// may be taken away while its intermediate lives.
    pub key: PathBuf,
}

impl AuthorityFiles {
    /// `ca.crt` and `ca.key` in `directory`.
    pub fn in_directory(directory: &Path) -> Self {
        Self { certificates: directory.join("ca.crt"), key: directory.join("ca.key") }
    }

    /// The intermediate in use.
    pub(crate) fn online(&self) -> PathBuf {
        self.beside("online.pem")
    }

    /// The intermediate that will be used next.
    pub(crate) fn online_next(&self) -> PathBuf {
        self.beside("online-next.pem")
    }

    /// The root that will sign next, with its key.
    pub(crate) fn next_root(&self) -> PathBuf {
        self.beside("next.pem")
    }

    /// The root that signed before.
    pub(crate) fn old_root(&self) -> PathBuf {
        self.beside("old.crt")
    }

    /// How far a root's rotation has come.
    pub(crate) fn rotation(&self) -> PathBuf {
        self.beside("rotation.json")
    }

    fn beside(&self, ending: &str) -> PathBuf {
        let mut name = self.certificates.file_stem().map_or_else(|| OsString::from("ca"), OsString::from);
        name.push(".");
        name.push(ending);
        self.certificates.with_file_name(name)
    }
}

/// Writes what only its owner may read.
pub(crate) fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    write_whole(path, text.as_bytes(), KEY_MODE)
}

/// Writes what everybody may read.
pub(crate) fn write_public(path: &Path, text: &str) -> io::Result<()> {
    write_whole(path, text.as_bytes(), CERTIFICATE_MODE)
}

/// Removes a file that may be gone already.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => File::open(directory_of(path))?.sync_all(),
    }
}

/// The content, or `None` when there is no such file.
pub(crate) fn read_if_there(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Writes beside the target, syncs, renames, syncs the directory.
fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let directory = directory_of(path);
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
