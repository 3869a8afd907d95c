//! Buffers lent for as long as bytes are in them.
//!
//! A direction takes one when it is about to read and gives it back when there is nothing left to read, so the same few buffers, warm in
//! the cache, serve all connections of a thread, an idle connection holds none, and no wake-up allocates. The size adapts
//! by itself: a small message touches only the first bytes, a bulk transfer all 64 KiB.

use std::cell::RefCell;

/// The size of each buffer: larger reads save no CPU time, 16 KiB costs half as much again per byte.
pub(super) const BUFFER_BYTES: usize = 64 * 1024;

/// How many unused buffers a thread keeps; those of a burst beyond are freed.
const SPARE: usize = 16;

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = RefCell::new(Vec::with_capacity(SPARE));
}

/// One buffer of [`BUFFER_BYTES`]; allocated only when more are lent at once on this thread than ever before.
pub(super) fn take() -> Box<[u8]> {
    FREE.try_with(|free| free.try_borrow_mut().ok()?.pop())
        .ok()
        .flatten()
        .unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice())
}

/// Gives a buffer back, to whichever thread runs now.
pub(super) fn give_back(buffer: Box<[u8]>) {
    // During a thread's end the list is gone, and the buffer is freed with it.
    let _ = FREE.try_with(|free| {
        if let Ok(mut free) = free.try_borrow_mut()
            && free.len() < SPARE
        {
            free.push(buffer);
        }
    });
}
