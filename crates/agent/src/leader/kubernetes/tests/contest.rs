//! Two agents, and a server that keeps the Lease as a real one does.

use super::*;

/// A server for several agents that keeps the Lease as a real one does.
#[derive(Default)]
struct Store {
    lease: Option<Lease>,
    version: u32,
}

impl Store {
    fn serve(&mut self, call: Call) {
        let current = self.lease.as_ref().and_then(version).map(str::to_owned);
        match (&call.method, &self.lease) {
            (&Method::GET, Some(lease)) => call.found(lease),
            (&Method::GET, None) => call.missing(),
            (&Method::POST, Some(_)) => call.refused(409, "AlreadyExists"),
            (&Method::PUT, _) if version(&call.lease()) != current.as_deref() => call.conflict(),
            _ => {
                self.version += 1;
                self.lease = Some(call.done(&self.version.to_string()));
            }
        }
    }
}

#[tokio::test]
async fn a_follower_leads_only_after_the_leader_that_was_cut_off_has_lost() {
    let mut store = Store::default();
    let (mut first, mut first_server) = agent(SHORT);
    let (mut second, mut second_server) = agent(SHORT);
    Arc::get_mut(&mut second.requests).unwrap().identity = "second".to_owned();

    let (leadership, ()) = ask(&mut first, async {
        store.serve(first_server.next().await);
        store.serve(first_server.next().await);
    })
    .await;
    let lost = leadership.as_ref().expect("the first leads").lost();
    let cut_off = Instant::now() + SHORT.give_up;
    let leads_at = timeout(PATIENCE, async {
        let mut asking = Box::pin(async {
            loop {
                if let Some(leadership) = second.ask().await.unwrap() {
                    return leadership;
                }
                sleep(SHORT.renew).await;
            }
        });
        loop {
            tokio::select! {
                won = &mut asking => break (won, lost.is_cancelled()),
                call = second_server.next() => store.serve(call),
                call = first_server.next(), if Instant::now() < cut_off => store.serve(call),
            }
        }
    });
    let (won, had_lost) = leads_at.await.expect("a takeover");
    assert!(had_lost, "two led at a time");
    assert!(!won.lost().is_cancelled());
    assert_eq!(store.lease.as_ref().and_then(holder), Some("second"));
    assert_eq!(store.lease.as_ref().and_then(transitions), Some(1));
    assert!(store.version > 3, "the first should have renewed before it was cut off");
}
