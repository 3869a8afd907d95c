//! Pipes lent for as long as bytes are in them, like the buffers: what `splice` moves, no process has to copy.

use std::{
    cell::RefCell,
    io,
    os::fd::OwnedFd,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::{io::Interest, net::TcpStream};

/// The size of each pipe. With the kernel's 64 KiB a splice moves too little to be worth its two system calls.
const PIPE_BYTES: usize = 1 << 20;

/// How many unused pipes a thread keeps.
const SPARE: usize = 8;

thread_local! {
    static FREE: RefCell<Vec<Pipe>> = RefCell::new(Vec::with_capacity(SPARE));
}

/// The pipes of this process.
static EXISTING: AtomicUsize = AtomicUsize::new(0);

/// The pipes of this process, lent and spare, each of 1 MiB: at most [`RelayOptions::max_pipes`](super::RelayOptions::max_pipes).
pub fn pipes() -> usize {
    EXISTING.load(Relaxed)
}

/// One pipe, and how many bytes are in it.
pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    held: usize,
}

impl Pipe {
    /// An empty pipe; `None` when there may be no more of them, or the kernel gives none of this size.
    pub(super) fn take(max_pipes: usize) -> Option<Self> {
        let spare = FREE.try_with(|free| free.try_borrow_mut().ok()?.pop()).ok().flatten();
        spare.or_else(|| Self::create(max_pipes))
    }

    fn create(max_pipes: usize) -> Option<Self> {
        if EXISTING.fetch_add(1, Relaxed) >= max_pipes {
            EXISTING.fetch_sub(1, Relaxed);
            return None;
        }
        let made = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
            .and_then(|(read, write)| fcntl_setpipe_size(&write, PIPE_BYTES).map(|_| (read, write)));
        match made {
            Ok((read, write)) => Some(Self { read, write, held: 0 }),
            Err(_) => {
                EXISTING.fetch_sub(1, Relaxed);
                None
            }
        }
    }

    /// Bytes in it.
    pub(super) const fn held(&self) -> usize {
        self.held
    }

    /// Takes what a socket has received into the empty pipe; 0 at the socket's end.
    pub(super) fn fill(&mut self, from: &TcpStream) -> io::Result<usize> {
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        let filled =
            from.try_io(Interest::READABLE, || Ok(splice(from, None, &self.write, None, PIPE_BYTES, flags)?))?;
        self.held += filled;
        Ok(filled)
    }

    /// Sends what is in the pipe; how many bytes that were.
    pub(super) fn empty(&mut self, to: &TcpStream) -> io::Result<usize> {
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        let sent = to.try_io(Interest::WRITABLE, || Ok(splice(&self.read, None, to, None, self.held, flags)?))?;
        self.held -= sent;
        Ok(sent)
    }

    /// Gives it back to whichever thread runs now, unless bytes are in it.
    pub(super) fn give_back(self) {
        if self.held > 0 {
            return;
        }
        // During a thread's end the list is gone, and the pipe is closed with it.
        let _ = FREE.try_with(|free| {
            if let Ok(mut free) = free.try_borrow_mut()
                && free.len() < SPARE
            {
                free.push(self);
            }
        });
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        EXISTING.fetch_sub(1, Relaxed);
    }
}
