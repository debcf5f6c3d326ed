//! Looking at leases: every one of a pool or of a resource, however many hold it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{LeaseInfo, Pool, snapshot::lease, text};
use crate::{error::Result, names::ResourceKey, script};

/// A lease, and what it is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ListedLease {
    /// What tells it from the other leases of its pool: the resource, and in a shared pool its token as well.
    pub id: String,
    /// The resource.
    pub key: ResourceKey,
    /// Whether that is declared; what is not any more leaves with its last lease.
    pub declared: bool,
    /// Who has it, since when, and until when.
    pub lease: LeaseInfo,
}

impl Pool {
    /// All leases, and offers that nobody has claimed yet: sorted by resource, and those on one resource in the order in
    /// which they were granted.
    ///
    /// They are read in pages: what begins or ends meanwhile may be listed or not, and each page is of one moment.
    ///
    /// # Errors
    /// [`Error::UnknownPool`](crate::Error::UnknownPool).
    pub async fn leases(&self) -> Result<Vec<ListedLease>> {
        self.list_leases("").await
    }

    /// The leases on one resource, which are several in a shared pool; none if nobody has it.
    ///
    /// # Errors
    /// As for [`leases`](Self::leases), and for a key that is none.
    pub async fn leases_on(&self, key: impl AsRef<str>) -> Result<Vec<ListedLease>> {
        self.list_leases(ResourceKey::new(key)?.as_str()).await
    }

    async fn list_leases(&self, resource: &str) -> Result<Vec<ListedLease>> {
        // One may be on two pages. An id begins with its resource and ends with its token.
        let mut leases = BTreeMap::new();
        let mut cursor = "0".to_owned();
        loop {
            let mut reply = self.call(&script::LEASES, &[text(resource), text(&cursor)]).await?;
            cursor = reply.text()?;
            let mut listed = reply.list()?;
            while listed.len() > 0 {
                let (id, expiry, holder) = (listed.text()?, listed.text()?, listed.text()?);
                let key = ResourceKey::new(id.split('\0').next().unwrap_or_default())?;
                let declared = listed.int()? == 1;
                let lease = lease(&expiry, &holder)?;
                leases.insert(id.clone(), ListedLease { id, key, declared, lease });
            }
            if cursor == "0" {
                return Ok(leases.into_values().collect());
            }
        }
    }
}
