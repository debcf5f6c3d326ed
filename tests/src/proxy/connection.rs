//! One connection through the proxy: two streams, and what the faults do to them. It must not know other connections.

use std::{
    collections::VecDeque,
    io,
    sync::{Mutex, PoisonError},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use super::{Fate, Flow, Shared};
use crate::resp::{self, Scanner};

/// Requests whose replies are still to come, oldest first.
type Asked = Mutex<VecDeque<Vec<Vec<u8>>>>;

/// Replies that may wait for their delivery; beyond, the server is no longer read.
const BACKLOG: usize = 4096;

/// Relays until either side closes, a rule closes, or the connection is cut.
pub(super) async fn relay(
    mut client: TcpStream,
    mut server: TcpStream,
    shared: &Shared,
    mut cut: watch::Receiver<u64>,
) {
    // Otherwise small messages wait for acknowledgements, and every test is 40 ms slower. Failing costs only that.
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let asked = Asked::default();
    // Errors end the connection like an orderly close: the other side sees the same.
    tokio::select! {
        _ = cut.changed() => {}
        _ = requests(from_client, to_server, shared, &asked) => {}
        _ = replies(from_server, to_client, shared, &asked) => {}
    }
}

async fn requests(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, shared: &Shared, asked: &Asked) -> io::Result<()> {
    let mut flow = shared.flow.subscribe();
    let mut scanner = Scanner::default();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        if !shared.raw {
            // Noted before they are sent, so that no reply can be faster.
            scanner.feed(&buffer[..read]);
            let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
            while let Some(request) = scanner.next_message() {
                let request = resp::arguments(&request);
                if !answered_by_pushes(&request) {
                    asked.push_back(request);
                }
            }
        }
        let _ = flow.wait_for(|flow| *flow != Flow::Hold).await;
        to.write_all(&buffer[..read]).await?;
    }
}

async fn replies(from: ReadHalf<'_>, to: WriteHalf<'_>, shared: &Shared, asked: &Asked) -> io::Result<()> {
    let (queue, due) = mpsc::channel(BACKLOG);
    // The reader ends first, also when a rule closes; what it has queued before is still delivered.
    tokio::try_join!(read_replies(from, queue, shared, asked), deliver(due, to, shared)).map(drop)
}

type Due = (Instant, Vec<u8>);

async fn read_replies(
    mut from: ReadHalf<'_>,
    queue: mpsc::Sender<Due>,
    shared: &Shared,
    asked: &Asked,
) -> io::Result<()> {
    let mut scanner = Scanner::default();
    let mut buffer = vec![0; 16 * 1024];
    let mut silenced = false;
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        let due = Instant::now() + *shared.delay.borrow();
        if shared.raw {
            let _ = queue.send((due, buffer[..read].to_vec())).await;
            continue;
        }
        scanner.feed(&buffer[..read]);
        while let Some(reply) = scanner.next_message() {
            // The server sends a push (RESP3) by itself, and a message (RESP2) when nothing was asked.
            let is_push = reply.first() == Some(&b'>');
            let request = (!is_push).then(|| asked.lock().unwrap_or_else(PoisonError::into_inner).pop_front());
            if silenced {
                continue;
            }
            match request.flatten().and_then(|request| shared.judge(&request, &reply)) {
                None => drop(queue.send((due, reply)).await),
                Some(Fate::Close) => return Ok(()),
                Some(Fate::Silence) => silenced = true,
            }
        }
    }
}

async fn deliver(mut due: mpsc::Receiver<Due>, mut to: WriteHalf<'_>, shared: &Shared) -> io::Result<()> {
    let mut flow = shared.flow.subscribe();
    while let Some((when, reply)) = due.recv().await {
        sleep_until(when).await;
        let _ = flow.wait_for(|flow| matches!(flow, Flow::Pass | Flow::Refuse)).await;
        to.write_all(&reply).await?;
    }
    Ok(())
}

/// RESP3 answers these with pushes, RESP2 with any number of messages: neither is a reply to wait for.
fn answered_by_pushes(request: &[Vec<u8>]) -> bool {
    request.first().is_some_and(|name| name.to_ascii_lowercase().ends_with(b"subscribe"))
}
