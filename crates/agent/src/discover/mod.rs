//! Discovery: the resources that somebody else lists, fetched on time and brought into their pools.
//!
//! | file | idea |
//! |---|---|
//! | [`rounds`] | when a source is asked, and what is done with its answer |
//! | [`file`], [`http`], [`dns`], [`kubernetes`] | one kind of source each |
//! | [`list`] | what a text lists |
//! | [`trouble`] | why a source brought nothing that could be used |
//!
//! A source either brings a whole list that is fine, or trouble: nothing of a list that is not fine is used.

mod dns;
mod file;
mod http;
mod kubernetes;
mod list;
mod rounds;
mod trouble;

use std::{future::Future, time::Duration};

use redis_allocator_crd::{Resource, ResourceSource};
use tokio::{sync::Semaphore, time::timeout};

use self::trouble::{REFUSED, TIMEOUT, Trouble};
pub(crate) use self::{
    rounds::{Follow, SourceReport, follow},
    trouble::CATEGORIES,
};
use crate::{address, metrics::Metrics};

/// Sources that are asked at once, over all pools: each may hold its longest answer in memory. Enough that some which never
/// answer do not keep the others waiting.
const CONCURRENT: usize = 32;
/// How long reading a file may take: it may be on a file system that hangs.
const FILE: Duration = Duration::from_secs(30);
/// How long asking a cluster may take, page by page.
const KUBERNETES: Duration = Duration::from_mins(2);

/// What all sources share.
#[derive(Debug)]
pub(crate) struct Discoverer {
    http: reqwest::Client,
    /// The cluster in which pools are declared, if they are.
    cluster: Option<Cluster>,
    allow_link_local: bool,
    asking: Semaphore,
    metrics: Metrics,
}

/// A way to a cluster.
struct Cluster(kube::Client);

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cluster")
    }
}

impl Discoverer {
    /// # Errors
    /// When the machine's TLS settings can't be read.
    pub(crate) fn new(
        cluster: Option<kube::Client>,
        allow_link_local: bool,
        metrics: Metrics,
    ) -> Result<Self, reqwest::Error> {
        Ok(Self {
            http: address::client(allow_link_local).build()?,
            cluster: cluster.map(Cluster),
            allow_link_local,
            asking: Semaphore::new(CONCURRENT),
            metrics,
        })
    }

    /// What a source of a pool of this namespace brings now.
    async fn fetch(&self, namespace: &str, source: &ResourceSource) -> Result<Vec<Resource>, Trouble> {
        // Never closed.
        let _permit = self.asking.acquire().await;
        if let Some(file) = &source.file {
            in_time(FILE, &file.path, file::fetch(file)).await
        } else if let Some(http) = &source.http {
            http::fetch(&self.http, http, self.allow_link_local).await
        } else if let Some(dns) = &source.dns {
            dns::fetch(dns).await
        } else if let Some(kubernetes) = &source.kubernetes {
            let Some(Cluster(client)) = &self.cluster else {
                let message = "sources in Kubernetes need an agent that was started with --kubernetes";
                return Err(Trouble::new(REFUSED, message));
            };
            in_time(KUBERNETES, "the API server", kubernetes::fetch(client, namespace, kubernetes)).await
        } else {
            // Validation asks for exactly one of them.
            Ok(Vec::new())
        }
    }
}

async fn in_time<T>(limit: Duration, who: &str, fetch: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
    let late = |_| Err(Trouble::new(TIMEOUT, format!("reading {who} took longer than {} s", limit.as_secs())));
    timeout(limit, fetch).await.unwrap_or_else(late)
}
