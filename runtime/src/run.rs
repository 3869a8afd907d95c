//! A program's main, from its configuration to its exit code.

use std::io::Write;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use crate::admin;
use crate::config::{self, Configuration, RuntimeConfig};
use crate::process::Process;
use crate::process_metrics::RuntimeMetrics;
use crate::signals::Signals;
use crate::telemetry::Telemetry;

/// The exit code for a configuration that was refused.
const BAD_CONFIGURATION: u8 = 2;

/// How long tasks that outlived main may take to notice that the process ends.
const LEFTOVER_TASKS_DEADLINE: Duration = Duration::from_millis(500);

/// Runs a program to its end and returns its exit code.
///
/// 1. The configuration is read and checked as a whole: exit code 2, and one line on stderr for every problem.
/// 2. Telemetry starts; the admin and health listeners are bound: exit code 1 and one line naming field and address.
/// 3. `main` runs on a multi-thread runtime, with the process's handles.
/// 4. SIGTERM, SIGINT or [`Process::trigger_drain`] starts the drain; `main` is expected to return, and what holds the
///    drain to let go, within [`RuntimeConfig::drain_deadline`]. After that they are cut off. A second signal ends the
///    process at once, with 128 + its number.
/// 5. What is left of the spans is sent. Exit code 0, or 1 and one line when `main` failed or panicked.
pub fn run<C, F, Fut>(program: &'static str, config_file: &Path, main: F) -> ExitCode
where
    C: Configuration,
    F: FnOnce(C, Process) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    let configuration: C = match configuration(program, config_file) {
        Ok(configuration) => configuration,
        Err(code) => return code,
    };
    match run_configured(program, configuration, main) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(program, &format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs a command of a program that works on its configuration and ends by itself: what it returns is printed. Nothing is
/// bound. Exit codes as for [`run`].
pub fn run_command<C, F, Fut>(program: &'static str, config_file: &Path, command: F) -> ExitCode
where
    C: Configuration,
    F: FnOnce(C) -> Fut,
    Fut: Future<Output = anyhow::Result<String>>,
{
    let configuration: C = match configuration(program, config_file) {
        Ok(configuration) => configuration,
        Err(code) => return code,
    };
    let done = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match done.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(command(configuration))) {
        Ok(text) => match writeln!(std::io::stdout(), "{text}") {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(error) => {
            complain(program, &format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// The configuration, or the exit code after what is wrong with it was said.
fn configuration<C: Configuration>(program: &str, config_file: &Path) -> Result<C, ExitCode> {
    // Variables that are not Unicode cannot be meant for us.
    let environment =
        std::env::vars_os().filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string().ok()?)));
    config::load(program, config_file, environment).map_err(|error| {
        for problem in &error.problems {
            complain(program, problem);
        }
        ExitCode::from(BAD_CONFIGURATION)
    })
}

fn run_configured<C, F, Fut>(program: &'static str, configuration: C, main: F) -> anyhow::Result<()>
where
    C: Configuration,
    F: FnOnce(C, Process) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    let config = configuration.runtime().clone();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name(program).build()?;
    let context = runtime.enter();
    let listeners = runtime.block_on(Listeners::bind(&config))?;
    let process = Process::new(program, config.drain_deadline, Some(listeners.admin), Some(listeners.health));
    process.register(|registry| registry.register_collector(Box::new(RuntimeMetrics::new(runtime.handle().clone()))));
    let telemetry = Telemetry::start(program, &config, &process)?;
    let signals = Signals::watch(process.clone())?;
    info!(program, version = env!("CARGO_PKG_VERSION"), admin = %listeners.admin, health = %listeners.health, "started");
    let outcome = runtime.block_on(Box::pin(supervise(configuration, process, listeners, main)));
    signals.stop();
    telemetry.flush();
    drop(context);
    end(runtime);
    outcome
}

/// The admin and health listeners, bound; one where both have the same address.
struct Listeners {
    admin: SocketAddr,
    health: SocketAddr,
    sockets: Sockets,
}

enum Sockets {
    Shared(TcpListener),
    Separate { admin: TcpListener, health: TcpListener },
}

impl Listeners {
    async fn bind(config: &RuntimeConfig) -> anyhow::Result<Self> {
        if config.admin == config.health {
            let listener = bind("runtime.admin and runtime.health", config.admin).await?;
            let address = listener.local_addr()?;
            return Ok(Self { admin: address, health: address, sockets: Sockets::Shared(listener) });
        }
        let admin = bind("runtime.admin", config.admin).await?;
        let health = bind("runtime.health", config.health).await?;
        Ok(Self {
            admin: admin.local_addr()?,
            health: health.local_addr()?,
            sockets: Sockets::Separate { admin, health },
        })
    }

    /// Serves until the set is dropped.
    fn serve(self, process: &Process) -> JoinSet<()> {
        let mut servers = JoinSet::new();
        let (admin_routes, health_routes) = (admin::admin_routes(process), admin::health_routes(process));
        match self.sockets {
            Sockets::Shared(listener) => {
                servers.spawn(admin::serve(listener, health_routes.fallback_service(admin_routes)));
            }
            Sockets::Separate { admin, health } => {
                servers.spawn(admin::serve(admin, admin_routes));
                servers.spawn(admin::serve(health, health_routes));
            }
        }
        servers
    }
}

async fn bind(field: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| anyhow::anyhow!("{field}: cannot listen on {address}: {error}"))
}

/// Runs main, then the drain. The servers answer until the very end.
async fn supervise<C, F, Fut>(configuration: C, process: Process, listeners: Listeners, main: F) -> anyhow::Result<()>
where
    C: Configuration,
    F: FnOnce(C, Process) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    let starting = process.readiness().require("the program's start");
    let _servers = listeners.serve(&process);
    let handles = process.clone();
    // One future around all of main, so that a panic before its first wait is caught too.
    let main = Box::pin(hold_through_first_poll(starting, async move { main(configuration, handles).await }));
    let mut main = std::pin::pin!(AssertUnwindSafe(main).catch_unwind());
    let drain = process.drain();
    let early = tokio::select! {
        biased;
        outcome = &mut main => Some(outcome),
        () = drain.signaled() => None,
    };
    let deadline = Instant::now() + process.drain_deadline();
    // Main may have ended by itself: then this tells everything that it started to end too.
    process.trigger_drain();
    info!(deadline = ?process.drain_deadline(), "draining");
    let outcome = match early {
        Some(outcome) => outcome,
        None => timeout_at(deadline, main).await.unwrap_or_else(|_| {
            warn!("main did not return before the drain deadline: cutting it off");
            Ok(Ok(()))
        }),
    };
    let trigger = process.drain_trigger();
    if timeout_at(deadline, trigger.released()).await.is_err() {
        warn!(holds = trigger.holds(), "the drain deadline has passed: cutting off what still holds");
    }
    outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("main panicked")))
}

/// Drops `guard` when the future has run up to its first wait: by then it has said itself what readiness depends on.
async fn hold_through_first_poll<T>(guard: crate::ReadinessGuard, future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut guard = Some(guard);
    std::future::poll_fn(move |context| {
        let polled = future.as_mut().poll(context);
        guard.take();
        polled
    })
    .await
}

fn end(runtime: Runtime) {
    runtime.shutdown_timeout(LEFTOVER_TASKS_DEADLINE);
}

/// One line on stderr, whatever the log's form: the log may not exist yet.
fn complain(program: &str, problem: &str) {
    // With stderr gone there is nobody left to tell.
    let _ = writeln!(std::io::stderr(), "{program}: {problem}");
}
