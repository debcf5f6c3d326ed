//! A future that ends even if nobody awaits it any more. It knows nothing of what it carries.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::runtime::Handle;

/// Polled in place by whoever awaits it, which costs no task and no change of threads; when that one drops it before its
/// end, a task of its own goes on, and drops what comes out.
pub(crate) struct ToTheEnd<F: Future + Send + 'static>
where
    F::Output: Send,
{
    /// `None` when it has ended.
    future: Option<Pin<Box<F>>>,
    runtime: Handle,
}

impl<F: Future + Send + 'static> ToTheEnd<F>
where
    F::Output: Send,
{
    pub(crate) fn new(runtime: Handle, future: F) -> Self {
        Self { future: Some(Box::pin(future)), runtime }
    }
}

impl<F: Future + Send + 'static> Future for ToTheEnd<F>
where
    F::Output: Send,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        // Taken out, so that one that panics is not polled again when it is dropped.
        let Some(mut future) = self.future.take() else { return Poll::Pending };
        let polled = future.as_mut().poll(context);
        if polled.is_pending() {
            self.future = Some(future);
        }
        polled
    }
}

impl<F: Future + Send + 'static> Drop for ToTheEnd<F>
where
    F::Output: Send,
{
    fn drop(&mut self) {
        if let Some(future) = self.future.take() {
            self.runtime.spawn(future);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn what_is_awaited_answers_in_place() {
        assert_eq!(ToTheEnd::new(Handle::current(), async { 7 }).await, 7);
    }

    #[tokio::test]
    async fn what_is_dropped_half_way_goes_on() {
        let (go, wait) = oneshot::channel::<()>();
        let (done, ended) = oneshot::channel();
        let future = ToTheEnd::new(Handle::current(), async move {
            wait.await.unwrap();
            done.send(()).unwrap();
        });
        assert!(tokio::time::timeout(Duration::from_millis(1), future).await.is_err());
        go.send(()).unwrap();
        ended.await.unwrap();
    }

    #[tokio::test]
    async fn what_was_never_polled_runs_all_the_same() {
        let (done, ended) = oneshot::channel();
        drop(ToTheEnd::new(Handle::current(), async move { done.send(()) }));
        ended.await.unwrap();
    }
}
