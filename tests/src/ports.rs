//! Port numbers for servers that must keep theirs over restarts. It must not know what listens on them.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    net::{Ipv4Addr, TcpListener},
    sync::{
        LazyLock,
        atomic::{AtomicU16, Ordering},
    },
};

use anyhow::{Result, bail};

/// Below the range that outgoing connections are given (Linux: from 32768, others higher), so that none of them takes
/// the port of a server that is down for a moment.
const FIRST: u16 = 12_000;
const COUNT: u16 = 20_000;

/// Starts somewhere else in each process, so that test processes that run at the same time rarely meet.
static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| {
    let random = RandomState::new().build_hasher().finish();
    AtomicU16::new(u16::try_from(random % u64::from(COUNT)).unwrap_or_default())
});

/// A port on 127.0.0.1 that nothing listens on, and that this process has not handed out lately.
pub(crate) fn free() -> Result<u16> {
    for _ in 0..COUNT {
        let port = FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port on 127.0.0.1 from {FIRST} to {}", FIRST + COUNT - 1)
}
