//! Waiting for a condition, by polling it, and not waiting for ever. It must not know what is waited for.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// How long to rest between two looks.
const PAUSE: Duration = Duration::from_millis(10);

/// Evaluates `condition` until it is `Ok`, and returns what it found.
///
/// `Err` means *not yet*; its message is what the caller reads when time is up, so `ensure!` with the values seen
/// makes the best condition.
///
/// # Errors
/// The last error of `condition`, when `within` has passed. A condition that hangs is cut off then, too.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> anyhow::Result<()> {
/// use std::time::Duration;
///
/// let mut looks = 0;
/// let found = e2e::eventually(Duration::from_secs(5), async || {
///     looks += 1;
///     anyhow::ensure!(looks >= 3, "looked only {looks} times");
///     Ok(looks)
/// })
/// .await?;
/// assert_eq!(found, 3);
/// # Ok(())
/// # }
/// ```
pub async fn eventually<T>(within: Duration, mut condition: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + within;
    let mut last: Option<anyhow::Error> = None;
    loop {
        match timeout_at(deadline, condition()).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(reason)) if Instant::now() < deadline => last = Some(reason),
            Ok(Err(reason)) => return Err(reason).with_context(|| format!("condition not met within {within:?}")),
            Err(_) => {
                let reason = last.unwrap_or_else(|| anyhow::anyhow!("the first look at the condition did not return"));
                return Err(reason).with_context(|| format!("condition not met within {within:?}"));
            }
        }
        sleep(PAUSE).await;
    }
}

/// Does something that must not take longer: a test that hangs should fail, and say so.
///
/// # Errors
/// That of `work`, or that it did not end.
pub async fn within<T>(limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(limit, work).await.with_context(|| format!("did not end within {limit:?}"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_condition_never_met_fails_with_its_last_reason() {
        let mut looks = 0;
        let outcome: Result<()> = eventually(Duration::from_secs(1), async || {
            looks += 1;
            anyhow::bail!("seen {looks} of 1000000")
        })
        .await;
        let message = format!("{:#}", outcome.unwrap_err());
        assert!(message.contains("not met within 1s") && message.contains("of 1000000"), "{message}");
        assert!(looks > 1, "looked {looks} times");
    }

    #[tokio::test]
    async fn a_condition_that_hangs_is_cut_off() {
        let outcome: Result<()> = eventually(Duration::from_millis(30), async || std::future::pending().await).await;
        assert!(format!("{:#}", outcome.unwrap_err()).contains("did not return"));
    }
}
