//! Killing things under load, and watching the load.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::screen::Screen;
use super::table::Row;
use crate::lab::{Lab, wait};
use crate::load::{Impact, Load};

/// How long the load is watched after each fault.
const WATCH: Duration = Duration::from_secs(4);
/// How often the live line is drawn.
const DRAW: Duration = Duration::from_millis(200);
/// How long a repaired part may take to get its load back.
const RETURN: Duration = Duration::from_secs(20);

/// The services under load; both halves have pods in every cluster.
pub const LOADED: [&str; 2] = ["frontend", "productcatalogservice"];

/// A lab under load.
pub struct Faults<'a> {
    /// The lab.
    pub lab: &'a mut Lab,
    /// The load, from east.
    pub load: Load,
    /// Where to tell of it.
    pub screen: &'a mut Screen,
    /// What was found.
    pub rows: Vec<Row>,
}

impl Faults<'_> {
    /// Lets the load run undisturbed; every request must be answered at home.
    ///
    /// # Errors
    /// A request failed or went elsewhere.
    pub async fn warm_up(&mut self) -> anyhow::Result<()> {
        let start = Instant::now();
        self.watch(Duration::from_secs(2), start).await;
        let samples = self.load.since(start);
        let failed: Vec<_> = samples.iter().filter_map(|sample| sample.outcome.as_ref().err()).collect();
        ensure!(failed.is_empty(), "{} of {} requests failed: {:?}", failed.len(), samples.len(), failed.first());
        let away = samples.iter().filter(|sample| sample.cluster() != Some("east")).count();
        ensure!(away == 0, "{away} of {} requests left their cluster", samples.len());
        self.screen.good(&format!("{} requests in 2 s, all answered in their own cluster", samples.len()));
        Ok(())
    }

    /// The pods in the client's own cluster die.
    ///
    /// # Errors
    /// Something could not be killed.
    pub async fn local_endpoints(&mut self) -> anyhow::Result<()> {
        self.screen.chapter("every local endpoint dies (SIGKILL: 3 applications, 3 sidecars)");
        let fault = Instant::now();
        self.lab.cluster("east")?.kill_pods(&LOADED).await?;
        self.observe("local endpoints killed", fault, |instance| !instance.starts_with("east/")).await;
        Ok(())
    }

    /// One of the two gateways that now carry the load dies.
    ///
    /// # Errors
    /// It could not be killed or started again.
    pub async fn gateway(&mut self) -> anyhow::Result<()> {
        self.screen.chapter("one of west's two gateways dies");
        let fault = Instant::now();
        self.lab.cluster("west")?.gateways[0].kill().await?;
        self.observe("one of two gateways killed", fault, |instance| !instance.starts_with("east/")).await;
        let repair = Instant::now();
        let gateway = &mut self.lab.cluster("west")?.gateways[0];
        gateway.restart()?;
        gateway.ready(RETURN).await?;
        self.returned(repair, "the gateway serves again, from its disk state");
        Ok(())
    }

    /// A whole cluster dies: every process of it.
    ///
    /// # Errors
    /// It could not be killed or started again, or gets no load back.
    pub async fn cluster(&mut self) -> anyhow::Result<()> {
        self.screen.chapter("the whole of west dies (control-plane, gateways, sidecars, applications)");
        let fault = Instant::now();
        self.lab.cluster("west")?.kill().await?;
        self.observe("whole cluster killed", fault, |instance| instance.starts_with("north/")).await;
        let repair = Instant::now();
        self.lab.cluster("west")?.restart().await?;
        self.until_served_by("west").await?;
        self.returned(repair, "west is back and has its load again");
        Ok(())
    }

    /// The federation's services die: callers must not notice at all.
    ///
    /// # Errors
    /// They could not be killed or started again.
    pub async fn federation(&mut self) -> anyhow::Result<()> {
        self.screen.chapter("federator and trust-bundle die");
        let fault = Instant::now();
        self.lab.federation.kill().await?;
        self.observe("federator and trust-bundle killed", fault, |instance| !instance.starts_with("east/")).await;
        let repair = Instant::now();
        self.lab.federation.restart().await?;
        let operator = self.lab.cluster("east")?.operator();
        wait::until("east is connected again", RETURN, || async { operator.isthmus(&["status"]).await }).await?;
        self.returned(repair, "every cluster is connected again");
        Ok(())
    }

    /// The local pods come back, and the load comes home.
    ///
    /// # Errors
    /// They do not start, or get no load.
    pub async fn local_endpoints_return(&mut self) -> anyhow::Result<()> {
        self.screen.chapter("the local endpoints come back");
        let repair = Instant::now();
        for service in LOADED {
            self.lab.cluster("east")?.restart_pods(service).await?;
        }
        self.until_served_by("east").await?;
        let time = repair.elapsed();
        if let Some(row) = self.rows.first_mut() {
            row.time_to_return = Some(time);
        }
        self.screen.good(&format!("the load is at home again after {} ms", time.as_millis()));
        Ok(())
    }

    fn returned(&mut self, repair: Instant, text: &str) {
        let time = repair.elapsed();
        if let Some(row) = self.rows.last_mut() {
            row.time_to_return = Some(time);
        }
        self.screen.good(&format!("{text} after {} ms", time.as_millis()));
    }

    /// Watches the load after a fault that began at `fault` and is complete now: every process that was to die is gone.
    async fn observe(&mut self, fault_name: &str, fault: Instant, alive: impl Fn(&str) -> bool) {
        let gone = Instant::now();
        self.watch(WATCH, fault).await;
        let impact = Impact::of(&self.load.ended_since(fault), fault, gone, alive);
        let text = format!(
            "{} requests, {} failed, {} interrupted, moved in {} ms; answered by {}",
            impact.requests,
            impact.failed.len(),
            impact.interrupted,
            impact.time_to_move.as_millis(),
            self.shares(fault),
        );
        match impact.failed.first() {
            None => self.screen.good(&text),
            Some(first) => self.screen.bad(&format!("{text}; the first failure: {first}")),
        }
        self.rows.push(Row { fault: fault_name.to_owned(), impact, time_to_return: None });
    }

    async fn watch(&mut self, time: Duration, since: Instant) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            tokio::time::sleep(DRAW).await;
            let samples = self.load.ended_since(since);
            let failed = samples.iter().filter(|sample| sample.outcome.is_err()).count();
            let text =
                format!("{} requests, {failed} without an answer; answered by {}", samples.len(), self.shares(since));
            self.screen.live(&text);
        }
    }

    /// Which clusters answered in the last second.
    fn shares(&self, since: Instant) -> String {
        let recent = Instant::now().checked_sub(Duration::from_secs(1)).unwrap_or(since);
        let samples = self.load.ended_since(since.max(recent));
        let count = |name| samples.iter().filter(|sample| sample.cluster() == Some(name)).count();
        let total = samples.len().max(1);
        let shares = ["east", "west", "north"].map(|name| format!("{name} {}%", count(name) * 100 / total));
        shares.join(", ")
    }

    async fn until_served_by(&mut self, cluster: &str) -> anyhow::Result<()> {
        let start = Instant::now();
        let load = &self.load;
        wait::until(&format!("{cluster} serves the load"), RETURN, || async move {
            let served = load.since(start).iter().any(|sample| sample.cluster() == Some(cluster));
            ensure!(served, "nothing was answered by {cluster} yet");
            Ok(())
        })
        .await
    }
}
