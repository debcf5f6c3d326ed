//! From single results to verdicts: how many in a row it takes, and when the prober doubts itself rather than the pool.
//! Pure; only what is not well is remembered, so that a large healthy pool costs nothing.

use std::collections::HashMap;

use redis_allocator::ResourceKey;
use redis_allocator_crd::HealthCheck;

use crate::reconcile::conditions::Probing;

/// How many results make a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Thresholds {
    failures: u32,
    successes: u32,
    max_unhealthy_percent: u8,
}

impl From<&HealthCheck> for Thresholds {
    fn from(check: &HealthCheck) -> Self {
        Self {
            failures: u32::try_from(check.failure_threshold).unwrap_or(1),
            successes: u32::try_from(check.success_threshold).unwrap_or(1),
            max_unhealthy_percent: u8::try_from(check.max_unhealthy_percent).unwrap_or(100),
        }
    }
}

/// What is to be done about a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    Quarantine,
    Release,
}

/// What was seen of a resource that is not well.
#[derive(Debug, Clone, Copy, Default)]
struct Record {
    /// In a row, up to now.
    failures: u32,
    successes: u32,
    /// Whether it is in quarantine because of this.
    quarantined: bool,
    /// The round in which it was seen last.
    round: u64,
}

/// All that was seen of a pool.
#[derive(Debug)]
pub(super) struct Verdicts {
    thresholds: Thresholds,
    records: HashMap<ResourceKey, Record>,
    round: u64,
    total: u64,
    /// Seen in this round so far.
    seen: u64,
}

impl Verdicts {
    pub(super) fn new(thresholds: Thresholds) -> Self {
        Self { thresholds, records: HashMap::new(), round: 0, total: 0, seen: 0 }
    }

    /// A round begins, of so many resources. What was not seen in the last one is gone.
    pub(super) fn begin_round(&mut self, total: u64) {
        let last = self.round;
        self.records.retain(|_, record| record.round == last);
        self.round += 1;
        self.total = total;
        self.seen = 0;
    }

    /// A resource is there, and a failed probe does or does not keep it in quarantine. An operator may have ended that.
    pub(super) fn see(&mut self, key: &ResourceKey, quarantined: bool) {
        // Some may have come since they were counted: all of them, in the first round of a new pool.
        self.seen += 1;
        self.total = self.total.max(self.seen);
        if let Some(record) = self.records.get_mut(key) {
            record.round = self.round;
            record.quarantined = quarantined;
        } else if quarantined {
            let record =
                Record { failures: self.thresholds.failures, quarantined, round: self.round, ..Record::default() };
            self.records.insert(key.clone(), record);
        }
    }

    pub(super) fn succeeded(&mut self, key: &ResourceKey) -> Action {
        let Some(record) = self.records.get_mut(key) else { return Action::Nothing };
        record.failures = 0;
        record.successes += 1;
        if !record.quarantined {
            self.records.remove(key);
            return Action::Nothing;
        }
        if record.successes >= self.thresholds.successes { Action::Release } else { Action::Nothing }
    }

    pub(super) fn failed(&mut self, key: &ResourceKey) -> Action {
        let round = self.round;
        let record = self.records.entry(key.clone()).or_insert(Record { round, ..Record::default() });
        record.successes = 0;
        record.failures = record.failures.saturating_add(1);
        if record.quarantined || record.failures < self.thresholds.failures || self.probing() != Probing::Fine {
            return Action::Nothing;
        }
        Action::Quarantine
    }

    /// An action was carried out.
    pub(super) fn done(&mut self, key: &ResourceKey, action: &Action) {
        match action {
            Action::Nothing => {}
            Action::Quarantine => {
                if let Some(record) = self.records.get_mut(key) {
                    record.quarantined = true;
                }
            }
            Action::Release => drop(self.records.remove(key)),
        }
    }

