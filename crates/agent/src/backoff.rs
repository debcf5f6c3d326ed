//! How long to wait: after failures, longer each time; otherwise about as long as was said, so that many do not do the
//! same thing at the same moment.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    time::Duration,
};

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(30);

/// Counts one object's failures.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The pause after one more failure: between half and all of 0.2 s, 0.4 s, … 30 s.
    pub(crate) fn next(&mut self) -> Duration {
        let most = FIRST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        most.mul_f64(0.5 + random() / 2.0)
    }

    /// Whether nothing has failed since it last succeeded.
    pub(crate) fn is_fresh(&self) -> bool {
        self.failures == 0
    }

    /// It succeeded.
    pub(crate) fn forget(&mut self) {
        self.failures = 0;
    }
}

/// About so long: up to a tenth less.
pub(crate) fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(0.9 + random() / 10.0)
}

/// From 0 to 1. Nothing depends on nobody guessing it.
fn random() -> f64 {
    let bits = RandomState::new().build_hasher().finish() >> 32;
    u32::try_from(bits).map_or(0.5, |bits| f64::from(bits) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::default();
        let mut least = FIRST / 2;
        for _ in 0..50 {
            let pause = backoff.next();
            assert!(pause >= least && pause <= LONGEST, "{pause:?}");
            least = (least * 2).min(LONGEST / 2);
        }
        backoff.forget();
        assert!(backoff.next() <= FIRST);
    }

    #[test]
    fn jitter_only_shortens_and_differs() {
        let pauses: Vec<_> = (0..20).map(|_| jittered(Duration::from_secs(10))).collect();
        assert!(pauses.iter().all(|pause| (Duration::from_secs(9)..=Duration::from_secs(10)).contains(pause)));
        assert!(pauses.iter().any(|pause| pause != &pauses[0]));
    }
}
