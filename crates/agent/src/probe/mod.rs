//! Finding out which resources work, and keeping those that don't from being granted.
//!
//! | file | idea |
//! |---|---|
//! | [`rounds`] | when each resource of a pool is probed, and what is done with the result |
//! | [`verdicts`] | how many results make a verdict, and when the prober doubts itself |
//! | [`http`], [`tcp`], [`exec`] | one kind of probe each |

mod exec;
mod http;
mod rounds;
mod tcp;
mod verdicts;

use std::{
    fmt::Display,
    sync::Arc,
    time::{Duration, Instant},
};

use redis_allocator::ResourceState;
use redis_allocator_crd::HealthCheck;
use serde_json::Map;
use tokio::sync::Semaphore;

pub(crate) use self::rounds::{RETRY, release_all, watch_over};
use crate::{
    metrics::{Metrics, Outcome},
    notice::Notices,
};

/// What all probes share.
#[derive(Debug)]
pub(crate) struct Prober {
    http: reqwest::Client,
    /// How many run at once, over all pools.
    running: Arc<Semaphore>,
    allow_exec: bool,
    allow_link_local: bool,
    metrics: Metrics,
    notices: Notices,
}

impl Prober {
    /// # Errors
    /// When the machine's TLS settings can't be read.
    pub(crate) fn new(settings: ProbeSettings, metrics: Metrics, notices: Notices) -> Result<Self, reqwest::Error> {
        Ok(Self {
            http: http::client(settings.allow_link_local)?,
            running: Arc::new(Semaphore::new(settings.concurrent)),
            allow_exec: settings.allow_exec,
            allow_link_local: settings.allow_link_local,
            metrics,
            notices,
        })
    }

    /// Probes one resource; the error says what is wrong with it.
    async fn probe(&self, check: &HealthCheck, resource: &ResourceState) -> Result<(), String> {
        let timeout: Duration = check.timeout.into();
        self.metrics.probe_started();
        let started = Instant::now();
        let result = match tokio::time::timeout(timeout, self.probe_patiently(check, resource)).await {
            Ok(result) => result,
            Err(_) => Err(format!("no answer within {}", check.timeout)),
        };
        let outcome = if result.is_ok() { Outcome::Success } else { Outcome::Failure };
        self.metrics.probe_ended(started.elapsed(), outcome);
        result
    }

    async fn probe_patiently(&self, check: &HealthCheck, resource: &ResourceState) -> Result<(), String> {
        let (name, params) = (resource.key.as_str(), &resource.params);
        if let Some(get) = &check.http_get {
            let url = get.url.render(name, params).map_err(text)?;
            http::probe(&self.http, get, &url, self.allow_link_local).await
        } else if let Some(socket) = &check.tcp_socket {
            let address = socket.address.render(name, params).map_err(text)?;
            // Params may be secret, and errors are told to everybody.
            let has_params = socket.address.render(name, &Map::new()).is_err();
            let told = has_params.then(|| socket.address.as_str());
            tcp::probe(&address, told, self.allow_link_local).await
        } else if let Some(exec) = &check.exec {
            let command: Vec<_> =
                exec.command.iter().map(|part| part.render(name, params)).collect::<Result<_, _>>().map_err(text)?;
            exec::probe(&command).await
        } else {
            // Validation asks for exactly one of them.
            Ok(())
        }
    }
}

/// What an operator says about probes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProbeSettings {
    pub(crate) concurrent: usize,
    pub(crate) allow_exec: bool,
    pub(crate) allow_link_local: bool,
}

fn text(error: impl Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use redis_allocator::Place;
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn params_in_an_address_are_not_told() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let settings = ProbeSettings { concurrent: 1, allow_exec: false, allow_link_local: false };
        let prober = Prober::new(settings, Metrics::new(), Notices::default()).unwrap();
        let params = json!({"host": "127.0.0.77", "local": "169.254.0.77", "port": 1, "none": "1.77"});
        let resource = ResourceState {
            key: "127.0.0.78".parse().unwrap(),
            declared: true,
            priority: 0,
            position: 0,
            labels: BTreeMap::new(),
            params: params.as_object().unwrap().clone(),
            origins: Vec::new(),
            place: Place::Nowhere,
            holders: Vec::new(),
            holder_count: 0,
            marks: Vec::new(),
            reserved_for: None,
        };
        let probe = async |address: &str| {
            let check = serde_json::from_value(json!({"tcpSocket": {"address": address}})).unwrap();
            prober.probe(&check, &resource).await.unwrap_err()
        };
        for address in ["{params.host}:{params.port}", "{params.local}:80", "{params.none}", "{name}:{params.none}"] {
            let error = probe(address).await;
            assert!(error.contains(address) && !error.contains("77"), "{error}");
        }
        assert!(probe("{name}:1").await.contains("127.0.0.78:1"));
    }
}
