//! The project's own programs, as a user would start them. It must not know what they are asked to do.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};

/// The command line, `redis-allocator`, with nothing in its environment that would lead it to another server.
#[allow(dead_code, reason = "the demo is a program of its own")]
pub(crate) fn redis_allocator() -> Result<Command> {
    let mut command = Command::new(binary("redis-allocator")?);
    command.env_remove("REDIS_URL").env("REDIS_ALLOCATOR_STATE_DIR", "/nonexistent/state");
    Ok(command)
}

/// Path of a binary of this workspace, up to date.
pub(crate) fn binary(name: &str) -> Result<PathBuf> {
    // Held while cargo runs: the tests beside this one need the same build, and wait for it.
    static BUILT: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(directory) = built.as_ref() {
        return Ok(directory.join(name));
    }
    let test = std::env::current_exe()?;
    // target/<profile>/deps/<test>
    let profile = test.parent().and_then(Path::parent).context("this test is not where cargo puts tests")?;
    let target = profile.parent().context("there is no target directory")?;
    // `cargo test` does not build the binaries of other packages. This is the command of `make test`, and costs next to
    // nothing once that has run.
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--workspace", "--bins"]).arg("--target-dir").arg(target);
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    // What cargo tells this test about its own package would make ring, and all that stands on it, build once more.
    for (variable, _) in std::env::vars_os() {
        let name = variable.to_string_lossy();
        if ["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_BIN_"].iter().any(|prefix| name.starts_with(prefix)) {
            cargo.env_remove(&variable);
        }
    }
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let output = cargo.output().context("cargo can't be run")?;
    ensure!(output.status.success(), "building the binaries failed:\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(built.insert(profile.to_owned()).join(name))
}
