//! From a directory to its files: which of them are manifests, and what is in each, read at most once per change.
//!
//! Knows nothing of what earlier scans declared; a file that can't be read is a file with a problem.

use std::{
    collections::BTreeMap,
    fs::{self, File, Metadata},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use sha2::{Digest as _, Sha256};

use super::{
    load::{Declared, load},
    report::Problem,
};

/// Largest file that is read: a hundred times what 4,096 resources take.
const MAX_BYTES: u64 = 16 << 20;
/// Most files of a directory tree: someone who gives `/` means something else.
const MAX_FILES: usize = 10_000;
/// Deepest directory.
const MAX_DEPTH: usize = 16;
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

type Fingerprint = [u8; 32];

/// What was found in one file.
#[derive(Debug, Clone)]
pub(crate) struct Scanned {
    /// Of the content; absent if it could not be read.
    fingerprint: Option<Fingerprint>,
    pub(crate) content: Result<Vec<Declared>, Vec<Problem>>,
    pub(crate) hides: Hides,
}

/// Which other files may be there unseen because of a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hides {
    Nothing,
    /// Those below the path, which is a directory or may be one.
    Below,
    /// The path itself and all that come after it.
    Rest,
}

impl Hides {
    /// Whether a problem at `path` may be why `file` was not found.
    pub(crate) fn may_hide(self, path: &Path, file: &Path) -> bool {
        match self {
            Self::Nothing => false,
            Self::Below => file.starts_with(path),
            // The walk takes paths in their order.
            Self::Rest => file >= path,
        }
    }
}

/// The manifests of a directory, by path.
pub(crate) type Files = BTreeMap<Arc<Path>, Arc<Scanned>>;

/// Reads a directory tree. Files with the same content as in `before` are not parsed again.
///
/// What can't be read is reported, and [`Scanned::hides`] says of which files nothing is known because of it.
///
/// Entries whose names begin with a dot are skipped, so that of a mounted `ConfigMap` (`pools.yaml -> ..data/pools.yaml`)
/// each file is seen once.
///
/// # Errors
/// When the directory itself can't be listed.
pub(crate) fn scan(dir: &Path, before: &Files) -> io::Result<Files> {
    let mut walk = Walk { before, found: Files::new(), ancestors: Vec::new() };
    // The root may have any name, and be a link to wherever.
    let metadata = fs::metadata(dir)?;
    if !metadata.is_dir() {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, "it is not a directory"));
    }
    walk.directory(dir, &metadata)?;
    Ok(walk.found)
}

/// Reads one path, as given by a user: a file whatever its name, or a directory.
pub(crate) fn scan_path(path: &Path) -> Files {
    let file: Arc<Path> = path.into();
    let failed = |error: &io::Error| Files::from([(Arc::clone(&file), unreadable(&file, error, Hides::Below))]);
    match fs::metadata(path) {
        Err(error) => failed(&error),
        Ok(metadata) if metadata.is_dir() => scan(path, &Files::new()).unwrap_or_else(|error| failed(&error)),
        Ok(metadata) => Files::from([(Arc::clone(&file), read(&file, &metadata, None))]),
    }
}

struct Walk<'a> {
    before: &'a Files,
    found: Files,
    /// Device and inode of the directories on the way here, to notice a link back to one of them.
    ancestors: Vec<(u64, u64)>,
}

