//! A store's contents as one file: to move a program from the embedded store to etcd, or to another etcd, and to keep.
//!
//! ```text
//! {"format":"isthmus-store","version":1,"program":"federator","revision":4711}
//! {"key":"epochs/east","value":"AAAAAAAAAAM="}
//! {"key":"exports/shop/cart/east","value":"Cj8K…"}          in the order of the keys, values in base64
//! {"entries":2,"sha256":"9f86d0…"}                          of all the bytes before this line
//! ```
//!
//! It is the state of one revision. Keys that live with a lease are left out: they say who is connected now. An import
//! takes the whole file or, when anything of it is wrong, nothing; it writes into a store that is empty, or that an
//! import of the same file was cut off in, so that it is started again and goes on. Revisions are not kept: whoever
//! resumes by them sees another [`Incarnation`](crate::Incarnation) and reads everything.
//!
//! A file that is older than what clusters have published since rolls nobody back: records are signed and carry their
//! cluster's own sequence, and whoever saw a later one goes on with that, the publisher first.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    AnyStore, Committed, MAX_OPERATIONS, MAX_REQUEST_BYTES, OpenStoreError, Revision, Store, StoreConfig, StoreError,
    Transaction,
};

/// What the first line calls the format.
const FORMAT: &str = "isthmus-store";
/// The version of the format that is written and read.
const VERSION: u32 = 1;
/// How long a store may take to be opened: nobody waits in front of a terminal for ever.
const OPEN_DEADLINE: Duration = Duration::from_secs(30);

