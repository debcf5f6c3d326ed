//! `/healthz`, `/readyz` and `/metrics`.

use std::sync::{Arc, Mutex, PoisonError};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// What keeps the agent from being ready; all parts of it say so here.
#[derive(Debug, Clone)]
pub(crate) struct Readiness {
    inner: Arc<Mutex<Parts>>,
}

/// Each absent when it is fine.
#[derive(Debug)]
struct Parts {
    source: Option<String>,
    redis: Option<String>,
    work: Option<String>,
    role: Role,
}

/// What this agent does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// It has not asked yet whether it leads.
    Candidate,
    Leader,
    /// Another one leads; this one is ready to.
    Follower,
}

impl Readiness {
    pub(crate) fn new() -> Self {
        Self {
            inner: Arc::new(Mutex::new(Parts {
                source: Some("the manifests have not been read yet".to_owned()),
                redis: Some("Redis has not answered yet".to_owned()),
                work: Some("no pool has been reconciled yet".to_owned()),
                role: Role::Candidate,
            })),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Parts)) {
        // Nothing panics while holding it.
        change(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn set_source(&self, trouble: Option<String>) {
        self.change(|parts| parts.source = trouble);
    }

    pub(crate) fn set_redis(&self, trouble: Option<String>) {
        self.change(|parts| parts.redis = trouble);
    }

    pub(crate) fn set_work(&self, trouble: Option<String>) {
        self.change(|parts| parts.work = trouble);
    }

    pub(crate) fn set_role(&self, role: Role) {
        self.change(|parts| parts.role = role);
    }

    /// What is not fine, or what the agent does when all is.
    pub(crate) fn verdict(&self) -> Result<&'static str, String> {
        let parts = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        // A follower has nothing to reconcile until it leads.
        let work = parts.work.as_ref().filter(|_| parts.role != Role::Follower);
        let troubles: Vec<_> =
            [parts.source.as_ref(), parts.redis.as_ref(), work].into_iter().flatten().cloned().collect();
        match (troubles.is_empty(), parts.role) {
            (false, _) => Err(troubles.join("\n")),
            (true, Role::Candidate) => Err("not known yet whether this agent leads".to_owned()),
            (true, Role::Leader) => Ok("ready, leading"),
            (true, Role::Follower) => Ok("ready, following"),
        }
    }
}

#[derive(Clone)]
struct Shared {
    readiness: Readiness,
    metrics: Metrics,
}

/// Serves until told to stop.
pub(crate) async fn serve(listener: TcpListener, readiness: Readiness, metrics: Metrics, stop: CancellationToken) {
    let app = Router::new()
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(render))
        .with_state(Shared { readiness, metrics });
    let served = axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await;
    if let Err(error) = served {
        tracing::error!(%error, "serving HTTP failed");
    }
}

async fn ready(State(shared): State<Shared>) -> (StatusCode, String) {
    match shared.readiness.verdict() {
        Ok(role) => (StatusCode::OK, format!("{role}\n")),
        Err(troubles) => (StatusCode::SERVICE_UNAVAILABLE, format!("{troubles}\n")),
    }
}

async fn render(State(shared): State<Shared>) -> Response {
    match shared.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
            .into_response(),
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("rendering the metrics failed: {error}\n")).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_ready_when_nothing_is_wrong_and_its_role_is_known() {
        let readiness = Readiness::new();
        assert_eq!(readiness.verdict().unwrap_err().lines().count(), 3);
        readiness.set_source(None);
        readiness.set_redis(None);
        readiness.set_role(Role::Follower);
        assert_eq!(readiness.verdict(), Ok("ready, following"), "a follower has no work");
        readiness.set_role(Role::Leader);
        assert!(readiness.verdict().unwrap_err().contains("reconciled"));
        readiness.set_work(None);
        assert_eq!(readiness.verdict(), Ok("ready, leading"));
        readiness.set_redis(Some("gone".to_owned()));
        assert_eq!(readiness.verdict(), Err("gone".to_owned()));
    }
}
