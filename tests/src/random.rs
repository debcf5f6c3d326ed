//! Numbers that no two processes have alike, for workloads that behave at random. It must not know what is decided by
//! them.

use std::hash::{BuildHasher, Hasher, RandomState};

/// A small generator (splitmix64), seeded by the system.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// One of its own for each task of a process.
    pub fn new(task: usize) -> Self {
        let mut seed = RandomState::new().build_hasher();
        seed.write_usize(task);
        Self(seed.finish())
    }

    /// Any number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    /// Whether one of `n` came up.
    pub fn one_of(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}
