//! The PROXY protocol header: nothing panics, and not a byte after it is read.

#![no_main]

use std::{
    pin::pin,
    task::{Context, Poll, Waker},
};

use libfuzzer_sys::fuzz_target;
use relay::{MAX_PROXY_HEADER, read_proxy_header};

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    // Bytes in memory are never awaited.
    let Poll::Ready(outcome) = pin!(read_proxy_header(&mut rest)).poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("it waits for what is there");
    };
    let read = bytes.len() - rest.len();
    assert!(read <= MAX_PROXY_HEADER);
    if outcome.is_ok() {
        assert_eq!(read, 16 + usize::from(u16::from_be_bytes([bytes[14], bytes[15]])));
    }
});