    /// Whether it is credible that so many fail. Each counts from its first failure on, long before it is quarantined:
    /// where everything fails at once, that is seen before the first verdict.
    pub(super) fn probing(&self) -> Probing {
        let is_failing = |record: &&Record| record.quarantined || record.failures > 0;
        let failing = self.records.values().filter(is_failing).count() as u64;
        let allowed_percent = self.thresholds.max_unhealthy_percent;
        if failing * 100 > self.total * u64::from(allowed_percent) {
            return Probing::Suspected { failing, total: self.total, allowed_percent };
        }
        Probing::Fine
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(index: u32) -> ResourceKey {
        format!("r{index}").parse().unwrap()
    }

    fn verdicts(failures: u32, successes: u32, max_unhealthy_percent: u8, total: u64) -> Verdicts {
        let mut verdicts = Verdicts::new(Thresholds { failures, successes, max_unhealthy_percent });
        verdicts.begin_round(total);
        verdicts
    }

    /// What a probe's failure leads to when every action succeeds.
    fn fail(verdicts: &mut Verdicts, index: u32) -> Action {
        let action = verdicts.failed(&key(index));
        verdicts.done(&key(index), &action);
        action
    }

    fn succeed(verdicts: &mut Verdicts, index: u32) -> Action {
        let action = verdicts.succeeded(&key(index));
        verdicts.done(&key(index), &action);
        action
    }

    #[test]
    fn so_many_failures_in_a_row_quarantine_and_so_many_successes_release() {
        let mut verdicts = verdicts(3, 2, 40, 10);
        let steps = [
            (false, Action::Nothing),
            (false, Action::Nothing),
            (true, Action::Nothing),
            (false, Action::Nothing),
            (false, Action::Nothing),
            (false, Action::Quarantine),
            (false, Action::Nothing),
            (true, Action::Nothing),
            (false, Action::Nothing),
            (true, Action::Nothing),
            (true, Action::Release),
            (true, Action::Nothing),
        ];
        for (step, (success, expected)) in steps.into_iter().enumerate() {
            let action = if success { succeed(&mut verdicts, 0) } else { fail(&mut verdicts, 0) };
            assert_eq!(action, expected, "step {step}");
        }
        assert!(verdicts.records.is_empty(), "what is well is not remembered");
    }

    #[test]
    fn resources_that_came_after_they_were_counted_count() {
        let mut verdicts = verdicts(3, 1, 40, 0);
        for index in 0..10 {
            let key = ResourceKey::new(format!("r{index}")).unwrap();
            verdicts.see(&key, false);
        }
        fail(&mut verdicts, 0);
        assert_eq!(verdicts.probing(), Probing::Fine, "one of ten");
    }

    #[test]
    fn beyond_the_percentage_nothing_more_is_quarantined_until_fewer_fail() {
        let mut verdicts = verdicts(1, 1, 40, 10);
        let actions: Vec<_> = (0..10).map(|index| fail(&mut verdicts, index)).collect();
        assert!(actions[..4].iter().all(|action| *action == Action::Quarantine), "{actions:?}");
        assert!(actions[4..].iter().all(|action| *action == Action::Nothing), "{actions:?}");
        assert_eq!(verdicts.probing(), Probing::Suspected { failing: 10, total: 10, allowed_percent: 40 });
        for index in 1..10 {
            succeed(&mut verdicts, index);
        }
        assert_eq!(verdicts.probing(), Probing::Fine);
        assert_eq!(fail(&mut verdicts, 5), Action::Quarantine);
    }

    #[test]
    fn where_everything_fails_at_once_nothing_is_quarantined() {
        let mut verdicts = verdicts(2, 1, 40, 3);
        for _round in 0..5 {
            for index in 0..3 {
                assert_eq!(fail(&mut verdicts, index), Action::Nothing);
            }
        }
    }

    #[test]
    fn a_pool_of_one_is_never_emptied_by_a_prober_that_may_be_wrong() {
        let mut one = verdicts(1, 1, 40, 1);
        assert_eq!(fail(&mut one, 0), Action::Nothing);
        let mut all = verdicts(1, 1, 100, 1);
        assert_eq!(fail(&mut all, 0), Action::Quarantine);
    }

    #[test]
    fn a_new_prober_goes_on_with_what_the_last_one_quarantined() {
        let mut verdicts = verdicts(3, 1, 40, 10);
        verdicts.see(&key(0), true);
        assert_eq!(fail(&mut verdicts, 0), Action::Nothing);
        assert_eq!(succeed(&mut verdicts, 0), Action::Release);
    }

    #[test]
    fn what_an_operator_released_is_quarantined_again_by_its_next_failure() {
        let mut verdicts = verdicts(3, 1, 40, 10);
        verdicts.see(&key(0), true);
        verdicts.see(&key(0), false);
        assert_eq!(fail(&mut verdicts, 0), Action::Quarantine);
    }

    #[test]
    fn what_left_the_pool_is_forgotten() {
        let mut verdicts = verdicts(1, 1, 40, 3);
        fail(&mut verdicts, 0);
        verdicts.begin_round(2);
        verdicts.see(&key(1), false);
        verdicts.begin_round(2);
        assert_eq!(verdicts.probing(), Probing::Fine);
    }
}