/// Why there is no backup, or why it was not taken in.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The store was not opened.
    #[error(transparent)]
    Open(#[from] OpenStoreError),
    /// The store did not answer at all.
    #[error("store: nobody answered within {} s", OPEN_DEADLINE.as_secs())]
    NoAnswer,
    /// The store failed.
    #[error("store: {0}")]
    Store(#[from] StoreError),
    /// The file was not written or read.
    #[error("{file}: {error}")]
    File {
        /// The file.
        file: String,
        /// What the system says.
        error: std::io::Error,
    },
    /// The file is not a backup, or not a whole one; nothing was written.
    #[error("{file}, line {line}: {problem}")]
    Malformed {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// The store holds something else already; nothing was written.
    #[error("the store is not empty: it holds {key:?}, which is not what the file says")]
    NotEmpty {
        /// The first such key.
        key: String,
    },
    /// Somebody writes to the store at the same time.
    #[error("{key:?} was written by somebody else: end the programs that use this store, and import again")]
    Contended {
        /// The key.
        key: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: String,
    version: u32,
    program: String,
    revision: Revision,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    key: String,
    value: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Footer {
    entries: usize,
    sha256: String,
}

/// The commands of a program that has a store; `PROGRAM --help` shows them.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Writes all that the store of a configuration holds to a file. An embedded store must not be in use.
    Export {
        /// The program's configuration file.
        #[arg(long, value_name = "FILE", env = "ISTHMUS_CONFIG")]
        config: PathBuf,
        /// The file to write; one that is there is replaced.
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
    },
    /// Puts what an export wrote into the store of a configuration, which must be empty and not in use.
    Import {
        /// The program's configuration file.
        #[arg(long, value_name = "FILE", env = "ISTHMUS_CONFIG")]
        config: PathBuf,
        /// The file to read.
        #[arg(long, value_name = "FILE")]
        from: PathBuf,
    },
}

impl Command {
    /// The configuration file that it names.
    pub fn config(&self) -> &Path {
        let (Self::Export { config, .. } | Self::Import { config, .. }) = self;
        config
    }

    /// Runs it on `program`'s store, and says what was done.
    ///
    /// # Errors
    /// See [`BackupError`].
    pub async fn run(&self, program: &str, store: StoreConfig) -> Result<String, BackupError> {
        let (verb, file, counted) = match self {
            Self::Export { to, .. } => ("written to", to, export(store, program, to).await?),
            Self::Import { from, .. } => ("taken from", from, import(store, program, from).await?),
        };
        Ok(format!("{} entries of revision {} {verb} {}", counted.entries, counted.revision, file.display()))
    }
}

/// How much was written or taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Entries of the file.
    pub entries: usize,
    /// The revision of the store that the file is of.
    pub revision: Revision,
}

/// Writes what `program`'s store holds to `file`, which only its owner may read; a file that is there is replaced as a whole.
///
/// # Errors
/// See [`BackupError`].
pub async fn export(store: StoreConfig, program: &str, file: &Path) -> Result<Counted, BackupError> {
    if let StoreConfig::Embedded(embedded) = &store {
        // Opening would make it.
        let failed = |error| BackupError::File { file: embedded.file.display().to_string(), error };
        std::fs::metadata(&embedded.file).map_err(failed)?;
    }
    let store = open(store).await?;
    let counted = write(&store, program, file).await;
    store.close().await;
    counted
}

/// Puts what `file` holds into `program`'s store.
///
/// # Errors
/// See [`BackupError`].
pub async fn import(store: StoreConfig, program: &str, file: &Path) -> Result<Counted, BackupError> {
    let contents = Contents::read(program, file)?;
    let store = open(store).await?;
    let taken = contents.put(&store).await;
    store.close().await;
    taken
}

async fn open(store: StoreConfig) -> Result<AnyStore, BackupError> {
    let opened = tokio::time::timeout(OPEN_DEADLINE, store.open()).await;
    Ok(opened.map_err(|_| BackupError::NoAnswer)??)
}

async fn write(store: &AnyStore, program: &str, file: &Path) -> Result<Counted, BackupError> {
    let snapshot = store.snapshot("").await?;
    let failed = |error| BackupError::File { file: file.display().to_string(), error };
    let new = file.with_added_extension("new");
    let mut out = Digested::create(&new).map_err(failed)?;
    let lasting = || snapshot.entries.iter().filter(|entry| entry.lease.is_none());
    let entries = lasting().count();
    let header = Header {
        format: FORMAT.to_owned(),
        version: VERSION,
        program: program.to_owned(),
        revision: snapshot.revision,
    };
    out.line(&header).map_err(failed)?;
    for entry in lasting() {
        out.line(&Line { key: entry.key.clone(), value: BASE64.encode(&entry.value) }).map_err(failed)?;
    }
    out.end(entries).map_err(failed)?;
    std::fs::rename(&new, file).map_err(failed)?;
    Ok(Counted { entries, revision: snapshot.revision })
}

/// A file that knows the digest of what was written to it.
struct Digested {
    out: BufWriter<std::fs::File>,
    digest: Context,
}

impl Digested {
    fn create(file: &Path) -> std::io::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let out = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(file)?;
        Ok(Self { out: BufWriter::new(out), digest: Context::new(&SHA256) })
    }

    fn line(&mut self, line: &impl Serialize) -> std::io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.digest.update(&text);
        self.out.write_all(&text)
    }

    fn end(mut self, entries: usize) -> std::io::Result<()> {
        let sha256 = hex(self.digest.clone());
        self.line(&Footer { entries, sha256 })?;
        self.out.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()
    }
}

