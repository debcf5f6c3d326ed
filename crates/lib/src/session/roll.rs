//! Which leases a session has, as this client knows it, and what becomes of a comparison with Redis' own list. It asks
//! nobody anything.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use crate::{lease::Grant, pool::SessionLease, time::BootInstant};

/// The leases of one session in one pool, by their tokens.
#[derive(Default)]
pub(super) struct Roll {
    known: HashMap<u64, Known>,
    /// How often `known` has changed.
    changes: u64,
    /// The state of this client and of Redis in which the two were last compared: nothing can be amiss while both stay.
    compared: Option<(u64, u64)>,
    /// What Redis lists and nobody here knows, and since when: a grant whose reply is on its way, or was lost.
    strays: HashMap<u64, BootInstant>,
}

enum Known {
    Held(Weak<Grant>),
    /// Somebody else goes on with it.
    Detached,
}

/// What a comparison found.
pub(super) struct Difference {
    /// Held here, and no more in Redis.
    pub(super) ended: Vec<Arc<Grant>>,
    /// Held in Redis for long, and by nobody here.
    pub(super) stray: Vec<SessionLease>,
}

impl Roll {
    pub(super) fn enter(&mut self, token: u64, grant: &Arc<Grant>) {
        self.changes += 1;
        self.known.insert(token, Known::Held(Arc::downgrade(grant)));
    }

    /// It is being given back.
    pub(super) fn leave(&mut self, token: u64) {
        if self.known.remove(&token).is_some() {
            self.changes += 1;
        }
    }

    pub(super) fn detach(&mut self, token: u64) {
        if let Some(known) = self.known.get_mut(&token) {
            *known = Known::Detached;
        }
    }

    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// Redis is not the one that was compared with.
    pub(super) fn distrust(&mut self) {
        self.compared = None;
    }

    /// Whether the two must be compared, if Redis counts so many leases and answers a question that was asked when
    /// `known` had changed so often.
    pub(super) fn is_doubtful(&self, changes: u64, count: u64) -> bool {
        self.compared != Some((changes, count)) || !self.strays.is_empty()
    }

    /// All that must be on a list which Redis makes from now on.
    pub(super) fn tokens(&self) -> Vec<u64> {
        self.known.keys().copied().collect()
    }

    /// Compares with Redis' list. `expected`: the tokens that were known before it was asked for; `state`: for
    /// [`is_doubtful`](Self::is_doubtful); `patience`: how long a grant may be on its way.
    pub(super) fn compare(
        &mut self,
        expected: &[u64],
        listed: Vec<SessionLease>,
        state: (u64, u64),
        patience: Duration,
        now: BootInstant,
    ) -> Difference {
        let listed: HashMap<u64, SessionLease> = listed.into_iter().map(|lease| (lease.token, lease)).collect();
        let mut ended = Vec::new();
        for token in expected.iter().filter(|token| !listed.contains_key(token)) {
            // What was given back meanwhile is not known any more.
            if let Some(known) = self.known.remove(token) {
                self.changes += 1;
                ended.extend(match known {
                    Known::Held(grant) => grant.upgrade(),
                    Known::Detached => None,
                });
            }
        }
        let (mut strays, mut stray) = (HashMap::new(), Vec::new());
        for (token, lease) in listed {
            if !self.known.contains_key(&token) {
                let since = self.strays.get(&token).copied().unwrap_or(now);
                strays.insert(token, since);
                if since + patience <= now {
                    stray.push(lease);
                }
            }
        }
        self.strays = strays;
        self.compared = Some(state);
        Difference { ended, stray }
    }

    /// Takes all that are held: the session is over.
    pub(super) fn take(&mut self) -> Vec<Arc<Grant>> {
        self.changes += 1;
        let held = |known| match known {
            Known::Held(grant) => grant.upgrade(),
            Known::Detached => None,
        };
        std::mem::take(&mut self.known).into_values().filter_map(held).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(90);

    fn listed(tokens: &[u64]) -> Vec<SessionLease> {
        tokens.iter().map(|&token| SessionLease { id: format!("r{token}"), token }).collect()
    }

    /// A roll whose grants are gone already: only their tokens matter here.
    fn roll(tokens: &[u64]) -> Roll {
        let mut roll = Roll::default();
        for &token in tokens {
            roll.changes += 1;
            roll.known.insert(token, Known::Held(Weak::new()));
        }
        roll
    }

    /// Compares at a moment, and returns the tokens of the strays.
    fn compare(roll: &mut Roll, on_redis: &[u64], now: BootInstant) -> Vec<u64> {
        let state = (roll.changes(), on_redis.len() as u64);
        let expected = roll.tokens();
        let difference = roll.compare(&expected, listed(on_redis), state, PATIENCE, now);
        let mut stray: Vec<_> = difference.stray.into_iter().map(|lease| lease.token).collect();
        stray.sort_unstable();
        stray
    }

    #[test]
    fn while_neither_side_changes_nothing_is_doubtful() {
        let mut roll = roll(&[1, 2]);
        assert!(roll.is_doubtful(2, 2), "never compared");
        assert!(compare(&mut roll, &[1, 2], BootInstant::now()).is_empty());
        assert!(!roll.is_doubtful(2, 2));
        assert!(roll.is_doubtful(2, 1), "Redis ended one");
        roll.leave(1);
        assert!(roll.is_doubtful(roll.changes(), 2), "one is given back here");
        assert!(compare(&mut roll, &[2], BootInstant::now()).is_empty());
        roll.distrust();
        assert!(roll.is_doubtful(roll.changes(), 1));
    }

    #[test]
    fn what_redis_does_not_list_is_known_no_more() {
        let mut roll = roll(&[1, 2, 3]);
        compare(&mut roll, &[1, 3], BootInstant::now());
        let mut left = roll.tokens();
        left.sort_unstable();
        assert_eq!(left, [1, 3]);
    }

    #[test]
    fn what_was_granted_after_the_question_is_not_missed() {
        let mut roll = roll(&[1]);
        let expected = roll.tokens();
        roll.known.insert(2, Known::Held(Weak::new()));
        roll.compare(&expected, listed(&[1]), (1, 1), PATIENCE, BootInstant::now());
        assert!(roll.known.contains_key(&2));
    }

    #[test]
    fn a_stray_is_one_after_a_while_and_if_nobody_turns_up() {
        let mut roll = roll(&[1]);
        let begin = BootInstant::now();
        assert!(compare(&mut roll, &[1, 7, 8], begin).is_empty());
        assert!(roll.is_doubtful(roll.changes(), 3), "looked at again until it is clear whose they are");
        roll.known.insert(8, Known::Held(Weak::new()));
        assert!(compare(&mut roll, &[1, 7, 8], begin + PATIENCE / 2).is_empty());
        assert_eq!(compare(&mut roll, &[1, 7, 8], begin + PATIENCE), [7]);
        assert!(compare(&mut roll, &[1, 8], begin + PATIENCE * 2).is_empty());
        assert!(!roll.is_doubtful(roll.changes(), 2));
    }

    #[test]
    fn what_was_detached_is_nobodys_stray() {
        let mut roll = roll(&[1]);
        roll.detach(1);
        let begin = BootInstant::now();
        compare(&mut roll, &[1], begin);
        assert!(compare(&mut roll, &[1], begin + PATIENCE * 2).is_empty());
    }
}
