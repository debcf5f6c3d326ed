//! The file source: a directory of manifests, watched, and read anew when something in it changes.

mod load;
mod merge;
mod report;
mod scan;
mod watch;
mod yaml;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::watch::Sender;
use tokio_util::sync::CancellationToken;

pub(crate) use self::report::{Problem, Shown};
use self::{
    merge::{Merged, Merger},
    scan::{Files, scan, scan_path},
    watch::Watch,
};
use super::{Declaration, SourceErrors};

/// How often the directory is read even if nothing is said to have changed: not every file system tells.
const RESCAN: Duration = Duration::from_secs(30);
/// The same, while the file system can't be watched.
const POLL: Duration = Duration::from_secs(2);

/// What a source of files needs.
#[derive(Debug, Clone)]
pub(crate) struct FileSource {
    pub(crate) dir: PathBuf,
    /// Whether a directory without any object means that nothing is declared.
    pub(crate) allow_empty: bool,
}

impl FileSource {
    /// Publishes what the directory declares, now and after each change, until told to stop.
    pub(crate) async fn run(self, declarations: Sender<Arc<Declaration>>, stop: CancellationToken) {
        let mut reader = Reader { source: self, files: Files::new(), merger: Merger::default(), last: None };
        let mut watch = Watch::new(&reader.source.dir);
        loop {
            // Reading and parsing may take a while, and the disk may be slow.
            let read = tokio::task::spawn_blocking(move || {
                let declaration = reader.read();
                (reader, declaration)
            });
            let declaration;
            (reader, declaration) = match read.await {
                Ok(done) => done,
                Err(error) => {
                    tracing::error!(%error, "reading the manifests failed; no change of them will be seen");
                    return;
                }
            };
            if let Some(declaration) = declaration {
                declarations.send_replace(Arc::new(declaration));
            }
            watch.renew(&reader.source.dir);
            let pause = if watch.is_working() { RESCAN } else { POLL };
            tokio::select! {
                () = stop.cancelled() => return,
                () = watch.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

/// Reads the directory again and again, and remembers what was good.
#[derive(Debug)]
struct Reader {
    source: FileSource,
    files: Files,
    merger: Merger,
    last: Option<Declaration>,
}

impl Reader {
    /// What is declared now; `None` when that is what it was.
    fn read(&mut self) -> Option<Declaration> {
        let declaration = match scan(&self.source.dir, &self.files) {
            Err(error) => self.unreadable(&error),
            Ok(files) => {
                self.files = files;
                let merged = self.merger.update(&self.files);
                self.declare(merged)
            }
        };
        if self.last.as_ref().is_some_and(|last| same(last, &declaration)) {
            return None;
        }
        self.report(&declaration);
        self.last = Some(declaration.clone());
        Some(declaration)
    }

    fn declare(&self, merged: Merged) -> Declaration {
        let refuse_empty = merged.empty && !self.source.allow_empty;
        let mut errors: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
        for problem in &merged.problems {
            errors.entry(problem.path()).or_default().push(problem.to_string());
        }
        let last = self.last.as_ref().map(|last| Arc::clone(&last.desired));
        Declaration {
            // What was declared before goes on until it is certain that it is not declared any more.
            desired: last.filter(|_| refuse_empty).unwrap_or_else(|| Arc::new(merged.desired)),
            complete: merged.complete && !refuse_empty,
            empty: merged.empty,
            trouble: refuse_empty.then(|| {
                format!(
                    "found no object in {}, allowed is a directory with manifests: what is managed stays as it is; with \
                     --allow-empty it would be deleted",
                    self.source.dir.display()
                )
            }),
            errors: errors.into_iter().map(|(place, errors)| SourceErrors { place, errors }).collect(),
            fine: merged.fine,
        }
    }

    fn unreadable(&self, error: &std::io::Error) -> Declaration {
        let dir = self.source.dir.display();
        Declaration {
            desired: self.last.as_ref().map(|last| Arc::clone(&last.desired)).unwrap_or_default(),
            complete: false,
            empty: false,
            trouble: Some(format!("reading {dir} failed ({error}): what is managed stays as it is")),
            errors: Vec::new(),
            fine: 0,
        }
    }

    /// Says what has changed for the worse or the better, each once.
    fn report(&self, now: &Declaration) {
        let before = self.last.as_ref();
        match (&now.trouble, before.and_then(|last| last.trouble.as_ref())) {
            (Some(trouble), last) if last != Some(trouble) => tracing::error!("{trouble}"),
            (None, Some(_)) => tracing::info!(dir = %self.source.dir.display(), "the manifests can be read again"),
            _ => {}
        }
        let known = |place: &Path| before.and_then(|last| last.errors.iter().find(|errors| errors.place == place));
        for errors in &now.errors {
            if known(&errors.place) != Some(errors) {
                for error in &errors.errors {
                    tracing::error!(file = %errors.place.display(), "{error}");
                }
            }
        }
        for fixed in before.map_or(&[][..], |last| &last.errors) {
            if !now.errors.iter().any(|errors| errors.place == fixed.place) {
                tracing::info!(file = %fixed.place.display(), "the file's errors are gone");
            }
        }
        tracing::info!(
            pools = now.desired.pools.len(),
            bindings =
                now.desired.pools.values().map(|pool| pool.bindings.len()).sum::<usize>() + now.desired.unpooled.len(),
            files = now.fine,
            files_with_errors = now.errors.len(),
            "manifests read"
        );
    }
}

fn same(a: &Declaration, b: &Declaration) -> bool {
    a.desired == b.desired
        && a.complete == b.complete
        && a.trouble == b.trouble
        && a.errors == b.errors
        && a.fine == b.fine
}

/// What a directory declares, to an agent that begins now.
pub(crate) fn read_once(source: FileSource) -> Declaration {
    let mut reader = Reader { source, files: Files::new(), merger: Merger::default(), last: None };
    reader.read().unwrap_or_default()
}

/// Everything that is wrong with files and directories, and how many files and objects there are.
pub(crate) fn check(paths: &[PathBuf]) -> Checked {
    let mut files = Files::new();
    for path in paths {
        files.extend(scan_path(path));
    }
    let objects = files.values().filter_map(|scanned| scanned.content.as_ref().ok()).map(Vec::len).sum();
    let mut problems = Merger::default().update(&files).problems;
    for problem in &mut problems {
        // What contradicts another file was found when the texts were gone.
        if problem.text.is_none() && problem.at.is_some() {
            problem.text = std::fs::read_to_string(&problem.file).ok().map(Into::into);
        }
    }
    Checked { files: files.len(), objects, problems }
}

/// What [`check`] found.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) files: usize,
    pub(crate) objects: usize,
    pub(crate) problems: Vec<Problem>,
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const POOL: &str = "apiVersion: redis-allocator.dev/v1alpha1\nkind: ResourcePool\nmetadata: {name: a}\nspec: {}\n";

    fn reader(dir: &Path, allow_empty: bool) -> Reader {
        let source = FileSource { dir: dir.to_owned(), allow_empty };
        Reader { source, files: Files::new(), merger: Merger::default(), last: None }
    }

    #[test]
    fn a_directory_that_lost_its_files_changes_nothing() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("a.yaml"), POOL).unwrap();
        let mut reader = reader(temp.path(), false);
        let first = reader.read().unwrap();
        assert!(first.complete && first.trouble.is_none());
        assert!(reader.read().is_none(), "nothing has changed");

        fs::remove_file(temp.path().join("a.yaml")).unwrap();
        let emptied = reader.read().unwrap();
        assert_eq!(emptied.desired, first.desired);
        assert!(!emptied.complete && emptied.trouble.unwrap().contains("--allow-empty"));

        fs::remove_dir(temp.path()).unwrap();
        let gone = reader.read().unwrap();
        assert_eq!(gone.desired, first.desired);
        assert!(!gone.complete && gone.trouble.unwrap().contains("reading"));

        fs::create_dir(temp.path()).unwrap();
        fs::write(temp.path().join("a.yaml"), POOL).unwrap();
        let back = reader.read().unwrap();
        assert!(back.complete && back.trouble.is_none());
    }

    #[test]
    fn an_empty_directory_is_a_declaration_if_it_may_be() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("a.yaml"), POOL).unwrap();
        let mut reader = reader(temp.path(), true);
        reader.read().unwrap();
        fs::remove_file(temp.path().join("a.yaml")).unwrap();
        let emptied = reader.read().unwrap();
        assert!(emptied.complete && emptied.trouble.is_none() && emptied.desired.pools.is_empty());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_edit_a_rename_over_and_a_swapped_link_are_seen_at_once() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().to_owned();
        fs::write(dir.join("a.yaml"), POOL).unwrap();
        let (sender, mut receiver) = tokio::sync::watch::channel(Arc::default());
        let stop = CancellationToken::new();
        let running = tokio::spawn(FileSource { dir: dir.clone(), allow_empty: false }.run(sender, stop.clone()));
        let mut pools = async |expected: &[&str]| {
            let seen = receiver.wait_for(|declaration: &Arc<Declaration>| {
                declaration.desired.pools.keys().map(redis_allocator::PoolName::name).eq(expected.iter().copied())
            });
            // Far below the time of the rescan.
            tokio::time::timeout(Duration::from_secs(5), seen).await.unwrap().unwrap();
        };
        pools(&["a"]).await;

        fs::write(dir.join("a.yaml"), POOL.replace("name: a", "name: b")).unwrap();
        pools(&["b"]).await;

        for name in ["c", "d"] {
            fs::write(dir.join(".a.yaml.swp"), POOL.replace("name: a", &format!("name: {name}"))).unwrap();
            fs::rename(dir.join(".a.yaml.swp"), dir.join("a.yaml")).unwrap();
            pools(&[name]).await;
        }

        fs::remove_file(dir.join("a.yaml")).unwrap();
        for (version, name) in [("..1", "e"), ("..2", "f"), ("..3", "g")] {
            fs::create_dir(dir.join(version)).unwrap();
            fs::write(dir.join(version).join("p.yaml"), POOL.replace("name: a", &format!("name: {name}"))).unwrap();
            std::os::unix::fs::symlink(version, dir.join("..data_tmp")).unwrap();
            fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
            if version == "..1" {
                std::os::unix::fs::symlink("..data/p.yaml", dir.join("p.yaml")).unwrap();
            }
            pools(&[name]).await;
        }
        stop.cancel();
        running.await.unwrap();
    }
}
