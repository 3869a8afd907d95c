//! Directories as they change: by rename, in place, half written, through ConfigMap mounts.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use federation_resources::directory::{QUIET, QUIET_BEFORE_LOSS};
use federation_resources::{Change, Directory};

fn namespace(name: &str) -> String {
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n")
}

/// A directory with a clock of its own; files count as old unless a test makes them young.
struct Watched {
    root: tempfile::TempDir,
    directory: Directory,
    now: Instant,
}

impl Watched {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::new(root.path());
        Self { root, directory, now: Instant::now() }
    }

    /// Written as long ago as a scan can ask for, so that only what was observed counts.
    fn write(&self, name: &str, text: &str) {
        self.write_young(name, text);
        age(&self.root.path().join(name), Duration::from_secs(10));
    }

    /// Written a moment in the future, so that only the observed quiet counts.
    fn write_young(&self, name: &str, text: &str) {
        let path = self.root.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(std::time::SystemTime::now() + Duration::from_secs(60)).unwrap();
    }

    fn changes(&mut self) -> Vec<String> {
        let scan = self.directory.scan(self.now);
        scan.changes.iter().map(describe).collect()
    }

    fn problems(&mut self) -> Vec<String> {
        let root = format!("{}/", self.root.path().display());
        let scan = self.directory.scan(self.now);
        scan.problems.iter().map(|problem| problem.to_string().replace(&root, "")).collect()
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }
}

fn age(path: &Path, by: Duration) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(std::time::SystemTime::now() - by).unwrap();
}

fn describe(change: &Change) -> String {
    match change {
        Change::Applied(resource) => format!("+{}", resource.key()),
        Change::Deleted(key) => format!("-{key}"),
    }
}

#[test]
fn objects_come_change_and_go_with_their_files() {
    let mut watched = Watched::new();
    watched.write("a.yaml", &namespace("a"));
    watched.write("deep/er/b.json", r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"b"}}"#);
    watched.write("notes.txt", "nothing");
    watched.write(".hidden.yaml", &namespace("hidden"));
    assert_eq!(watched.changes(), ["+Namespace a", "+Namespace b"]);
    assert_eq!(watched.changes(), Vec::<String>::new());
    watched.write("a.yaml", &(namespace("c") + &namespace("d")));
    assert_eq!(watched.changes(), ["-Namespace a", "+Namespace c", "+Namespace d"]);
    fs::remove_file(watched.root.path().join("a.yaml")).unwrap();
    assert_eq!(watched.changes(), Vec::<String>::new());
    watched.pass(QUIET_BEFORE_LOSS);
    assert_eq!(watched.changes(), ["-Namespace c", "-Namespace d"]);
}

#[test]
fn a_file_renamed_into_place_is_read_as_a_whole() {
    let mut watched = Watched::new();
    watched.write("a.yaml", &namespace("a"));
    watched.changes();
    watched.write(".a.yaml.tmp", &(namespace("a") + &namespace("b")));
    fs::rename(watched.root.path().join(".a.yaml.tmp"), watched.root.path().join("a.yaml")).unwrap();
    assert_eq!(watched.changes(), ["+Namespace b"]);
}

#[test]
fn a_half_written_file_takes_nothing_away_until_it_settles() {
    let mut watched = Watched::new();
    watched.write("a.yaml", &(namespace("a") + &namespace("b")));
    assert_eq!(watched.changes(), ["+Namespace a", "+Namespace b"]);
    watched.write_young("a.yaml", &namespace("a"));
    let scan = watched.directory.scan(watched.now);
    assert!(scan.changes.is_empty() && scan.due == Some(watched.now + QUIET));
    watched.pass(QUIET);
    let scan = watched.directory.scan(watched.now);
    assert!(scan.changes.is_empty() && scan.due == Some(watched.now + QUIET_BEFORE_LOSS - QUIET));
    watched.write_young("a.yaml", &(namespace("a") + &namespace("b") + &namespace("c")));
    assert_eq!(watched.changes(), Vec::<String>::new());
    watched.pass(QUIET);
    assert_eq!(watched.changes(), ["+Namespace c"]);
    watched.write_young("a.yaml", "");
    watched.changes();
    watched.pass(QUIET_BEFORE_LOSS);
    assert_eq!(watched.changes(), ["-Namespace a", "-Namespace b", "-Namespace c"]);
}

#[test]
fn a_broken_file_keeps_what_it_held_and_lets_new_objects_in() {
    let mut watched = Watched::new();
    watched.write("a.yaml", &namespace("a"));
    watched.changes();
    watched.write("a.yaml", &("metadata: [\n".to_owned() + &namespace("b")));
    assert_eq!(watched.changes(), ["+Namespace b"]);
    assert_eq!(watched.problems().len(), 1);
    watched.write("a.yaml", &namespace("b"));
    assert_eq!(watched.changes(), ["-Namespace a"]);
    assert_eq!(watched.problems(), Vec::<String>::new());
}

#[test]
fn an_object_in_two_files_is_taken_from_the_first_and_both_are_named() {
    let mut watched = Watched::new();
    watched.write("b.yaml", &namespace("x"));
    assert_eq!(watched.changes(), ["+Namespace x"]);
    watched.write("a.yaml", &namespace("x"));
    let problems = watched.problems();
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0].starts_with("b.yaml:2: metadata.name: Namespace x is also in ")
            && problems[0].ends_with("a.yaml:2, which wins"),
        "{problems:?}"
    );
    fs::remove_file(watched.root.path().join("a.yaml")).unwrap();
    watched.changes();
    watched.pass(QUIET_BEFORE_LOSS);
    assert_eq!(watched.changes(), Vec::<String>::new(), "the second file still has it");
    assert_eq!(watched.problems(), Vec::<String>::new());
}

#[test]
fn a_mounted_config_map_swaps_all_files_at_once() {
    let mut watched = Watched::new();
    let root = watched.root.path().to_owned();
    watched.write("..2024_01/a.yaml", &namespace("a"));
    symlink("..2024_01", root.join("..data")).unwrap();
    symlink("..data/a.yaml", root.join("a.yaml")).unwrap();
    symlink(".", root.join("loop")).unwrap();
    assert_eq!(watched.changes(), ["+Namespace a"]);
    watched.write("..2024_02/a.yaml", &namespace("b"));
    symlink("..2024_02", root.join("..data_tmp")).unwrap();
    fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    assert_eq!(watched.changes(), ["-Namespace a", "+Namespace b"]);
}

#[test]
fn a_directory_that_cannot_be_listed_takes_nothing_away() {
    let mut watched = Watched::new();
    watched.write("m/a.yaml", &namespace("a"));
    watched.directory = Directory::new(watched.root.path().join("m"));
    assert_eq!(watched.changes(), ["+Namespace a"]);
    fs::rename(watched.root.path().join("m"), watched.root.path().join("n")).unwrap();
    watched.pass(QUIET_BEFORE_LOSS * 4);
    assert_eq!(watched.changes(), Vec::<String>::new());
    assert_eq!(watched.problems().len(), 1);
}
