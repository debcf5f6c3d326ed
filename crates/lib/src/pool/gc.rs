//! What ends without its holder: by time, and by an operator's word.

use super::{BATCH, Pool, owned, text};
use crate::{
    error::{Error, Result},
    names::{BindingName, ResourceKey},
    script,
};

/// What one [`Pool::gc`] reclaimed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Leases that had expired, or whose session had: resource and former owner.
    pub expired: Vec<(ResourceKey, String)>,
    /// Resources whose quarantine or cooldown was over.
    pub recovered: Vec<ResourceKey>,
    /// Binding names whose time to live was over.
    pub unbound: Vec<BindingName>,
    /// Resources that left the pool, as they were declared for a time that is over. What is leased drains.
    pub left: Vec<ResourceKey>,
    /// Whether there may be more to reclaim: call again.
    pub more: bool,
}

impl Pool {
    /// Reclaims at most `count` (1 to 200) things that are over: expired leases, leases of sessions that are over,
    /// quarantines, cooldowns, bindings, and declarations with a time to live. Its cost grows with what is over, not with
    /// the pool; call again while [`GcReport::more`]. Callers in line that are not heard of any more lose their place, and
    /// what is free is offered to the first.
    ///
    /// # Errors
    /// [`Error::Invalid`] for another count, [`Error::OutcomeUnknown`] when the reply is lost: what was reclaimed is
    /// reclaimed, only the report is gone.
    pub async fn gc(&self, count: u32) -> Result<GcReport> {
        if count == 0 || count as usize > BATCH {
            return Err(Error::Invalid {
                what: "gc count",
                found: count.to_string(),
                allowed: format!("1 to {BATCH}"),
            });
        }
        let mut reply = self.call(&script::GC, &[owned(count)]).await?;
        let mut report = GcReport::default();
        for (resource, record) in reply.pairs()? {
            report.expired.push((ResourceKey::new(resource)?, super::snapshot::owner_of(&record)));
        }
        for resource in reply.texts()? {
            report.recovered.push(ResourceKey::new(resource)?);
        }
        for name in reply.texts()? {
            report.unbound.push(BindingName::new(name)?);
        }
        report.more = reply.int()? == 1;
        for resource in reply.texts()? {
            report.left.push(ResourceKey::new(resource)?);
        }
        Ok(report)
    }

    /// Ends the lease on a resource whoever holds it, in a shared pool those of all its holders: an operator's tool.
    /// Whether there was one.
    ///
    /// A holder hears of it at its next renewal; until then it goes on using the resource.
    ///
    /// # Errors
    /// [`Error::OutcomeUnknown`] when a reply is lost; the same call can be made again.
    pub async fn force_free(&self, key: impl AsRef<str>) -> Result<bool> {
        let key = ResourceKey::new(key)?;
        let ended = self.revoke(std::slice::from_ref(&key)).await?;
        if ended == BATCH as u64 {
            // More may be left. Those that come meanwhile have another claim, and would never let this end.
            let left = self.get(&key).await?.map_or(0, |resource| resource.holder_count);
            for _ in 0..left.div_ceil(BATCH as u64) {
                if self.revoke(std::slice::from_ref(&key)).await? < BATCH as u64 {
                    break;
                }
            }
        }
        Ok(ended > 0)
    }

    /// Ends the leases on at most [`BATCH`] resources; at most as many, so that there may be more in a shared pool. How
    /// many ended.
    pub(super) async fn revoke(&self, keys: &[ResourceKey]) -> Result<u64> {
        let args: super::Args<'_> = keys.iter().map(|key| text(key.as_str())).collect();
        self.call(&script::REVOKE, &args).await?.count()
    }
}
