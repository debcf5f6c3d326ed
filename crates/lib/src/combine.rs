//! Callers that ask for the same kind of thing at the same moment share one call. It knows neither what is asked nor who
//! answers.
//!
//! Nobody waits for company, and nobody waits behind a call that is already under way: who is alone asks at once; the
//! first of several lets the tasks that are ready to run have their turn, and then asks for all who joined meanwhile.
//! Replies come in bursts, so many callers are ready at the same moment.

use std::{
    future::Future,
    mem,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures::future::join_all;
use tokio::{runtime::Handle, sync::oneshot};

/// A place where callers meet. Clones are the same place.
pub(crate) struct Combiner<Q, A>(Arc<Inner<Q, A>>);

struct Inner<Q, A> {
    /// How many callers are here, waiting or served.
    callers: AtomicUsize,
    /// Those that the first one will ask for. A std mutex: held for a push or a swap, never across an await.
    waiting: Mutex<Vec<(Q, oneshot::Sender<A>)>>,
}

impl<Q, A> Default for Combiner<Q, A> {
    fn default() -> Self {
        Self(Arc::new(Inner { callers: AtomicUsize::new(0), waiting: Mutex::default() }))
    }
}

impl<Q, A> Clone for Combiner<Q, A> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// The turn of those that wait, until they are asked for. Should the runtime drop it before, they hear that nobody will
/// ask, and the next one to come is the first again.
struct Turn<Q, A>(Option<Arc<Inner<Q, A>>>);

impl<Q, A> Turn<Q, A> {
    fn end(mut self) -> Vec<(Q, oneshot::Sender<A>)> {
        self.0.take().map(|inner| inner.take()).unwrap_or_default()
    }
}

impl<Q, A> Drop for Turn<Q, A> {
    fn drop(&mut self) {
        if let Some(inner) = self.0.take() {
            drop(inner.take());
        }
    }
}

impl<Q, A> Inner<Q, A> {
    fn take(&self) -> Vec<(Q, oneshot::Sender<A>)> {
        mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One caller, as long as it is here.
struct Caller<'a>(&'a AtomicUsize);

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<Q: Send + 'static, A: Send + 'static> Combiner<Q, A> {
    /// Asks, together with at most `most - 1` others. `serve` answers each question in order, with a clone of `server`,
    /// which is made only where a call is; it is carried to its end even if this caller goes away, since others wait for
    /// it. `None` only when the runtime is shutting down.
    pub(crate) async fn ask<S, F>(
        &self,
        question: Q,
        most: usize,
        server: &S,
        runtime: &Handle,
        serve: fn(S, Vec<Q>) -> F,
    ) -> Option<A>
    where
        S: Clone + Send + 'static,
        F: Future<Output = Vec<A>> + Send + 'static,
    {
        let inner = &self.0;
        let alone = inner.callers.fetch_add(1, Ordering::Relaxed) == 0;
        let _caller = Caller(&inner.callers);
        if alone {
            // Boxed: it is large, and most of many callers do without.
            return Box::pin(serve(server.clone(), vec![question])).await.pop();
        }
        let (sender, answer) = oneshot::channel();
        let first = {
            let mut waiting = inner.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.push((question, sender));
            waiting.len() == 1
        };
        if first {
            let (turn, server) = (Turn(Some(Arc::clone(inner))), server.clone());
            let lead = async move {
                tokio::task::yield_now().await;
                let mut waiting = turn.end().into_iter();
                let mut calls = Vec::new();
                while waiting.len() > 0 {
                    let (questions, callers): (Vec<_>, Vec<_>) = waiting.by_ref().take(most).unzip();
                    let answers = serve(server.clone(), questions);
                    calls.push(async move {
                        for (caller, answer) in callers.into_iter().zip(answers.await) {
                            // One that has gone away meanwhile drops its answer.
                            let _ = caller.send(answer);
                        }
                    });
                }
                join_all(calls).await;
            };
            // A task of its own: others wait for it, and this caller may be one that is not polled for long.
            runtime.spawn(lead);
        }
        answer.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::future::join;

    use super::*;

    /// Doubles what it is asked, and says how many were asked together.
    async fn double((): (), questions: Vec<u32>) -> Vec<(u32, usize)> {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let together = questions.len();
        questions.into_iter().map(|question| (2 * question, together)).collect()
    }

    #[tokio::test]
    async fn each_gets_its_own_answer_and_few_calls_are_made() {
        let (combiner, runtime) = (Combiner::default(), Handle::current());
        let answers = join_all((0..50).map(|i| combiner.ask(i, 20, &(), &runtime, double))).await;
        let answers: Vec<_> = answers.into_iter().map(Option::unwrap).collect();
        assert!(answers.iter().zip(0..).all(|(answer, i)| answer.0 == 2 * i), "{answers:?}");
        // The first was alone; the other 49 came while it was under way.
        let together: Vec<_> = answers.iter().map(|answer| answer.1).collect();
        assert_eq!((together[0], together[1], together[49]), (1, 20, 9), "{together:?}");
    }

    #[tokio::test]
    async fn who_asked_for_others_need_not_be_polled() {
        let (combiner, runtime) = (Combiner::default(), Handle::current());
        let mut alone = Box::pin(combiner.ask(0, 20, &(), &runtime, double));
        let mut leader = Box::pin(combiner.ask(1, 20, &(), &runtime, double));
        assert!(futures::poll!(&mut alone).is_pending());
        assert!(futures::poll!(&mut leader).is_pending());
        // Neither is polled again before another one is served.
        assert_eq!(combiner.ask(2, 20, &(), &runtime, double).await.map(|answer| answer.0), Some(4));
        assert_eq!((leader.await.map(|answer| answer.0), alone.await.map(|answer| answer.0)), (Some(2), Some(0)));
    }

    #[tokio::test]
    async fn nobody_waits_for_a_runtime_that_is_gone() {
        let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap();
        let (combiner, gone) = (Combiner::default(), runtime.handle().clone());
        runtime.shutdown_background();
        for _ in 0..2 {
            let alone = combiner.ask(0, 20, &(), &gone, double);
            let second = combiner.ask(1, 20, &(), &gone, double);
            let (_, second) = tokio::time::timeout(Duration::from_secs(30), join(alone, second)).await.unwrap();
            assert_eq!(second, None);
        }
    }

    #[tokio::test]
    async fn who_asked_for_others_may_go_away() {
        let (combiner, runtime) = (Combiner::default(), Handle::current());
        let alone = combiner.ask(0, 20, &(), &runtime, double);
        let first =
            async { tokio::time::timeout(Duration::from_millis(1), combiner.ask(1, 20, &(), &runtime, double)).await };
        let second = combiner.ask(2, 20, &(), &runtime, double);
        let (alone, first, second) = futures::future::join3(alone, first, second).await;
        assert_eq!(alone, Some((0, 1)));
        assert!(first.is_err(), "it should have gone away");
        assert_eq!(second, Some((4, 2)));
    }
}
