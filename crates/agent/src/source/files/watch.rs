//! Telling that something in a directory has changed. What has, it does not say.
//!
//! The directory is watched, not its files: a file that is replaced by renaming another over it, as editors do, or by
//! swapping a link, as Kubernetes does with a mounted `ConfigMap`, is another file from then on.

use std::{path::Path, sync::Arc, time::Duration};

use notify::{EventKind, RecommendedWatcher, RecursiveMode};
use notify_debouncer_full::{DebounceEventResult, Debouncer, NoCache, new_debouncer_opt};
use tokio::sync::Notify;

/// How long the directory must be quiet: an editor that saves makes several changes.
const QUIET: Duration = Duration::from_millis(100);

/// A watched directory.
pub(super) struct Watch {
    watcher: Option<Debouncer<RecommendedWatcher, NoCache>>,
    /// Device and inode of what is watched: a directory that was made anew must be watched anew.
    watched: Option<(u64, u64)>,
    changed: Arc<Notify>,
    complained: bool,
}

impl Watch {
    pub(super) fn new(dir: &Path) -> Self {
        let mut watch = Self { watcher: None, watched: None, changed: Arc::new(Notify::new()), complained: false };
        watch.renew(dir);
        watch
    }

    /// Watches the directory that has this name now, if it is another one.
    pub(super) fn renew(&mut self, dir: &Path) {
        let found = identity(dir);
        if found.is_some() && found == self.watched {
            return;
        }
        self.watcher = None;
        self.watched = None;
        if found.is_none() {
            return;
        }
        match self.start(dir) {
            Ok(watcher) => {
                self.watcher = Some(watcher);
                self.watched = found;
                // It may have changed between being read and being watched.
                self.changed.notify_one();
            }
            Err(error) if !std::mem::replace(&mut self.complained, true) => {
                tracing::warn!(%error, dir = %dir.display(), "can't watch the manifests: they are read every two seconds instead");
            }
            Err(_) => {}
        }
    }

    fn start(&self, dir: &Path) -> notify::Result<Debouncer<RecommendedWatcher, NoCache>> {
        let changed = Arc::clone(&self.changed);
        let handler = move |result: DebounceEventResult| {
            // Reading the files is an event as well, which must not cause the next reading. An error may hide a change.
            let is_change =
                result.map_or(true, |events| events.iter().any(|event| !matches!(event.kind, EventKind::Access(_))));
            if is_change {
                changed.notify_one();
            }
        };
        let mut watcher = new_debouncer_opt(QUIET, None, handler, NoCache::new(), notify::Config::default())?;
        watcher.watch(dir, RecursiveMode::Recursive)?;
        Ok(watcher)
    }

    pub(super) fn is_working(&self) -> bool {
        self.watcher.is_some()
    }

    /// Completes when something has changed since the last time.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}

#[cfg(unix)]
fn identity(dir: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(dir).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}
