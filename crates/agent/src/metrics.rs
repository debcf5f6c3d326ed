//! What the agent counts and measures, for Prometheus. Labels are bounded: pools by their declared names, results and
//! errors from fixed sets.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use redis_allocator::{PoolInfo, PoolName};

use crate::discover::CATEGORIES;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabels {
    namespace: String,
    pool: String,
}

impl From<&PoolName> for PoolLabels {
    fn from(name: &PoolName) -> Self {
        Self { namespace: name.namespace().to_owned(), pool: name.name().to_owned() }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    namespace: String,
    pool: String,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CategoryLabels {
    category: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabels {
    namespace: String,
    pool: String,
    source: String,
}

impl SourceLabels {
    fn new(pool: &PoolName, source: &str) -> Self {
        let (namespace, pool) = (pool.namespace().to_owned(), pool.name().to_owned());
        Self { namespace, pool, source: source.to_owned() }
    }

    fn of(self, category: &'static str) -> FailureLabels {
        let Self { namespace, pool, source } = self;
        FailureLabels { namespace, pool, source, category }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabels {
    namespace: String,
    pool: String,
    source: String,
    category: &'static str,
}

type HistogramFamily<L> = Family<L, Histogram, fn() -> Histogram>;

/// The states of a resource, each a value of the label `state`.
const STATES: [&str; 5] = ["free", "leased", "quarantined", "reserved", "draining"];

/// All metrics of one agent. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    registry: Arc<Registry>,
    resources: Family<StateLabels, Gauge>,
    total: Family<PoolLabels, Gauge>,
    bindings: Family<PoolLabels, Gauge>,
    waiting: Family<PoolLabels, Gauge>,
    sessions: Family<PoolLabels, Gauge>,
    grants: Family<PoolLabels, Counter>,
    frees: Family<PoolLabels, Counter>,
    expirations: Family<PoolLabels, Counter>,
    revocations: Family<PoolLabels, Counter>,
    quarantines: Family<PoolLabels, Counter>,
    reconciles: HistogramFamily<ResultLabels>,
    errors: Family<CategoryLabels, Counter>,
    kubernetes_errors: Family<CategoryLabels, Counter>,
    gc: Histogram,
    reclaimed: Family<KindLabels, Counter>,
    probes: HistogramFamily<ResultLabels>,
    probes_running: Gauge,
    discovery_items: Family<SourceLabels, Gauge>,
    discovery_last_success: Family<SourceLabels, Gauge>,
    discovery_failures: Family<FailureLabels, Counter>,
    files_fine: Gauge,
    files_failed: Gauge,
    redis_up: Gauge,
    leader: Gauge,
}

/// From 1 ms to about 30 s.
fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 16))
}

/// What happened to a reconciliation or a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Success,
    Failure,
}

