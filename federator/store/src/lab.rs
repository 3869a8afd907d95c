//! An etcd cluster of real processes on loopback, with TLS and client certificates, to break things with.
//!
//! ```text
//!   store ── TLS ──► member 127.x.y.1:2379      members know each other as 192.0.2.1 …, where nothing is:
//!                       │      ▲                they get there through a proxy each, which knows who speaks to
//!                       ▼      │                whom, and can hold bytes back (a cut) or delay them
//!                    proxy 127.x.y.1:2381 ──► member 127.x.y.2:2380
//! ```
//!
//! Processes end with the cluster. The programs `etcd` and `etcdctl` must be installed.

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{EtcdConfig, EtcdStore};

mod certificates;
mod network;

use network::Network;

/// How many members there are.
pub const MEMBERS: usize = 3;
/// How long a cluster may take to answer after a start.
const READY: Duration = Duration::from_secs(60);
/// How often what is waited for is looked at.
const POLL: Duration = Duration::from_millis(100);

/// What a cluster is started with besides the defaults.
#[derive(Debug, Clone, Default)]
pub struct LabOptions {
    /// `--quota-backend-bytes`.
    pub quota_bytes: Option<u64>,
}

/// Three members. Dropping it ends their processes and removes their files.
#[derive(Debug)]
pub struct EtcdCluster {
    directory: TempDir,
    network: Network,
    options: LabOptions,
    members: Vec<Member>,
    /// `--initial-cluster-token`: a restore makes another one.
    token: String,
}

#[derive(Debug)]
struct Member {
    /// Locked for a look only.
    process: Mutex<Option<Child>>,
    data: PathBuf,
}

impl EtcdCluster {
    /// Starts the members and waits until they answer.
    ///
    /// # Errors
    ///
    /// When `etcd` is not installed, or does not come up.
    pub async fn start(options: LabOptions) -> io::Result<Self> {
        // Asked here, since `setpriv` starts it later.
        Command::new("etcd").arg("--version").stdout(Stdio::null()).status().map_err(explain)?;
        let directory = tempfile::tempdir()?;
        // A block of its own below 127.0.0.0/8, so that well-known ports are free.
        let block = [127, rand::random_range(64..250), rand::random_range(1..250)];
        let network = Network::start(block).await?;
        certificates::write(directory.path(), &network)?;
        let members = (0..MEMBERS)
            .map(|n| Member { process: Mutex::default(), data: directory.path().join(format!("member-{n}")) });
        let members = members.collect();
        let cluster = Self { directory, network, options, members, token: "lab".to_owned() };
        for member in 0..MEMBERS {
            cluster.spawn(member)?;
        }
        cluster.ready().await?;
        Ok(cluster)
    }

    /// The addresses of the members, as a store takes them.
    pub fn config(&self, prefix: &str) -> EtcdConfig {
        EtcdConfig {
            endpoints: (0..MEMBERS).map(|member| self.endpoint(member)).collect(),
            ca_file: self.file("ca.crt"),
            certificate_file: self.file("client.crt"),
            key_file: self.file("client.key"),
            prefix: prefix.to_owned(),
        }
    }

    /// A member's client address.
    pub fn endpoint(&self, member: usize) -> String {
        format!("https://{}:2379", self.network.address(member))
    }