impl Walk<'_> {
    fn directory(&mut self, dir: &Path, metadata: &Metadata) -> io::Result<()> {
        let identity = identity(metadata);
        if self.ancestors.contains(&identity) {
            let message = "found a symbolic link to a directory that contains it, allowed is a tree without loops";
            self.problem(dir, Hides::Nothing, message);
            return Ok(());
        }
        if self.ancestors.len() >= MAX_DEPTH {
            self.problem(dir, Hides::Below, format!("found a directory deeper than allowed: {MAX_DEPTH} levels"));
            return Ok(());
        }
        let mut entries = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>()?;
        entries.sort();
        self.ancestors.push(identity);
        for path in entries {
            self.entry(&path);
        }
        self.ancestors.pop();
        Ok(())
    }

    fn entry(&mut self, path: &Path) {
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if hidden || self.found.len() > MAX_FILES {
            return;
        }
        if self.found.len() == MAX_FILES {
            self.problem(
                path,
                Hides::Rest,
                format!("found more files than allowed: {MAX_FILES}; this one and all behind it are left out"),
            );
            return;
        }
        let is_manifest =
            path.extension().and_then(|extension| extension.to_str()).is_some_and(|it| EXTENSIONS.contains(&it));
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => {
                if let Err(error) = self.directory(path, &metadata) {
                    self.unseen(path, &error);
                }
            }
            Ok(metadata) if is_manifest => {
                let file: Arc<Path> = path.into();
                let scanned = read(&file, &metadata, self.before.get(&file));
                self.found.insert(file, scanned);
            }
            // A link to nowhere, a disk that fails: whatever its name, there may be a directory behind it.
            Err(error) => self.unseen(path, &error),
            Ok(_) => {}
        }
    }

    /// A path that can't be looked at or into.
    fn unseen(&mut self, path: &Path, error: &io::Error) {
        let is_gone = |error: io::Error| error.kind() == io::ErrorKind::NotFound;
        if fs::symlink_metadata(path).is_err_and(is_gone) {
            // Removed since it was listed.
            return;
        }
        let file: Arc<Path> = path.into();
        self.found.insert(Arc::clone(&file), unreadable(&file, error, Hides::Below));
    }

    fn problem(&mut self, path: &Path, hides: Hides, message: impl Into<String>) {
        let file: Arc<Path> = path.into();
        self.found.insert(Arc::clone(&file), Scanned::failed(Problem::of_file(&file, message), hides));
    }
}

#[cfg(unix)]
fn identity(metadata: &Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt as _;
    (metadata.dev(), metadata.ino())
}

impl Scanned {
    pub(super) fn failed(problem: Problem, hides: Hides) -> Arc<Self> {
        Arc::new(Self { fingerprint: None, content: Err(vec![problem]), hides })
    }
}

fn unreadable(file: &Arc<Path>, error: &io::Error, hides: Hides) -> Arc<Scanned> {
    let message = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "found no permission to read it, allowed is a file that the agent's user may read".to_owned()
        }
        io::ErrorKind::NotFound => "found nothing there, allowed is a file or a directory".to_owned(),
        _ if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            "found a loop of symbolic links, allowed is a link that leads to a file".to_owned()
        }
        _ => format!("reading failed: {error}"),
    };
    Scanned::failed(Problem::of_file(file, message), hides)
}

fn read(file: &Arc<Path>, metadata: &Metadata, before: Option<&Arc<Scanned>>) -> Arc<Scanned> {
    // Opening a pipe would wait for a writer.
    if !metadata.is_file() {
        let message = "found a device, socket or pipe, allowed is a regular file";
        return Scanned::failed(Problem::of_file(file, message), Hides::Nothing);
    }
    if metadata.len() > MAX_BYTES {
        return too_large(file, metadata.len());
    }
    let mut bytes = Vec::new();
    // It may have grown since it was measured.
    match File::open(file).and_then(|opened| opened.take(MAX_BYTES + 1).read_to_end(&mut bytes)) {
        Err(error) => return unreadable(file, &error, Hides::Nothing),
        Ok(length) if length as u64 > MAX_BYTES => return too_large(file, length as u64),
        Ok(_) => {}
    }
    let fingerprint: Fingerprint = Sha256::digest(&bytes).into();
    match before {
        Some(before) if before.fingerprint == Some(fingerprint) => Arc::clone(before),
        _ => {
            let content = load(file, &bytes);
            Arc::new(Scanned { fingerprint: Some(fingerprint), content, hides: Hides::Nothing })
        }
    }
}

