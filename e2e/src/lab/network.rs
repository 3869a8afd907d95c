//! Which loopback addresses a lab has: labs that run side by side share none.

use std::fs::{File, OpenOptions};
use std::net::Ipv4Addr;

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};

/// How many networks of one lab's size fit into 127.10.0.0 to 127.249.255.255.
const LABS: u8 = 24;
/// Networks of one lab: the federation's and nine clusters'.
const BLOCKS: u8 = 10;

/// Groups of processes, one for each block: numbers that nobody else has.
const FIRST_GROUP: u32 = 61_000;

/// A reservation: it lasts as long as the process holds the lock.
#[derive(Debug)]
pub struct Network {
    first: u8,
    taken: u8,
    _lock: File,
}

impl Network {
    /// Takes the first network that no other lab of this machine has.
    ///
    /// # Errors
    /// All are taken.
    pub fn reserve() -> anyhow::Result<Self> {
        let directory = std::env::temp_dir().join("isthmus-labs");
        std::fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        for number in 0..LABS {
            let path = directory.join(number.to_string());
            let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
                return Ok(Self { first: 10 + number * BLOCKS, taken: 0, _lock: lock });
            }
        }
        anyhow::bail!("all {LABS} lab networks of this machine are taken")
    }

    /// The next unused 127.x.0.0/16.
    pub fn next_block(&mut self) -> Block {
        let block = Block(self.first + self.taken);
        self.taken += 1;
        block
    }
}

/// A 127.x.0.0/16.
#[derive(Debug, Clone, Copy)]
pub struct Block(u8);

impl Block {
    /// An address in it.
    #[must_use]
    pub fn address(self, third: u8, fourth: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, self.0, third, fourth)
    }

    /// What tells it from others.
    #[must_use]
    pub fn number(self) -> u8 {
        self.0
    }

    /// The group that the cluster's processes run in, by which the kernel tells whose packet one is. `None` where this process
    /// may not choose groups.
    #[must_use]
    pub fn group(self) -> Option<u32> {
        rustix::process::geteuid().is_root().then(|| FIRST_GROUP + u32::from(self.0))
    }

    /// A range for the Services of a Kubernetes cluster of its own: for some 8,000, of the addresses that carriers share.
    #[must_use]
    pub fn services(self) -> String {
        format!("100.{}.{}.0/19", 64 + self.0 / 8, self.0 % 8 * 32)
    }

    /// The whole range.
    #[must_use]
    pub fn range(self) -> String {
        format!("127.{}.0.0/16", self.0)
    }
}
