//! The programs under test: built once, refused when older than their sources.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, ensure};

const PROGRAMS: [&str; 7] =
    ["trust-bundle", "federator", "control-plane", "east-west-gateway", "sidecar", "isthmus", "shop"];

/// Where the programs are.
#[derive(Debug, Clone)]
pub struct Binaries {
    directory: PathBuf,
}

impl Binaries {
    /// Builds every program of the workspace that is not there or not current, once in this process.
    ///
    /// # Errors
    /// The build failed, or a program is older than one of its sources.
    pub fn build() -> anyhow::Result<Self> {
        static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        let built = BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")));
        let directory = built.clone().map_err(anyhow::Error::msg)?;
        Ok(Self { directory })
    }

    /// Builds some programs only, where they are not there or not current.
    ///
    /// # Errors
    /// As [`Binaries::build`].
    pub fn build_only(programs: &[&str]) -> anyhow::Result<Self> {
        Ok(Self { directory: build_programs(programs)? })
    }

    /// Programs that were built with this one, with whatever profile that was.
    ///
    /// # Errors
    /// This program has no path.
    pub fn beside_this_program() -> anyhow::Result<Self> {
        let program = std::env::current_exe()?;
        Ok(Self { directory: program.parent().context("a program lies in a folder")?.to_owned() })
    }

    /// A program's path.
    #[must_use]
    pub fn path(&self, program: &str) -> PathBuf {
        self.directory.join(program)
    }
}

fn build() -> anyhow::Result<PathBuf> {
    build_programs(&PROGRAMS)
}

fn build_programs(programs: &[&str]) -> anyhow::Result<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("e2e lies in the workspace")?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    let directory = target.join("debug");
    let check = || programs.iter().try_for_each(|program| refuse_stale(&directory.join(program)));
    // `cargo test` and `make demo` have built them already; a build with other features would do it all again.
    if check().is_err() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut building = Command::new(cargo);
        let named = programs.iter().flat_map(|program| ["--bin", *program]);
        building.args(["build", "--quiet", "--workspace"]).args(named).current_dir(workspace);
        let built = building.output()?;
        ensure!(built.status.success(), "the build failed:\n{}", String::from_utf8_lossy(&built.stderr));
        check()?;
    }
    Ok(directory)
}

/// Compares a program with the sources that the compiler says it was made of.
fn refuse_stale(program: &Path) -> anyhow::Result<()> {
    let made = program.metadata().and_then(|file| file.modified()).with_context(|| program.display().to_string())?;
    let list = program.with_extension("d");
    let text = std::fs::read_to_string(&list).with_context(|| list.display().to_string())?;
    for source in text.split_once(": ").map_or("", |(_, sources)| sources).split_whitespace() {
        let changed = Path::new(source).metadata().and_then(|file| file.modified());
        ensure!(
            changed.is_ok_and(|changed| changed <= made),
            "{} is older than its source {source}",
            program.display()
        );
    }
    Ok(())
}
