//! Last-good files: what a process needs to start again with everything else gone.
//!
//! A reader sees the old content or the new, never a mixture, also across a crash or power loss. These calls block on
//! the disk: call them from `spawn_blocking` in asynchronous code.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Replaces the file at `path` by `bytes`, with exactly the permission bits `mode` (such as `0o600`), all or nothing.
///
/// The content is written to `.<name>.tmp` beside it, synced, renamed over `path`, and the directory is synced.
/// Writers of one path, in this process or another, take turns by a lock on the temporary file; what a crash left in
/// it is overwritten by the next write. On an error the old file is untouched.
pub fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let (directory, temporary) = neighbours(path)?;
    let mut file = open_locked(&temporary, mode)?;
    let written = fill(&mut file, bytes, mode).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        // The lock is still held, so this removes our own file; the first error is the one to report.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    File::open(directory)?.sync_all()
}

/// Reads a file that [`write_atomically`] may have written. `None` if there is none; an error of kind `FileTooLarge`
/// if it has more than `max_bytes`.
pub fn read_if_present(path: &Path, max_bytes: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    // One byte more than allowed tells "too large" from "just fits", whatever the file's length claims.
    file.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {max_bytes} bytes")));
    }
    Ok(Some(bytes))
}

fn neighbours(path: &Path) -> io::Result<(PathBuf, PathBuf)> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{} names no file", path.display())))?;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(".tmp");
    let temporary = directory.join(temporary);
    Ok((directory, temporary))
}

/// Opens the temporary file and locks it, making sure that the locked file is still the one of that name: another
/// writer may have renamed it away while this one waited for the lock.
fn open_locked(temporary: &Path, mode: u32) -> io::Result<File> {
    loop {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(mode).open(temporary)?;
        file.lock()?;
        match fs::symlink_metadata(temporary) {
            Ok(named) if named.ino() == file.metadata()?.ino() => return Ok(file),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

fn fill(file: &mut File, bytes: &[u8], mode: u32) -> io::Result<()> {
    // Before the content: neither the umask nor a left-over file may decide who can read it.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.set_len(0)?;
    file.write_all(bytes)?;
    file.sync_all()
}
