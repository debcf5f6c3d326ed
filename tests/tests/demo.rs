//! The demo, run for real: it shows what it promises, ends by itself, and leaves nothing behind.

mod program;

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use e2e::{Flavor, eventually};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Many times what it takes.
const LIMIT: Duration = Duration::from_mins(3);

/// The demo, whose every file goes to `directory`.
fn demo(directory: &Path) -> Result<Command> {
    let mut demo = Command::new(program::binary("demo")?);
    demo.env("TMPDIR", directory).env("REDIS_ALLOCATOR_SERVER", Flavor::Valkey.binary()?);
    demo.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(demo)
}

fn wait(child: Child, limit: Duration) -> Result<(String, std::process::Output)> {
    let pid = Pid::from_child(&child);
    let begun = Instant::now();
    let waiting = std::thread::spawn(move || child.wait_with_output());
    while !waiting.is_finished() {
        if begun.elapsed() > limit {
            kill_process(pid, Signal::TERM)?;
            bail!("the demo did not end within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let output = waiting.join().map_err(|_| anyhow::anyhow!("waiting for the demo failed"))??;
    Ok((String::from_utf8_lossy(&output.stdout).into_owned(), output))
}

/// No file, and no process that was started with the demo's environment or files.
fn nothing_is_left(directory: &Path) -> Result<()> {
    let left: Vec<_> = fs::read_dir(directory)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    ensure!(left.is_empty(), "files were left behind: {left:?}");
    let marker = directory.display().to_string();
    for process in fs::read_dir("/proc")?.flatten() {
        let read = |file| fs::read(process.path().join(file)).map(|it| String::from_utf8_lossy(&it).into_owned());
        let (environment, command) = (read("environ").unwrap_or_default(), read("cmdline").unwrap_or_default());
        let its = environment.contains(&marker) || command.contains(&marker);
        ensure!(!its || command.is_empty(), "process {} was left behind: {command}", process.path().display());
    }
    Ok(())
}

#[test]
fn the_demo_shows_what_it_promises_and_leaves_nothing_behind() -> Result<()> {
    let directory = TempDir::new()?;
    let (told, output) = wait(demo(directory.path())?.spawn()?, LIMIT)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{told}\n{errors}", output.status);
    let mut rest = told.as_str();
    for promised in [
        "pool default/gpus is synced",
        "gpu-3 is leased by trainer-1",
        "gpu-1   Leased   trainer-2",
        "trainer-2 is dead",
        "1 lease expired, 1 reclaimed by the agent's GC",
        "is quarantined after",
        "is free again after",
        "ms after the save",
        "gpu-4 is leased by trainer-3",
        "the agent was told to end",
    ] {
        let at = rest.find(promised).with_context(|| format!("no {promised:?}, or too early, in:\n{told}"))?;
        rest = &rest[at..];
    }
    nothing_is_left(directory.path())
}

#[tokio::test]
async fn a_demo_that_is_interrupted_leaves_nothing_behind_either() -> Result<()> {
    let directory = TempDir::new()?;
    let child = demo(directory.path())?.spawn()?;
    let pid = Pid::from_child(&child);
    // Late enough that agent, server and files are there.
    eventually(LIMIT, async || {
        let temporary = fs::read_dir(directory.path())?.flatten().next().context("no files yet")?;
        ensure!(temporary.path().join("state/agent.json").exists(), "no agent yet");
        Ok(())
    })
    .await?;
    kill_process(pid, Signal::INT)?;
    let (_, output) = wait(child, LIMIT)?;
    assert_eq!(output.status.code(), Some(1));
    nothing_is_left(directory.path())
}
