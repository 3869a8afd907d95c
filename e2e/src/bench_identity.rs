//! From an operator's command to the last byte of a quarantined cluster that an application takes, under load, over many runs.
//!
//! East and west talk to each other over live streams, each a byte every 5 ms both ways, and 50 new streams a second each
//! way. `isthmus quarantine west` is started, which is when the clock starts: the start of the command, the signature and
//! the way to the trust-bundle count. When everything is silent west is released, by command too.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;

use crate::bench::{Goal, conclude};
use crate::lab::binaries::Binaries;
use crate::lab::federation::FederationOperator;
use crate::lab::{READY, wait};
use crate::ticks::Stream;
use crate::ticks::lab::{Settings, TickingLab, byte_of};

/// The longest that a quarantined cluster may still be heard.
const GOAL: Duration = Duration::from_secs(1);
/// Live streams each way.
const STREAMS: usize = 4;
/// No byte for this long: nothing more comes.
const SILENCE: Duration = Duration::from_millis(500);

/// The time from quarantine to the last byte.
#[derive(Parser)]
struct Arguments {
    /// How often it is measured.
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// Exit with 1 when the goal is missed.
    #[arg(long, env = "STRICT", value_parser = clap::builder::FalseyValueParser::new(), default_value = "0", action = clap::ArgAction::Set)]
    strict: bool,
}

/// The program.
///
/// # Errors
/// The lab does not start, or somebody is not cut off, or not taken back.
pub async fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    ensure!(arguments.runs > 0, "--runs: at least 1");
    let directory = tempfile::Builder::new().prefix("isthmus-bench-identity-").tempdir()?;
    let binaries = Binaries::beside_this_program()?;
    let settings = Settings { binaries: Some(&binaries), ..Settings::default() };
    let mut ticking = TickingLab::start(directory.path(), 2, settings).await?;
    let operator = ticking.lab.federation.operator();
    let mut screen = std::io::stdout();
    writeln!(screen, "{:>4} {:>16} {:>20}", "run", "last byte ms", "acknowledged ms")?;
    let mut times = Vec::new();
    for run in 1..=arguments.runs {
        let (last, acknowledged) = Box::pin(quarantine(&mut ticking, &operator)).await?;
        writeln!(screen, "{run:>4} {:>16.1} {:>20.1}", milliseconds(last), milliseconds(acknowledged))?;
        times.push(last);
    }
    ticking.lab.stop().await;
    times.sort_unstable();
    let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
    writeln!(screen, "median {:.1} ms, longest {:.1} ms", milliseconds(median), milliseconds(longest))?;
    let goal = Goal::new("quarantine_last_byte_ms", Some(milliseconds(longest)), milliseconds(GOAL));
    Ok(conclude(&[goal], arguments.strict)?)
}

/// One quarantine and release: when the last byte came, and when the command had every proxy's acknowledgement and ended.
pub(crate) async fn quarantine(
    ticking: &mut TickingLab,
    operator: &FederationOperator,
) -> anyhow::Result<(Duration, Duration)> {
    let mut streams: Vec<(&str, Stream)> = Vec::new();
    for (from, to) in [("west", "east"), ("east", "west")] {
        for _ in 0..STREAMS {
            streams.push((from, ticking.until_stream(from, to).await?));
        }
    }
    let (out, back) = (ticking.calls("west", "east")?, ticking.calls("east", "west")?);
    let loaded = Instant::now();
    wait::until("the load", READY, || async {
        let answered = |calls: &crate::ticks::Calls| calls.since(loaded).iter().filter(|it| it.outcome.is_ok()).count();
        ensure!(answered(&out) > 20 && answered(&back) > 20, "{} and {}", answered(&out), answered(&back));
        Ok(())
    })
    .await?;
    let begun = Instant::now();
    // It ends when every proxy has acknowledged, and fails when one has not.
    operator.isthmus(&["quarantine", "west"]).await?;
    let acknowledged = begun.elapsed();
    let last_heard = || {
        let of_clients = streams.iter().filter(|(from, _)| *from == "east").map(|(_, it)| it.last(byte_of("west")));
        let others =
            [ticking.heard("east", "west"), ticking.heard("west", "east"), out.last_answer(), back.last_answer()];
        of_clients.chain(others).flatten().max()
    };
    wait::until("silence", READY, || async {
        let last = last_heard().context("nothing was ever heard")?;
        ensure!(streams.iter().all(|(_, stream)| stream.ended()), "a stream goes on");
        ensure!(last.elapsed() > SILENCE, "there was a byte {:?} ago", last.elapsed());
        Ok(())
    })
    .await?;
    let last = last_heard().context("nothing was ever heard")?.saturating_duration_since(begun);
    drop((out, back, streams));
    operator.isthmus(&["release", "west"]).await?;
    Ok((last, acknowledged))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
