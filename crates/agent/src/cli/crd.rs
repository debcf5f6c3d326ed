//! `redis-allocator crd`: the kinds, as an API server takes them. It must not know of any server.

use std::{
    io::{self, ErrorKind, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use redis_allocator_crd::crds;

/// Tells a reader of the file that it goes into where it is from.
const HEAD: &str = "# Printed by `redis-allocator crd`; not edited by hand.\n";

/// What `crd` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Install them: redis-allocator crd | kubectl apply --server-side -f -")]
pub(crate) struct CrdArgs {}

pub(crate) fn run(_args: &CrdArgs) -> Result<ExitCode> {
    match io::stdout().lock().write_all(yaml()?.as_bytes()) {
        Ok(()) => {}
        // `| head` has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        Err(error) => return Err(error).context("writing to standard output failed"),
    }
    Ok(ExitCode::SUCCESS)
}

/// All definitions as one stream of documents. The same each time: the types fix the order of everything in it.
fn yaml() -> Result<String> {
    let documents = serde_saphyr::to_string_multiple(&crds()).context("writing YAML failed")?;
    Ok(format!("{HEAD}---\n{documents}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_what_the_types_say() {
        let text = yaml().unwrap();
        assert_eq!(yaml().unwrap(), text, "it is the same each time");
        let read: Vec<serde_json::Value> = serde_saphyr::from_multiple(&text).unwrap();
        let definitions: Vec<_> = crds().iter().map(|crd| serde_json::to_value(crd).unwrap()).collect();
        assert_eq!(read, definitions);
        assert_eq!(read.len(), redis_allocator_crd::Kind::ALL.len());
    }
}
