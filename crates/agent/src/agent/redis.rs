//! Whether Redis answers: said once when that changes, shown in readiness and metrics all the time.

use std::time::Duration;

use redis_allocator::{Client, Error, ServerInfo};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{backoff::Backoff, http::Readiness, metrics::Metrics};

/// How often Redis is asked.
const ASK: Duration = Duration::from_secs(2);

/// Connects, however long it takes; `unreachable` hears what hinders it.
///
/// # Errors
/// Only what no waiting mends: a URL that is none.
pub(super) async fn connect(
    url: &str,
    readiness: &Readiness,
    metrics: &Metrics,
    unreachable: &watch::Sender<Option<String>>,
) -> Result<Client, Error> {
    let mut backoff = Backoff::default();
    let mut said = false;
    loop {
        match Client::connect(url).await {
            Ok(client) => {
                let server = client.server_info().await.map_or_else(|_| String::new(), |server| describe(&server));
                tracing::info!(address = client.address(), server, "Redis answers");
                readiness.set_redis(None);
                metrics.set_redis_up(true);
                unreachable.send_replace(None);
                return Ok(client);
            }
            Err(error @ (Error::Invalid { .. } | Error::InvalidName { .. })) => return Err(error),
            Err(error) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::error!("can't use Redis, trying again and again: {error}");
                }
                let trouble = Some(error.to_string());
                readiness.set_redis(trouble.clone());
                unreachable.send_if_modified(|before| {
                    *before != trouble && {
                        *before = trouble;
                        true
                    }
                });
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }
}

fn describe(server: &ServerInfo) -> String {
    format!("{} {} ({})", server.flavor, server.version, server.mode)
}

/// Asks now and then, and counts in `back` how often Redis came back.
pub(super) async fn watch_over(
    client: Client,
    readiness: Readiness,
    metrics: Metrics,
    back: watch::Sender<u64>,
    stop: CancellationToken,
) {
    let mut up = true;
    while stop.run_until_cancelled(tokio::time::sleep(ASK)).await.is_some() {
        let Some(answer) = stop.run_until_cancelled(client.server_info()).await else { return };
        // A server that answers with a refusal is there.
        let trouble = answer.err().filter(Error::is_transient);
        match &trouble {
            Some(error) if up => tracing::error!("Redis does not answer, trying again and again: {error}"),
            None if !up => {
                tracing::info!("Redis answers again; every pool is reconciled");
                back.send_modify(|times| *times += 1);
            }
            _ => {}
        }
        up = trouble.is_none();
        metrics.set_redis_up(up);
        readiness.set_redis(trouble.map(|error| error.to_string()));
    }
}
