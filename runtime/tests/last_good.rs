//! Last-good files are whole at every moment, and only for whom they are meant.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use mesh_runtime::{read_if_present, write_atomically};

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_file_is_replaced_with_its_mode_and_nothing_left_beside_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    write_atomically(&path, b"first, and longer", 0o644).unwrap();
    assert_eq!(mode(&path), 0o644);
    write_atomically(&path, b"second", 0o600).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"second");
    assert_eq!(mode(&path), 0o600);
    assert_eq!(names(directory.path()), ["state"]);
}

#[test]
fn what_a_crash_left_behind_does_not_show_in_the_next_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let left = directory.path().join(".state.tmp");
    fs::write(&left, b"half of something much longer").unwrap();
    fs::set_permissions(&left, fs::Permissions::from_mode(0o666)).unwrap();
    write_atomically(&path, b"whole", 0o600).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"whole");
    assert_eq!(mode(&path), 0o600);
    assert_eq!(names(directory.path()), ["state"]);
}

#[test]
fn a_failed_write_leaves_the_old_file_alone() {
    let directory = tempfile::tempdir().unwrap();
    // A directory that is not empty cannot be replaced by a file.
    let path = directory.path().join("state");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("old"), b"old").unwrap();
    assert!(write_atomically(&path, b"new", 0o600).is_err());
    assert_eq!(fs::read(path.join("old")).unwrap(), b"old");
    assert_eq!(names(directory.path()), ["state"]);
    let nowhere = directory.path().join("missing").join("state");
    assert_eq!(write_atomically(&nowhere, b"new", 0o600).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(write_atomically(Path::new("/"), b"new", 0o600).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn readers_see_whole_files_while_several_writers_take_turns() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    write_atomically(&path, &[0; 4096], 0o600).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = 0_u32;
            while !done.load(Ordering::Relaxed) {
                let bytes = fs::read(&path).unwrap();
                let first = bytes[0];
                assert_eq!(bytes.len(), 4096 + usize::from(first), "the length belongs to the content");
                assert!(bytes.iter().all(|byte| *byte == first), "one writer's content only");
                seen += 1;
            }
            seen
        });
        let writers: Vec<_> = (1..=4_u8)
            .map(|writer| {
                let path = &path;
                scope.spawn(move || {
                    let content = vec![writer; 4096 + usize::from(writer)];
                    for _ in 0..25 {
                        write_atomically(path, &content, 0o600).unwrap();
                    }
                })
            })
            .collect();
        let outcomes: Vec<_> = writers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        for outcome in outcomes {
            outcome.unwrap();
        }
        assert!(reader.join().unwrap() > 0);
    });
    assert_eq!(names(directory.path()), ["state"]);
}

#[test]
fn a_file_is_read_if_it_is_there_and_not_too_large() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    assert_eq!(read_if_present(&path, 5).unwrap(), None);
    write_atomically(&path, b"12345", 0o600).unwrap();
    assert_eq!(read_if_present(&path, 5).unwrap().as_deref(), Some(&b"12345"[..]));
    assert_eq!(read_if_present(&path, 4).unwrap_err().kind(), ErrorKind::FileTooLarge);
    assert_eq!(read_if_present(&path, u64::MAX).unwrap().as_deref(), Some(&b"12345"[..]));
    assert!(read_if_present(directory.path(), 5).is_err());
}
