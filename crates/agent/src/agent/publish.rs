//! Statuses into the state directory: conditions at once when they change, counts now and then.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    board::{Board, COUNTS},
    source::Declaration,
    state::{FileReport, OccupiedDir, StatusFile},
};

/// Changes of so long a time share one write.
const GATHER: Duration = Duration::from_millis(100);

pub(super) async fn run(
    occupied: Arc<OccupiedDir>,
    board: Arc<Board>,
    manager: String,
    mut declared: watch::Receiver<Arc<Declaration>>,
    stop: CancellationToken,
) {
    let mut written = Instant::now();
    let mut source_ended = false;
    loop {
        let counts = async {
            board.counts_changed.notified().await;
            tokio::time::sleep_until(written + COUNTS).await;
        };
        let stopping = tokio::select! {
            () = stop.cancelled() => true,
            () = board.conditions_changed.notified() => false,
            changed = declared.changed(), if !source_ended => {
                source_ended = changed.is_err();
                false
            }
            () = counts => false,
        };
        let stopping = stopping || stop.run_until_cancelled(tokio::time::sleep(GATHER)).await.is_none();
        let (leader, pools, bindings) = board.reports();
        let report = |errors: &crate::source::SourceErrors| FileReport {
            path: errors.place.clone(),
            errors: errors.errors.clone(),
        };
        let files = declared.borrow_and_update().errors.iter().map(report).collect();
        let status =
            StatusFile { updated_at: Timestamp::now(), manager: manager.clone(), leader, pools, bindings, files };
        let occupied = Arc::clone(&occupied);
        let result = tokio::task::spawn_blocking(move || occupied.write_status(&status)).await;
        if let Ok(Err(error)) = result {
            tracing::error!(error = &error as &dyn std::error::Error, "writing the status failed");
        }
        written = Instant::now();
        if stopping {
            return;
        }
    }
}