fn too_large(file: &Arc<Path>, found: u64) -> Arc<Scanned> {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let message = format!(
        "found a file of {} MiB, allowed are {} MiB: split it, or use ranges instead of single resources",
        mib(found),
        mib(MAX_BYTES)
    );
    Scanned::failed(Problem::of_file(file, message), Hides::Nothing)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn pool(name: &str) -> String {
        format!(
            "apiVersion: redis-allocator.dev/v1alpha1\nkind: ResourcePool\nmetadata: {{name: {name}}}\nspec: {{}}\n"
        )
    }

    fn names(files: &Files) -> Vec<String> {
        let content = files.values().filter_map(|scanned| scanned.content.as_ref().ok());
        content.flatten().map(|declared| declared.object.name()).collect()
    }

    fn problems(files: &Files) -> Vec<String> {
        let content = files.values().filter_map(|scanned| scanned.content.as_ref().err());
        content.flatten().map(ToString::to_string).collect()
    }

    #[test]
    fn manifests_are_found_in_subdirectories_and_hidden_entries_are_not() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        fs::create_dir_all(dir.join("team/.git")).unwrap();
        for (path, name) in [
            ("a.yaml", "a"),
            ("b.yml", "b"),
            ("team/c.json", "c"),
            (".hidden.yaml", "x"),
            ("team/.git/d.yaml", "x"),
            ("e.txt", "x"),
        ] {
            fs::write(dir.join(path), pool(name)).unwrap();
        }
        let files = scan(dir, &Files::new()).unwrap();
        assert_eq!((names(&files), problems(&files)), (["a", "b", "c"].map(str::to_owned).to_vec(), vec![]));
    }

    #[test]
    fn a_mounted_config_map_is_read_through_its_links_and_once() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        fs::create_dir(dir.join("..2026_01")).unwrap();
        fs::write(dir.join("..2026_01/pools.yaml"), pool("a")).unwrap();
        symlink("..2026_01", dir.join("..data")).unwrap();
        symlink("..data/pools.yaml", dir.join("pools.yaml")).unwrap();
        assert_eq!(names(&scan(dir, &Files::new()).unwrap()), ["a"]);
    }

    #[test]
    fn links_that_loop_are_reported_and_the_rest_is_read() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        fs::write(dir.join("a.yaml"), pool("a")).unwrap();
        fs::create_dir(dir.join("sub")).unwrap();
        symlink("..", dir.join("sub/up")).unwrap();
        symlink("self.yaml", dir.join("self.yaml")).unwrap();
        symlink("nowhere.yaml", dir.join("dangling.yaml")).unwrap();
        symlink("nowhere", dir.join("team")).unwrap();
        let files = scan(dir, &Files::new()).unwrap();
        assert_eq!(names(&files), ["a"]);
        let problems = problems(&files);
        assert_eq!(problems.len(), 4, "{problems:?}");
        assert!(problems.iter().any(|line| line.contains("sub/up") && line.contains("loop")), "{problems:?}");
        assert!(problems.iter().any(|line| line.contains("self.yaml") && line.contains("loop")), "{problems:?}");
        assert!(problems.iter().any(|line| line.contains("dangling.yaml")), "{problems:?}");
        assert!(problems.iter().any(|line| line.contains("team")), "it may have been a directory: {problems:?}");
    }

    #[test]
    fn a_file_of_100_mb_is_refused_without_being_read() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("large.yaml");
        // Sparse: reading it would take a while, and its zeros would be another error.
        File::create(&path).unwrap().set_len(100 << 20).unwrap();
        let problems = problems(&scan(temp.path(), &Files::new()).unwrap());
        assert!(problems[0].contains("large.yaml: found a file of 100 MiB, allowed are 16 MiB"), "{problems:?}");
    }

    #[test]
    fn what_is_no_file_is_not_opened() {
        let temp = tempfile::tempdir().unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, temp.path().join("pipe.yaml"), rustix::fs::Mode::RUSR).unwrap();
        let problems = problems(&scan(temp.path(), &Files::new()).unwrap());
        assert!(problems[0].contains("allowed is a regular file"), "{problems:?}");
    }

    #[test]
    fn an_unchanged_file_is_not_parsed_again() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("a.yaml"), pool("a")).unwrap();
        let first = scan(temp.path(), &Files::new()).unwrap();
        let second = scan(temp.path(), &first).unwrap();
        let only = |files: &Files| Arc::clone(files.values().next().unwrap());
        assert!(Arc::ptr_eq(&only(&first), &only(&second)));
        fs::write(temp.path().join("a.yaml"), pool("b")).unwrap();
        assert_eq!(names(&scan(temp.path(), &second).unwrap()), ["b"]);
    }

    #[test]
    fn a_missing_directory_is_an_error_and_so_is_a_file() {
        let temp = tempfile::tempdir().unwrap();
        scan(&temp.path().join("nowhere"), &Files::new()).unwrap_err();
        fs::write(temp.path().join("a.yaml"), pool("a")).unwrap();
        scan(&temp.path().join("a.yaml"), &Files::new()).unwrap_err();
    }
}
