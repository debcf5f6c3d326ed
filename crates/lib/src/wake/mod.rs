//! How a client hears that one of its waiters may look now: one channel per client, one message per waiter. It knows
//! neither what is waited for nor how a subscription is kept up.
//!
//! # Guarantees
//! - A waiter is woken by a message for it, also by one that came between two waits; and whenever the subscription has
//!   been made, since what was published before is lost.
//! - There is no subscription before the first waiter, and none soon after the last; no task and no timer per waiter.
//!
//! # Caveats
//! - Messages may be lost, doubled or late. Truth is in the keys, so every waiter looks by itself now and then, too.

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    task::AbortHandle,
    time::{self, Instant},
};

use crate::{
    client::Client,
    connection::{Connection, Heard},
    error::{Error, Result},
    keys::Keyspace,
};

/// How long the subscription outlives the last waiter: who waits once often waits again.
const LINGER: Duration = Duration::from_secs(5);

/// The waiters of a client.
pub(crate) struct Wake {
    shared: Arc<Shared>,
}

/// Someone who waits to be woken; leaves when dropped.
pub(crate) struct Waiter {
    client: Client,
    number: u64,
    id: String,
    bell: Arc<Notify>,
}

/// What the subscription's task has, too. The client is not in it, so that dropping the last handle ends the task.
struct Shared {
    client_id: String,
    channel: String,
    /// The channels of all clients, as an ACL names them.
    pattern: String,
    /// A std mutex: it is never held across an await.
    state: Mutex<State>,
    /// Whether the log has been told that the server refuses the subscription.
    refused: AtomicBool,
}

struct State {
    bells: HashMap<u64, Arc<Notify>>,
    /// How many waiters there ever were: the latest one's number.
    entered: u64,
    /// When the last waiter left.
    deserted: Instant,
    /// The subscription's task.
    task: Option<AbortHandle>,
}

impl Wake {
    /// Gives the client its id and starts nothing.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the system has no random number.
    pub(crate) fn new(keyspace: &Keyspace) -> Result<Self> {
        let number = getrandom::u64().map_err(|error| Error::Unavailable {
            message: format!("the operating system gave no random number: {error}"),
            source: None,
        })?;
        let client_id = format!("{number:016x}");
        let shared = Shared {
            channel: keyspace.wake(&client_id),
            pattern: keyspace.wake("*"),
            client_id,
            state: Mutex::new(State { bells: HashMap::new(), entered: 0, deserted: Instant::now(), task: None }),
            refused: AtomicBool::new(false),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Registers a waiter of `client`, whose registry this is, and has the subscription made if there is none. What is
    /// published for the waiter before that stands is lost, but then it is woken.
    pub(crate) fn enter(&self, client: &Client) -> Waiter {
        let bell = Arc::new(Notify::new());
        let mut state = self.shared.state();
        state.entered += 1;
        let number = state.entered;
        state.bells.insert(number, Arc::clone(&bell));
        if state.task.as_ref().is_none_or(AbortHandle::is_finished) {
            let task = listen(Arc::clone(&self.shared), client.inner.connection.clone());
            state.task = Some(client.inner.runtime.spawn(task).abort_handle());
        }
        drop(state);
        Waiter { client: client.clone(), number, id: format!("{}:{number}", self.shared.client_id), bell }
    }
}

impl Drop for Wake {
    fn drop(&mut self) {
        // No waiter is left: each holds the client.
        if let Some(task) = self.shared.state().task.take() {
            task.abort();
        }
    }
}

impl Waiter {
    /// `<client id>:<number>`, unique among all waiters of all clients: what a message for it must be.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Where messages for it are published: the channel of its client.
    pub(crate) fn channel(&self) -> &str {
        &self.client.inner.wake.shared.channel
    }

    /// Waits until there may be something to look at, or `at_most` has passed; says whether it was woken. Several calls
    /// to wake it between two waits are one. It may be dropped at any point: no call to wake is lost by that.
    pub(crate) async fn woken(&self, at_most: Duration) -> bool {
        time::timeout(at_most, self.bell.notified()).await.is_ok()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut state = self.client.inner.wake.shared.state();
        state.bells.remove(&self.number);
        if state.bells.is_empty() {
            state.deserted = Instant::now();
        }
    }
}

impl Shared {
    fn hear(&self, heard: Heard<'_>) {
        match heard {
            Heard::Standing => {
                self.refused.store(false, Ordering::Relaxed);
                for bell in self.state().bells.values() {
                    bell.notify_one();
                }
            }
            Heard::Message(payload) => {
                // It may be for a waiter that has left.
                if let Some(bell) = self.addressee(payload).and_then(|number| self.state().bells.get(&number).cloned())
                {
                    bell.notify_one();
                }
            }
            Heard::Refused(reason) => {
                if !self.refused.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        reason,
                        "the Redis user may not subscribe: waiters are not woken, they only look now and then; allow it \
                         by the ACL rules +subscribe +publish +ping &{}",
                        self.pattern
                    );
                }
            }
        }
    }

    /// The number of the waiter whose id this is.
    fn addressee(&self, payload: &[u8]) -> Option<u64> {
        let (client, number) = std::str::from_utf8(payload).ok()?.split_once(':')?;
        if client == self.client_id { number.parse().ok() } else { None }
    }

    /// Ends when there has been no waiter for a while; the next one then finds no task and starts another.
    async fn deserted(&self) {
        loop {
            let until = {
                let mut state = self.state();
                let now = Instant::now();
                let until = if state.bells.is_empty() { state.deserted } else { now } + LINGER;
                if until <= now {
                    state.task = None;
                    return;
                }
                until
            };
            time::sleep_until(until).await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that is done under it can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The subscription's task.
async fn listen(shared: Arc<Shared>, connection: Connection) {
    let listener = {
        let shared = Arc::clone(&shared);
        Arc::new(move |heard: Heard<'_>| shared.hear(heard))
    };
    tokio::select! {
        never = connection.subscribe(&shared.channel, listener) => match never {},
        () = shared.deserted() => {}
    }
}
