//! The way to the API server, and the name of the cluster behind it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use kube::{Client, Config};

use crate::{backoff::Backoff, http::Readiness, source::kubernetes::cluster_id};

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the API server may be silent about a request.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a list or a watch may be silent. The API server ends each watch before that.
const SILENCE: Duration = Duration::from_mins(5);

/// How to reach the cluster that the environment names.
pub(super) struct Way {
    /// For requests, which are answered soon or not at all.
    pub(super) requests: Client,
    /// For watches, in which silence is the rule.
    pub(super) watches: Client,
    /// The agent's own namespace.
    pub(super) namespace: String,
}

/// From the service account of a pod, or else from the kubeconfig of a user. Asks nobody.
///
/// # Errors
/// When there is neither, or it can't be used.
pub(super) async fn way() -> Result<Way> {
    let mut config = Config::infer()
        .await
        .context("found no way to a Kubernetes cluster: run in a pod with a service account, or set KUBECONFIG")?;
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(SILENCE);
    // Each part of the agent has a backoff of its own, knows what it should do meanwhile, and says what is wrong.
    config.default_retry = false;
    let namespace = config.default_namespace.clone();
    let client = |config| Client::try_from(config).context("the way to the Kubernetes cluster can't be used");
    let watches = client(config.clone())?;
    config.read_timeout = Some(ANSWER);
    Ok(Way { requests: client(config)?, watches, namespace })
}

/// The identity under which the pools of a cluster are managed. Asks until it is told.
pub(super) async fn manager(client: &Client, readiness: &Readiness) -> String {
    let mut backoff = Backoff::default();
    loop {
        match cluster_id(client).await {
            Ok(id) => return format!("kubernetes:{id}"),
            Err(error) => {
                let trouble = format!("can't ask the Kubernetes API which cluster this is: {error}");
                if backoff.is_fresh() {
                    tracing::error!("{trouble}; it is asked again and again");
                }
                readiness.set_source(Some(trouble));
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }
}
