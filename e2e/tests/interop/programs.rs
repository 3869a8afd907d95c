//! The foreign programs: built once, from pinned versions, below the target directory. A missing toolchain is an error that
//! says what to install; nothing is skipped.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::OnceCell;

/// No foreign program takes longer over an answer.
const ANSWER: Duration = Duration::from_secs(30);
/// Fetching dependencies and compiling, on a busy machine.
const BUILD: Duration = Duration::from_secs(600);

/// A program and the arguments before the caller's.
#[derive(Clone)]
pub(crate) struct Program {
    program: PathBuf,
    first: Vec<String>,
}

/// A foreign server, killed when dropped.
pub(crate) struct Server {
    _child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Program {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.first).args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Runs it to its end; what it prints is JSON. An error has what it wrote to stderr.
    pub(crate) async fn run(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let output = tokio::time::timeout(ANSWER, self.command(arguments).output()).await??;
        let (printed, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{arguments:?}: {said}");
        serde_json::from_str(&printed).with_context(|| format!("{arguments:?} printed {printed}{said}"))
    }

    /// Starts it as a server.
    pub(crate) async fn start(&self, arguments: &[&str]) -> anyhow::Result<Server> {
        let mut child = self.command(arguments).stdout(Stdio::piped()).spawn()?;
        let printed = child.stdout.take().context("its output")?;
        Ok(Server { _child: child, lines: BufReader::new(printed).lines() })
    }
}

impl Server {
    /// The next line that it prints.
    pub(crate) async fn line(&mut self) -> anyhow::Result<Value> {
        let line = tokio::time::timeout(ANSWER, self.lines.next_line()).await??.context("it ended")?;
        Ok(serde_json::from_str(&line)?)
    }
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("interop")
}

/// Where built programs are kept between runs: below the target directory.
fn kept() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("interop")
}

async fn build(what: &str, command: &mut Command) {
    let running = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(BUILD, running).await.unwrap();
    let output = output.unwrap_or_else(|error| panic!("{what}: {error}; `make tools` installs what these tests need"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {said}{}", String::from_utf8_lossy(&output.stdout));
}

/// The program of `interop/`, built with go-spiffe.
pub(crate) async fn go() -> Program {
    static BUILT: OnceCell<Program> = OnceCell::const_new();
    let built = BUILT.get_or_init(|| async {
        let program = kept().join("go-spiffe");
        // Where Go's own archive puts it, and where `make tools` does, unless it is on the path.
        let places = ["/usr/local/go/bin/go", concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/go/bin/go")];
        let go = places.into_iter().find(|place| Path::new(place).exists()).unwrap_or("go");
        let mut command = Command::new(go);
        build("go build", command.arg("build").arg("-o").arg(&program).arg(".").current_dir(sources())).await;
        Program { program, first: Vec::new() }
    });
    built.await.clone()
}

/// `interop/fetch.py`, in an environment with the `spiffe` package.
pub(crate) async fn python() -> Program {
    static BUILT: OnceCell<Program> = OnceCell::const_new();
    let built = BUILT.get_or_init(|| async {
        let environment = kept().join("python");
        let python = environment.join("bin/python");
        let wanted = std::fs::read_to_string(sources().join("requirements.txt")).unwrap();
        let stamp = environment.join("installed.txt");
        if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
            return Program { program: python, first: vec![sources().join("fetch.py").display().to_string()] };
        }
        build("python3 -m venv", Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment)).await;
        let mut install = Command::new(&python);
        install.args(["-m", "pip", "install", "--quiet", "--no-deps", "--requirement"]);
        build("pip install", install.arg(sources().join("requirements.txt"))).await;
        std::fs::write(stamp, wanted).unwrap();
        Program { program: python, first: vec![sources().join("fetch.py").display().to_string()] }
    });
    built.await.clone()
}