    /// Kills a member.
    ///
    /// # Errors
    ///
    /// When the process cannot be waited for.
    pub fn kill(&self, member: usize) -> io::Result<()> {
        let process = self.process(member).take();
        if let Some(mut process) = process {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }

    /// Starts a killed member again on its files; does not wait for it.
    ///
    /// # Errors
    ///
    /// When the process cannot be started.
    pub fn restart(&self, member: usize) -> io::Result<()> {
        self.kill(member)?;
        self.spawn(member)
    }

    /// Stops a member in its tracks (SIGSTOP): its connections stay open and silent.
    ///
    /// # Errors
    ///
    /// When there is no such process.
    pub fn pause(&self, member: usize) -> io::Result<()> {
        self.signal(member, Signal::STOP)
    }

    /// Lets a paused member go on.
    ///
    /// # Errors
    ///
    /// When there is no such process.
    pub fn resume(&self, member: usize) -> io::Result<()> {
        self.signal(member, Signal::CONT)
    }

    /// Holds back everything between a member and the others. Clients reach it as before.
    pub fn cut(&self, member: usize) {
        self.network.cut(member);
    }

    /// Lets through again what was held back, and what follows.
    pub fn heal(&self) {
        self.network.heal();
    }

    /// Delays everything between a member and the others.
    pub fn slow(&self, member: usize, delay: Duration) {
        self.network.slow(member, delay);
    }

    /// The member that leads.
    ///
    /// # Errors
    ///
    /// When no member says so in time.
    pub async fn leader(&self) -> io::Result<usize> {
        let deadline = Instant::now() + READY;
        while Instant::now() < deadline {
            for member in (0..MEMBERS).filter(|member| self.process(*member).is_some()) {
                let endpoint = self.endpoint(member);
                let status = self
                    .etcdctl_at(&endpoint, &["endpoint", "status", "--write-out=fields", "--command-timeout=1s"])
                    .await?;
                let text = String::from_utf8_lossy(&status.stdout);
                let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned));
                let (own, leader) = (field("\"MemberID\" : "), field("\"Leader\" : "));
                if own.is_some() && own == leader {
                    return Ok(member);
                }
            }
            tokio::time::sleep(POLL).await;
        }
        Err(io::Error::other("no etcd member says that it leads"))
    }

    /// Waits until a member answers, which it does only with a leader.
    ///
    /// # Errors
    ///
    /// When it does not in time.
    pub async fn answering(&self, member: usize) -> io::Result<()> {
        let (endpoint, deadline) = (self.endpoint(member), Instant::now() + READY);
        while Instant::now() < deadline {
            if self.etcdctl_at(&endpoint, &["endpoint", "health", "--command-timeout=1s"]).await?.status.success() {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
        Err(io::Error::other(format!("member {member} does not answer: {}", self.logs())))
    }

    /// How many watches a member serves, by its own count.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub async fn watchers(&self, member: usize) -> io::Result<usize> {
        let address = (self.network.address(member), METRICS_PORT);
        let text = network::read_http(address.into(), "/metrics").await?;
        let count = text.lines().find_map(|line| line.strip_prefix("etcd_debugging_mvcc_watcher_total "));
        let count = count.and_then(|count| count.trim().parse::<f64>().ok());
        count.map(|count| count as usize).ok_or_else(|| io::Error::other("the member does not count its watches"))
    }

    /// Runs `etcdctl` against all members.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub async fn etcdctl(&self, arguments: &[&str]) -> io::Result<Output> {
        let endpoints: Vec<String> = (0..MEMBERS).map(|member| self.endpoint(member)).collect();
        self.etcdctl_at(&endpoints.join(","), arguments).await
    }

    /// Writes a snapshot: `etcdctl snapshot save`.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub async fn save(&self, file: &Path) -> io::Result<()> {
        let saved = self.etcdctl_at(&self.endpoint(0), &["snapshot", "save", &file.display().to_string()]).await?;
        succeeded("etcdctl snapshot save", &saved)
    }

    /// Ends all members and starts them on the snapshot: `etcdctl snapshot restore`, with another
    /// `--initial-cluster-token` when `new_token` is set.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub async fn restore(&mut self, file: &Path, new_token: bool) -> io::Result<()> {
        for member in 0..MEMBERS {
            self.kill(member)?;
        }
        if new_token {
            self.token = format!("restored-{:08x}", rand::random::<u32>());
        }
        for member in 0..MEMBERS {
            let data = self.directory.path().join(format!("restored-{member}-{:08x}", rand::random::<u32>()));
            let restored = Command::new("etcdctl")
                .env_clear()
                .env("ETCDCTL_API", "3")
                .args(["snapshot", "restore"])
                .arg(file)
                .args(self.cluster_arguments(member))
                .arg("--data-dir")
                .arg(&data)
                .output()?;
            succeeded("etcdctl snapshot restore", &restored)?;
            self.members[member].data = data;
        }
        for member in 0..MEMBERS {
            self.spawn(member)?;
        }
        self.ready().await
    }

    async fn etcdctl_at(&self, endpoints: &str, arguments: &[&str]) -> io::Result<Output> {
        let mut command = tokio::process::Command::new("etcdctl");
        command.env_clear().env("ETCDCTL_API", "3").arg("--endpoints").arg(endpoints);
        command.arg("--cacert").arg(self.file("ca.crt"));
        command.arg("--cert").arg(self.file("client.crt")).arg("--key").arg(self.file("client.key"));
        command.args(arguments).kill_on_drop(true).output().await.map_err(explain)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn signal(&self, member: usize, signal: Signal) -> io::Result<()> {
        let process = self.process(member).as_ref().map(Child::id);
        let pid = process.and_then(|id| Pid::from_raw(id.cast_signed()));
        kill_process(pid.ok_or_else(|| io::Error::other("the member does not run"))?, signal)?;
        Ok(())
    }

    fn process(&self, member: usize) -> MutexGuard<'_, Option<Child>> {
        self.members[member].process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cluster_arguments(&self, member: usize) -> Vec<String> {
        let peers: Vec<String> = (0..MEMBERS).map(|n| format!("m{n}={}", network::peer_url(n))).collect();
        vec![
            format!("--name=m{member}"),
            format!("--initial-cluster={}", peers.join(",")),
            format!("--initial-cluster-token={}", self.token),
            format!("--initial-advertise-peer-urls={}", network::peer_url(member)),
        ]
    }

    fn spawn(&self, member: usize) -> io::Result<()> {
        let address = self.network.address(member);
        let log = std::fs::File::options().create(true).append(true).open(self.file(&format!("m{member}.log")))?;
        let (key, certificate) = (self.file("member.key"), self.file("member.crt"));
        let authority = self.file("ca.crt");
        // Should the lab be killed, the kernel ends its members.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "SIGKILL", "--", "etcd"]);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HTTPS_PROXY", format!("http://{}", self.network.proxy(member)));
        command.args(self.cluster_arguments(member)).arg("--data-dir").arg(&self.members[member].data);
        command.arg(format!("--listen-peer-urls=https://{address}:2380"));
        command.arg(format!("--listen-client-urls=https://{address}:2379"));
        command.arg(format!("--advertise-client-urls=https://{address}:2379"));
        command.arg(format!("--listen-metrics-urls=http://{address}:{METRICS_PORT}"));
        for side in ["", "peer-"] {
            command.arg(format!("--{side}cert-file={}", certificate.display()));
            command.arg(format!("--{side}key-file={}", key.display()));
            command.arg(format!("--{side}trusted-ca-file={}", authority.display()));
            command.arg(format!("--{side}client-cert-auth"));
        }
        command.args(["--logger=zap", "--log-level=warn"]);
        command.args(self.options.quota_bytes.map(|bytes| format!("--quota-backend-bytes={bytes}")));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        *self.process(member) = Some(command.spawn().map_err(explain)?);
        Ok(())
    }

    async fn ready(&self) -> io::Result<()> {
        let opened = tokio::time::timeout(READY, EtcdStore::open(self.config("/lab/"))).await;
        let late = |_| io::Error::other(format!("etcd does not answer: {}", self.logs()));
        opened.map_err(late)?.map_err(io::Error::other)?;
        Ok(())
    }

    /// The ends of the members' logs.
    fn logs(&self) -> String {
        let end = |member| {
            let text = std::fs::read_to_string(self.file(&format!("m{member}.log"))).unwrap_or_default();
            text.lines().rev().take(3).collect::<Vec<_>>().join("\n")
        };
        (0..MEMBERS).map(end).collect::<Vec<_>>().join("\n")
    }
}

/// Where each member's metrics are, without TLS.
const METRICS_PORT: u16 = 2382;

impl Drop for EtcdCluster {
    fn drop(&mut self) {
        for member in 0..MEMBERS {
            let _ = self.kill(member);
        }
    }
}

fn succeeded(what: &str, output: &Output) -> io::Result<()> {
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{what}: {}", String::from_utf8_lossy(&output.stderr))))
}

fn explain(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::NotFound => io::Error::new(error.kind(), "etcd or etcdctl is not installed: run `make tools`"),
        _ => error,
    }
}

/// The address of a member within a block.
fn address_in(block: [u8; 3], member: usize) -> Ipv4Addr {
    Ipv4Addr::new(block[0], block[1], block[2], u8::try_from(member + 1).unwrap_or(u8::MAX))
}