impl Outcome {
    fn label(self) -> ResultLabels {
        ResultLabels { result: if self == Self::Success { "success" } else { "failure" } }
    }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("redis_allocator");
        macro_rules! register {
            ($name:literal, $help:literal, $metric:expr) => {{
                let metric = $metric;
                registry.register($name, $help, metric.clone());
                metric
            }};
            ($name:literal, $help:literal, seconds $metric:expr) => {{
                let metric = $metric;
                registry.register_with_unit($name, $help, Unit::Seconds, metric.clone());
                metric
            }};
        }
        let durations_family = || Family::new_with_constructor(durations as fn() -> Histogram);
        let metrics = Self {
            resources: register!(
                "pool_resources",
                "Resources of a pool by state; a draining one is leased as well",
                Family::default()
            ),
            total: register!("pool_resources_declared", "Declared resources of a pool", Family::default()),
            bindings: register!("pool_bindings", "Soft bindings of a pool", Family::default()),
            waiting: register!("pool_waiting", "Callers in line for resources of a pool", Family::default()),
            sessions: register!("pool_sessions", "Sessions that are alive in a pool", Family::default()),
            grants: register!("pool_grants", "Leases granted", Family::default()),
            frees: register!("pool_frees", "Leases given back by their holders", Family::default()),
            expirations: register!("pool_expirations", "Leases that expired and were reclaimed", Family::default()),
            revocations: register!("pool_revocations", "Leases ended by an operator or a removal", Family::default()),
            quarantines: register!("pool_quarantines", "Times a resource was quarantined", Family::default()),
            reconciles: register!("reconcile_duration", "Time of one reconciliation of a pool", seconds durations_family()),
            errors: register!("reconcile_errors", "Failed reconciliations by kind of error", Family::default()),
            kubernetes_errors: register!(
                "kubernetes_errors",
                "Failed requests to the Kubernetes API by kind of error",
                Family::default()
            ),
            gc: register!("gc_duration", "Time of one collection in a pool", seconds durations()),
            reclaimed: register!("gc_reclaimed", "What collections reclaimed", Family::default()),
            probes: register!("probe_duration", "Time of one probe of a resource", seconds durations_family()),
            probes_running: register!("probes_running", "Probes that run now", Gauge::default()),
            discovery_items: register!("discovery_items", "Resources that a source last brought", Family::default()),
            discovery_last_success: register!(
                "discovery_last_success_timestamp",
                "When a source last brought what could be used, since the epoch",
                seconds Family::default()
            ),
            discovery_failures: register!(
                "discovery_failures",
                "Times that a source brought nothing that could be used, by kind of failure",
                Family::default()
            ),
            files_fine: register!(
                "source_files",
                "Files of manifests, or objects in Kubernetes, that are taken as they stand",
                Gauge::default()
            ),
            files_failed: register!(
                "source_files_failed",
                "Files of manifests, or objects in Kubernetes, with errors",
                Gauge::default()
            ),
            redis_up: register!("redis_up", "Whether Redis answers", Gauge::default()),
            leader: register!("leader", "Whether this agent leads", Gauge::default()),
            registry: Arc::default(),
        };
        // Zeros are shown, so that a rate exists before the first event.
        for outcome in [Outcome::Success, Outcome::Failure] {
            drop(metrics.reconciles.get_or_create(&outcome.label()));
            drop(metrics.probes.get_or_create(&outcome.label()));
        }
        for kind in ["lease", "quarantine", "binding"] {
            drop(metrics.reclaimed.get_or_create(&KindLabels { kind }));
        }
        Self { registry: Arc::new(registry), ..metrics }
    }

    /// All of them, in the `OpenMetrics` text format.
    pub(crate) fn render(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// Takes over what was seen of a pool.
    pub(crate) fn set_pool(&self, info: &PoolInfo) {
        let PoolLabels { namespace, pool } = PoolLabels::from(&info.name);
        let counts = &info.counts;
        let by_state = [counts.free, counts.leased, counts.quarantined, counts.reserved, counts.draining];
        for (state, count) in STATES.into_iter().zip(by_state) {
            let labels = StateLabels { namespace: namespace.clone(), pool: pool.clone(), state };
            self.resources.get_or_create(&labels).set(gauge(count));
        }
        let labels = PoolLabels { namespace, pool };
        self.total.get_or_create(&labels).set(gauge(counts.total));
        self.bindings.get_or_create(&labels).set(gauge(counts.bindings));
        self.waiting.get_or_create(&labels).set(gauge(counts.waiting));
        self.sessions.get_or_create(&labels).set(gauge(counts.sessions));
        let counters = &info.counters;
        for (family, count) in [
            (&self.grants, counters.granted),
            (&self.frees, counters.freed),
            (&self.expirations, counters.expired),
            (&self.revocations, counters.revoked),
            (&self.quarantines, counters.quarantined),
        ] {
            // Redis counts, whichever agent looks. A pool that was made anew begins again, as a counter may.
            let counter = family.get_or_create(&labels);
            let stored: &AtomicU64 = counter.inner();
            stored.store(count, Ordering::Relaxed);
        }
    }

    /// Shows nothing of a pool any more.
    pub(crate) fn remove_pool(&self, name: &PoolName) {
        let labels = PoolLabels::from(name);
        for state in STATES {
            let PoolLabels { namespace, pool } = labels.clone();
            self.resources.remove(&StateLabels { namespace, pool, state });
        }
        for family in [&self.total, &self.bindings, &self.waiting, &self.sessions] {
            family.remove(&labels);
        }
        for family in [&self.grants, &self.frees, &self.expirations, &self.revocations, &self.quarantines] {
            family.remove(&labels);
        }
    }

    pub(crate) fn reconciled(&self, took: Duration, error: Option<&'static str>) {
        let outcome = if error.is_none() { Outcome::Success } else { Outcome::Failure };
        self.reconciles.get_or_create(&outcome.label()).observe(took.as_secs_f64());
        if let Some(category) = error {
            self.errors.get_or_create(&CategoryLabels { category }).inc();
        }
    }

    pub(crate) fn kubernetes_failed(&self, category: &'static str) {
        self.kubernetes_errors.get_or_create(&CategoryLabels { category }).inc();
    }

    pub(crate) fn collected(&self, took: Duration, leases: usize, quarantines: usize, bindings: usize) {
        self.gc.observe(took.as_secs_f64());
        for (kind, count) in [("lease", leases), ("quarantine", quarantines), ("binding", bindings)] {
            self.reclaimed.get_or_create(&KindLabels { kind }).inc_by(count as u64);
        }
    }

    pub(crate) fn probe_started(&self) {
        self.probes_running.inc();
    }

    pub(crate) fn probe_ended(&self, took: Duration, outcome: Outcome) {
        self.probes_running.dec();
        self.probes.get_or_create(&outcome.label()).observe(took.as_secs_f64());
    }

    /// A source has brought what it lists.
    pub(crate) fn discovered(&self, pool: &PoolName, source: &str, items: u64, at: Timestamp) {
        let labels = SourceLabels::new(pool, source);
        self.discovery_items.get_or_create(&labels).set(gauge(items));
        self.discovery_last_success.get_or_create(&labels).set(at.as_second());
    }

    pub(crate) fn discovery_failed(&self, pool: &PoolName, source: &str, category: &'static str) {
        self.discovery_failures.get_or_create(&SourceLabels::new(pool, source).of(category)).inc();
    }

    /// Shows nothing of a source any more.
    pub(crate) fn remove_source(&self, pool: &PoolName, source: &str) {
        let labels = SourceLabels::new(pool, source);
        self.discovery_items.remove(&labels);
        self.discovery_last_success.remove(&labels);
        for category in CATEGORIES {
            self.discovery_failures.remove(&labels.clone().of(category));
        }
    }

    pub(crate) fn set_files(&self, fine: usize, failed: usize) {
        self.files_fine.set(gauge(fine as u64));
        self.files_failed.set(gauge(failed as u64));
    }

    pub(crate) fn set_redis_up(&self, up: bool) {
        self.redis_up.set(i64::from(up));
    }

    pub(crate) fn set_leader(&self, leader: bool) {
        self.leader.set(i64::from(leader));
    }
}

fn gauge(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_shown_before_anything_has_happened() {
        let text = Metrics::new().render().unwrap();
        for line in [
            "redis_allocator_reconcile_duration_seconds_count{result=\"failure\"} 0",
            "redis_allocator_probe_duration_seconds_count{result=\"success\"} 0",
            "redis_allocator_gc_reclaimed_total{kind=\"lease\"} 0",
            "redis_allocator_redis_up 0",
            "redis_allocator_leader 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in:\n{text}");
        }
    }
}
