//! A cluster's network drops everything, and heals.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::{
    blackhole,
    rows::{Injection, Row},
    stage::{self, Plan, timed, until_answered_by, watch},
};
use crate::{
    lab::federation::Storage,
    load::{Kind, Load, PROMPT, Sample},
};

/// How long it lasts: longer than anything may take.
const DARK: Duration = Duration::from_millis(1800);
/// Retries are a share of the requests and retries of the last 10 s: neither a load that has only begun nor the blackhole before
/// may take it away.
const BUDGETED: Duration = Duration::from_secs(11);
/// A call that cannot be repeated, sent by now to a peer that nobody knew to be dead, was under way.
const UNKNOWN: Duration = Duration::from_secs(1);

pub(super) async fn play(plan: &Plan<'_>) -> anyhow::Result<()> {
    if !plan.wants(Row::Blackholed) && !plan.wants(Row::Healed) {
        return Ok(());
    }
    let mut lab = stage::set(plan, "dark", Storage::Embedded).await?;
    let east = lab.cluster("east")?.block();
    blackhole::prepare(east)?;
    // East is south's home: of the same region.
    let load = stage::load(&mut lab, "south", "east").await?;
    let mut fault = Instant::now();
    for number in 0..plan.injections {
        watch(BUDGETED.saturating_sub(fault.elapsed())).await;
        let in_which = || format!("blackhole {}", number + 1);
        fault = Instant::now();
        blackhole::begin(east)?;
        watch(DARK).await;
        plan.report.add(Row::Blackholed, darkened(&load, fault).with_context(in_which)?);
        let healed = Instant::now();
        blackhole::heal()?;
        let back = until_answered_by(&load, "east", healed).await.with_context(in_which)?;
        let samples: Vec<_> = load.since(healed);
        plan.report.add(Row::Healed, timed(back.saturating_duration_since(healed), &samples, |_| false));
    }
    plan.told(Row::Blackholed)?;
    plan.told(Row::Healed)?;
    lab.stop().await;
    Ok(())
}

/// The longer of: how long an idempotent request waited; until when new requests still went there.
fn darkened(load: &Load, fault: Instant) -> anyhow::Result<Injection> {
    let samples = load.ended_since(fault);
    let elsewhere = samples.iter().filter(|sample| sample.cluster() == Some("west")).count();
    ensure!(elsewhere > 0, "nothing has moved within {DARK:?}");
    let waited = |sample: &Sample| sample.ended.saturating_duration_since(sample.started.max(fault));
    let longest = samples.iter().filter(|sample| sample.kind == Kind::Get).map(waited).max().unwrap_or_default();
    let stuck = samples.iter().filter(|sample| sample.outcome.is_err() || waited(sample) > PROMPT);
    let last = stuck.map(|sample| sample.started.saturating_duration_since(fault)).max().unwrap_or_default();
    Ok(timed(longest.max(last), &samples, |sample| sample.started < fault + UNKNOWN))
}