fn hex(digest: Context) -> String {
    digest.finish().as_ref().iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What a whole, valid file says.
struct Contents {
    entries: Vec<(String, Bytes)>,
    revision: Revision,
}

impl Contents {
    fn read(program: &str, file: &Path) -> Result<Self, BackupError> {
        let failed = |error| BackupError::File { file: file.display().to_string(), error };
        let mut input = BufReader::new(std::fs::File::open(file).map_err(failed)?);
        let mut reader = LineReader { digest: Context::new(&SHA256), number: 0, text: String::new() };
        let wrong = |line, problem| BackupError::Malformed { file: file.display().to_string(), line, problem };
        let read = reader.contents(program, &mut input);
        read.map_err(|problem| match problem {
            Problem::File(error) => failed(error),
            Problem::Line(problem) => wrong(reader.number, problem),
        })
    }

    /// Puts what is not there yet, if nothing else is there.
    async fn put(self, store: &AnyStore) -> Result<Counted, BackupError> {
        let counted = Counted { entries: self.entries.len(), revision: self.revision };
        let there = store.snapshot("").await?;
        let mut there = there.entries.into_iter().filter(|entry| entry.lease.is_none()).peekable();
        let mut missing = Vec::new();
        for (key, value) in self.entries {
            match there.next_if(|entry| entry.key <= key) {
                None => missing.push((key, value)),
                Some(entry) if entry.key == key && entry.value == value => {}
                Some(entry) => return Err(BackupError::NotEmpty { key: entry.key }),
            }
        }
        if let Some(entry) = there.next() {
            return Err(BackupError::NotEmpty { key: entry.key });
        }
        let mut transaction = Transaction::new();
        for (key, value) in missing {
            let larger = transaction.clone().expecting_absent(&key).put(&key, value.clone());
            if larger.operations.len() > MAX_OPERATIONS || larger.size() > MAX_REQUEST_BYTES {
                commit(store, transaction).await?;
                transaction = Transaction::new().expecting_absent(&key).put(&key, value);
            } else {
                transaction = larger;
            }
        }
        if !transaction.operations.is_empty() {
            commit(store, transaction).await?;
        }
        Ok(counted)
    }
}

async fn commit(store: &AnyStore, transaction: Transaction) -> Result<(), BackupError> {
    match store.commit(transaction).await? {
        Committed::Done(_) => Ok(()),
        Committed::Conflict { key } => Err(BackupError::Contended { key }),
    }
}

enum Problem {
    File(std::io::Error),
    Line(String),
}

struct LineReader {
    digest: Context,
    number: usize,
    text: String,
}

impl LineReader {
    fn contents(&mut self, program: &str, input: &mut impl BufRead) -> Result<Contents, Problem> {
        let header: Header = self.next(input)?;
        let problem = if header.format != FORMAT {
            Some(format!("the format is {:?}, not {FORMAT:?}", header.format))
        } else if header.version != VERSION {
            Some(format!("version {} of the format; this program reads {VERSION}", header.version))
        } else if header.program != program {
            Some(format!("it holds what {} keeps, and this is {program}", header.program))
        } else {
            None
        };
        if let Some(problem) = problem {
            return Err(Problem::Line(problem));
        }
        let mut entries: Vec<(String, Bytes)> = Vec::new();
        loop {
            let before = self.digest.clone();
            match self.next(input)? {
                EntryOrEnd::Entry(Line { key, value }) => {
                    if entries.last().is_some_and(|(last, _)| *last >= key) {
                        return Err(Problem::Line(format!("{key:?} is not in the order of the keys")));
                    }
                    let value = BASE64.decode(value).map_err(|error| Problem::Line(format!("value: {error}")))?;
                    entries.push((key, value.into()));
                }
                EntryOrEnd::End(Footer { entries: count, sha256 }) => {
                    if count != entries.len() {
                        return Err(Problem::Line(format!(
                            "{count} entries were written, {} are there",
                            entries.len()
                        )));
                    }
                    if hex(before) != sha256 {
                        return Err(Problem::Line(
                            "sha256 is not that of the lines before: the file was changed".into(),
                        ));
                    }
                    return Ok(Contents { entries, revision: header.revision });
                }
            }
        }
    }

    fn next<T: for<'a> Deserialize<'a>>(&mut self, input: &mut impl BufRead) -> Result<T, Problem> {
        self.text.clear();
        self.number += 1;
        if input.read_line(&mut self.text).map_err(Problem::File)? == 0 {
            return Err(Problem::Line("the file ends without its last line: it was cut off".to_owned()));
        }
        self.digest.update(self.text.as_bytes());
        serde_json::from_str(&self.text).map_err(|error| Problem::Line(error.to_string()))
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "neither an entry ({\"key\", \"value\"}) nor the last line ({\"entries\", \"sha256\"})")]
enum EntryOrEnd {
    Entry(Line),
    End(Footer),
}
