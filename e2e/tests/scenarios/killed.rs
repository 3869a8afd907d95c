//! SIGKILL at every step of a root's rotation, seen in the files as it happens: whoever comes back goes on to the end.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use e2e::lab::process::Process;
use e2e::lab::{READY, wait};
use e2e::ticks::lab::TickingLab;
use rustix::process::{Pid, Signal, kill_process};

use crate::ONE_AT_A_TIME;
use crate::rotation::{QUICK, ROTATION, until_authority_idle, until_idle};

/// How often the files are looked at: a step that takes a write to the disk is not missed.
const LOOK: Duration = Duration::from_micros(50);

/// How often an operator looks how far a rotation is.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);

/// The folder of an authority, as it was when its rotation began.
struct Folder {
    path: PathBuf,
    root: String,
}

/// A step, as the folder shows it.
type Step = (&'static str, fn(&Folder) -> bool);

/// In the order in which they happen.
const STEPS: [Step; 8] = [
    ("the rotation is begun", |it| it.read("ca.rotation.json").is_some()),
    ("the next root is made", |it| it.read("ca.next.pem").is_some()),
    ("both are published", |it| it.is_at("spread")),
    ("the old root is put aside", |it| it.read("ca.old.crt").is_some()),
    ("the next root signs", |it| it.read("ca.crt").is_some_and(|root| root != it.root)),
    ("the old root runs out", |it| it.is_at("drain")),
    ("the old root is gone", |it| it.read("ca.old.crt").is_none()),
    ("the next root alone is published", |it| it.is_at("settle")),
];

impl Folder {
    fn new(path: PathBuf) -> Self {
        let root = std::fs::read_to_string(path.join("ca.crt")).unwrap();
        Self { path, root }
    }

    fn read(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.path.join(name)).ok()
    }

    fn is_at(&self, phase: &str) -> bool {
        self.read("ca.rotation.json").is_some_and(|text| text.contains(&format!("\"{phase}\"")))
    }
}

/// Stops the process in the moment in which a step shows: it does nothing more, whatever it was doing. Blocks.
fn freeze_at(folder: &Folder, (name, shows): Step, process: u32) -> anyhow::Result<()> {
    let process = i32::try_from(process).ok().and_then(Pid::from_raw).context("a process id")?;
    let started = Instant::now();
    while !shows(folder) {
        ensure!(started.elapsed() < ROTATION, "{name}: not in time");
        std::thread::sleep(LOOK);
    }
    Ok(kill_process(process, Signal::STOP)?)
}

/// Kills the process at every step, beginning with those that `begin` leads to, and starts it again each time.
async fn killed_at_every_step(
    process: &mut Process,
    folder: &Path,
    begin: impl Future<Output = anyhow::Result<String>>,
) {
    let folder = std::sync::Arc::new(Folder::new(folder.to_owned()));
    let mut begin = Some(begin);
    for step in STEPS {
        let (looking, id) = (folder.clone(), process.id().unwrap());
        let mut frozen = tokio::task::spawn_blocking(move || freeze_at(&looking, step, id));
        let frozen = match begin.take() {
            // Its answer may be lost with the process.
            Some(begin) => tokio::select! {
                frozen = &mut frozen => frozen,
                _ = begin => frozen.await,
            },
            None => frozen.await,
        };
        frozen.unwrap().unwrap_or_else(|error| panic!("{error:#}"));
        process.kill().await.unwrap();
        process.restart().unwrap();
    }
    process.ready(READY).await.unwrap();
}

fn roots(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap();
    text.split_inclusive("-----END CERTIFICATE-----\n").map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_killed_at_every_step_goes_on_to_its_end_and_no_handshake_fails() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let directory = tempfile::tempdir().unwrap();
    let mut ticking = TickingLab::start(directory.path(), 2, QUICK).await.unwrap();
    let calls = [ticking.calls("east", "west").unwrap(), ticking.calls("west", "east").unwrap()];
    let begun = Instant::now();

    let east = ticking.lab.cluster("east").unwrap();
    let (operator, state) = (east.operator(), east.directory().join("state/control-plane"));
    let before = roots(&state.join("root.crt"));
    killed_at_every_step(&mut east.control_plane, &state, operator.isthmus(&["rotate", "root"])).await;
    until_idle(&operator, "root").await;
    let after = roots(&state.join("root.crt"));
    assert!(after.len() == 1 && after != before);

    let federation = &mut ticking.lab.federation;
    let authority = directory.path().join("federation/keys/service/authority");
    let keys = federation.operator_directory().to_owned();
    let before = roots(&keys.join("federation-root.crt"));
    let operator = federation.operator();
    // Whoever rotates looks how far it is, and learns the next root before it signs.
    let looking = async {
        loop {
            let _ = operator.isthmus(&["authority", "status"]).await;
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    };
    let rotate = operator.isthmus(&["authority", "rotate"]);
    tokio::select! {
        () = killed_at_every_step(&mut federation.trust_bundles[0], &authority, rotate) => {}
        () = looking => {}
    }
    until_authority_idle(&operator).await;
    operator.isthmus(&["authority", "renew"]).await.unwrap();
    let after = roots(&keys.join("federation-root.crt"));
    assert!(after.len() == 1 && after != before);

    // Everybody is connected again under the new root, and is believed.
    for cluster in &ticking.lab.clusters {
        wait::until("all is well", READY, || async { cluster.operator().isthmus(&["status"]).await }).await.unwrap();
    }
    for calls in &calls {
        let calls = calls.since(begun);
        let failed: Vec<_> = calls.iter().filter_map(|call| call.outcome.as_ref().err()).collect();
        assert!(calls.len() > 200, "only {} calls", calls.len());
        assert!(failed.is_empty(), "{} of {} calls failed: {:?}", failed.len(), calls.len(), failed.first());
    }
    ticking.lab.stop().await;
}
