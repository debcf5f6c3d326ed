//! JSON files that are there whole or not at all, whenever the process or the machine stops.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

use serde::{Serialize, de::DeserializeOwned};

use super::{StateError, failed};

/// Reads a file; absent is `None`.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StateError> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|source| StateError::Garbled { path: path.to_owned(), source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("reading", path)(error)),
    }
}

/// Replaces a file: written beside it, synced, renamed over it, and the rename synced too.
pub(super) fn write<T: Serialize>(path: &Path, content: &T) -> Result<(), StateError> {
    let text =
        serde_json::to_vec_pretty(content).map_err(|source| StateError::Garbled { path: path.to_owned(), source })?;
    let write = || -> io::Result<()> {
        let dir = path.parent().unwrap_or(Path::new("."));
        let mut beside = tempfile::NamedTempFile::new_in(dir)?;
        beside.write_all(&text)?;
        beside.as_file().sync_all()?;
        beside.persist(path).map_err(|error| error.error)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(failed("writing", path))
}

/// Removes a file; absent is fine.
pub(super) fn remove(path: &Path) -> Result<(), StateError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", path)(error)),
        _ => Ok(()),
    }
}
