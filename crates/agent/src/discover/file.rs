//! A list in a file.

use std::{io, path::Path};

use redis_allocator_crd::{Resource, SourceFile};
use tokio::{fs::File, io::AsyncReadExt as _};

use super::{
    list::{MAX_BYTES, Text, too_large},
    trouble::{INVALID, NOT_FOUND, Trouble, UNREACHABLE},
};

pub(super) async fn fetch(source: &SourceFile) -> Result<Vec<Resource>, Trouble> {
    let path = Path::new(&source.path);
    let failed = |error: io::Error| {
        let category = if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { UNREACHABLE };
        Trouble::new(category, format!("reading {} failed: {error}", source.path))
    };
    // Opening a pipe would wait for its writer, perhaps for ever.
    if !tokio::fs::metadata(path).await.map_err(failed)?.is_file() {
        return Err(Trouble::new(
            INVALID,
            format!("{} is not a file, allowed is a file that lists resources", source.path),
        ));
    }
    let file = File::open(path).await.map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).await.map_err(failed)?;
    if bytes.len() > MAX_BYTES {
        return Err(too_large(&source.path));
    }
    let read = Text { bytes, format: source.format, secret: false }.read().await;
    read.map_err(|trouble| trouble.about(&source.path))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use redis_allocator_crd::SourceFormat;

    use super::*;

    async fn read(path: &Path) -> Result<Vec<Resource>, Trouble> {
        fetch(&SourceFile { path: path.to_str().unwrap().to_owned(), format: SourceFormat::Lines }).await
    }

    #[tokio::test]
    async fn a_file_is_read_each_time_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list");
        for (text, items) in [("a\nb\n", 2), ("a\n", 1), ("", 0)] {
            fs::write(&path, text).unwrap();
            assert_eq!(read(&path).await.unwrap().len(), items);
        }
    }

    #[tokio::test]
    async fn what_can_t_be_read_is_told_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list");
        let missing = read(&path).await.unwrap_err();
        assert!(missing.category == "not_found" && missing.message.contains("/list failed: No such file"), "{missing}");
        let directory = read(dir.path()).await.unwrap_err();
        assert!(directory.category == "invalid" && directory.message.contains("is not a file"), "{directory}");
        fs::write(&path, "a\na\n").unwrap();
        let twice = read(&path).await.unwrap_err();
        assert!(twice.message.contains("/list: line 2: found the key of line 1 again"), "{twice}");
        fs::write(&path, vec![b'a'; MAX_BYTES + 1]).unwrap();
        let large = read(&path).await.unwrap_err();
        assert!(large.category == "too_large" && large.message.contains("longer than 8 MiB"), "{large}");
        fs::remove_file(&path).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
        assert!(read(&path).await.unwrap_err().message.contains("is not a file"), "and nobody waits for its writer");
    }
}
