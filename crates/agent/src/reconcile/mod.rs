//! Brings Redis to what is declared and keeps it there, blind to where the declaration came from.
//!
//! | file | idea |
//! |---|---|
//! | [`supervise`] | one worker for each pool, for as long as this agent leads |
//! | [`worker`] | when a pool is reconciled, collected and looked at |
//! | [`apply`] | one reconciliation of a declared pool, step by step |
//! | [`delete`] | the same for one that is not declared any more |
//! | [`plan`] | what a reconciliation of everything would do now |
//! | [`sources`] | who follows which source of a pool |
//! | [`conditions`] | what all that means to people |

mod apply;
pub(crate) mod conditions;
mod delete;
pub(crate) mod plan;
mod sources;
mod supervise;
mod worker;

use std::sync::Arc;

use redis_allocator::Client;
use tokio::sync::{Semaphore, watch};

pub(crate) use self::supervise::lead;
use crate::{board::Board, discover::Discoverer, metrics::Metrics, probe::Prober, state::Memory};

/// Namespace of the pools that agents use among themselves; nobody declares pools there.
pub(crate) const SYSTEM_NAMESPACE: &str = "redis-allocator-system";

/// What every worker needs.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) client: Client,
    /// The identity under which pools are managed.
    pub(crate) manager: String,
    /// Whether pools that another declaration manages are taken over.
    pub(crate) takeover: bool,
    pub(crate) memory: Arc<Memory>,
    pub(crate) board: Arc<Board>,
    pub(crate) metrics: Metrics,
    pub(crate) prober: Arc<Prober>,
    pub(crate) discoverer: Discoverer,
    /// How many pools are reconciled at once.
    pub(crate) reconciling: Semaphore,
    /// Changes each time that Redis is back after it did not answer.
    pub(crate) redis_back: watch::Receiver<u64>,
}

/// Reconciliations at once: enough to keep one connection busy, few enough that workloads hardly notice.
pub(crate) const CONCURRENT: usize = 8;
