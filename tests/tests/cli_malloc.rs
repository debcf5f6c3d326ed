//! `redis-allocator malloc`: any command holds a lease for exactly as long as it runs, whatever happens to it, to the
//! lease, or to `redis-allocator`.

mod program;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use e2e::{Flavor, Server, eventually};
use redis_allocator::{Client, Item, Ownership, Place, Pool, PoolSettings};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;

/// For what happens at once, on a machine that may have no time.
const SOON: Duration = Duration::from_secs(30);

/// A server with the pool `default/gpus`, whose only resource is gpu-0.
struct World {
    server: Server,
    gpus: Pool,
    files: TempDir,
}

impl World {
    async fn new() -> Result<Self> {
        // Before any lease is granted: a build takes longer than leases last.
        program::binary("redis-allocator")?;
        let server = Server::start(Flavor::Redis).await?;
        let gpus = Client::connect(&server.url()).await?.pool("gpus")?;
        let settings = PoolSettings { max_ttl: Some(Duration::from_mins(10)), ..PoolSettings::default() };
        gpus.configure(&settings, &Ownership::default()).await?;
        let item = Item::new("gpu-0".parse()?).label("zone", "a").param("index", 3).param("host", "a b");
        gpus.extend([item]).await?;
        Ok(Self { server, gpus, files: TempDir::new()? })
    }

    fn malloc(&self, options: &[&str], command: &[&str]) -> Result<Command> {
        let mut malloc = program::redis_allocator()?;
        malloc.args(["malloc", "gpus", "--redis-url", &self.server.url()]).args(options).arg("--").args(command);
        malloc.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(malloc)
    }

    /// Runs a shell script under a lease, to its end.
    async fn run(&self, options: &[&str], script: &str) -> Result<Output> {
        let child = self.malloc(options, &["sh", "-c", script])?.spawn()?;
        output(child).await
    }

    /// Starts a shell script, which says that it runs by making the file `ready`.
    async fn start(&self, options: &[&str], script: &str) -> Result<Child> {
        let script = script.replace("READY", &self.file("ready").display().to_string());
        let child = self.malloc(options, &["sh", "-c", &script])?.spawn()?;
        appears(&self.file("ready")).await?;
        Ok(child)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    async fn place(&self) -> Result<Place> {
        Ok(self.gpus.get("gpu-0").await?.context("gpu-0 is gone")?.place)
    }

    async fn is_free(&self) -> Result<()> {
        let place = self.place().await?;
        ensure!(matches!(place, Place::Free { .. }), "gpu-0 is {place:?}");
        Ok(())
    }
}

/// What a process printed and how it ended, once it has.
async fn output(child: Child) -> Result<Output> {
    let pid = Pid::from_child(&child);
    let waiting = tokio::task::spawn_blocking(move || child.wait_with_output());
    if let Ok(output) = tokio::time::timeout(2 * SOON, waiting).await {
        return Ok(output??);
    }
    kill_process(pid, Signal::KILL)?;
    bail!("redis-allocator malloc did not end")
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

async fn appears(path: &Path) -> Result<()> {
    eventually(SOON, async || {
        ensure!(path.exists(), "{} does not appear", path.display());
        Ok(())
    })
    .await
}

async fn ends(pid: i32) -> Result<()> {
    eventually(SOON, async || {
        // A process that has ended and is not reaped yet has ended.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let zombie = stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'));
        let runs = !zombie && Pid::from_raw(pid).is_some_and(|pid| test_kill_process(pid).is_ok());
        ensure!(!runs, "process {pid} runs on");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_command_is_told_what_it_holds_and_its_code_is_ours() -> Result<()> {
    let world = World::new().await?;
    let script = "env | grep ^REDIS_ALLOCATOR_; exit 7";
    let output = world.run(&["--ttl", "30s", "--owner", "me", "--bind", "job-1"], script).await?;

    assert_eq!(code(&output), Some(7), "{}", stderr(&output));
    let environment = String::from_utf8(output.stdout)?;
    for expected in [
        "REDIS_ALLOCATOR_POOL=default/gpus",
        "REDIS_ALLOCATOR_KEY=gpu-0",
        r#"REDIS_ALLOCATOR_PARAMS={"host":"a b","index":3}"#,
        "REDIS_ALLOCATOR_PARAM_INDEX=3",
        "REDIS_ALLOCATOR_PARAM_HOST=a b",
        r#"REDIS_ALLOCATOR_LABELS={"zone":"a"}"#,
        "REDIS_ALLOCATOR_OWNER=me",
        "REDIS_ALLOCATOR_BINDING=job-1",
        "REDIS_ALLOCATOR_TTL_MS=30000",
    ] {
        assert!(environment.lines().any(|line| line == expected), "no {expected} in:\n{environment}");
    }
    let token = environment.lines().find_map(|line| line.strip_prefix("REDIS_ALLOCATOR_FENCING_TOKEN="));
    assert_eq!(token.context("no token")?.parse::<u64>()?, world.gpus.info().await?.last_token);
    world.is_free().await
}

#[tokio::test]
async fn a_signal_that_ends_the_command_shows_in_the_code() -> Result<()> {
    let world = World::new().await?;
    assert_eq!(code(&world.run(&[], "kill -KILL $$").await?), Some(128 + 9));
    world.is_free().await
}

#[tokio::test]
async fn each_way_of_not_running_the_command_has_its_code() -> Result<()> {
    let world = World::new().await?;
    let touch = world.file("touched");
    let touch = touch.display().to_string();
    let codes = async |options: &[&str], command: &[&str]| {
        let output = output(world.malloc(options, command)?.spawn()?).await?;
        anyhow::Ok((code(&output), stderr(&output)))
    };

    let (found, message) = codes(&[], &["/nonexistent/command"]).await?;
    assert_eq!(found, Some(127), "{message}");
    assert!(message.contains("/nonexistent/command"), "{message}");
    world.is_free().await?;
    assert_eq!(codes(&[], &["/etc/passwd"]).await?.0, Some(126));
    world.is_free().await?;

    let (found, message) = codes(&["--ttl", "2h"], &["touch", &touch]).await?;
    assert_eq!(found, Some(1), "{message}");
    assert!(message.contains("refuses"), "{message}");
    assert_eq!(codes(&["--ttl", "soon"], &["touch", &touch]).await?.0, Some(2));
    let (found, message) = codes(&["-n", "elsewhere"], &["touch", &touch]).await?;
    assert_eq!(found, Some(1), "{message}");
    assert!(message.contains("there is no pool elsewhere/gpus"), "{message}");

    let lease = world.gpus.malloc().await?.context("gpu-0 should be free")?;
    let (found, message) = codes(&[], &["touch", &touch]).await?;
    assert_eq!(found, Some(75), "{message}");
    assert!(message.contains("nothing is free"), "{message}");
    lease.free().await?;

    world.server.kill();
    let (found, message) = codes(&[], &["touch", &touch]).await?;
    assert_eq!(found, Some(69), "{message}");
    assert!(!world.file("touched").exists(), "the command ran without a lease");
    Ok(())
}

#[tokio::test]
async fn the_lease_is_renewed_while_the_command_runs() -> Result<()> {
    let world = World::new().await?;
    let child = world.start(&["--ttl", "2s"], "touch READY; sleep 6").await?;
    let Place::Leased(at_first) = world.place().await? else { bail!("gpu-0 should be leased") };
    tokio::time::sleep(Duration::from_millis(4500)).await;
    assert!(world.gpus.malloc().await?.is_none(), "somebody else got it, long after the first two seconds");
    let Place::Leased(later) = world.place().await? else { bail!("gpu-0 should still be leased") };
    assert_eq!(at_first.token, later.token);
    assert_eq!(code(&output(child).await?), Some(0));
    world.is_free().await
}

#[tokio::test]
async fn the_lease_is_held_until_the_last_process_of_the_group_has_ended() -> Result<()> {
    let world = World::new().await?;
    let done = world.file("done");
    let script = format!("(while [ ! -e {0} ]; do sleep 0.05; done) & touch READY; exit 3", done.display());
    let mut child = world.start(&[], &script).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(child.try_wait()?.is_none(), "a process in the background is still there");
    assert!(matches!(world.place().await?, Place::Leased(_)));
    fs::write(done, "")?;
    assert_eq!(code(&output(child).await?), Some(3));
    world.is_free().await
}

#[tokio::test]
async fn signals_are_passed_on_to_the_whole_group() -> Result<()> {
    let world = World::new().await?;
    let script = format!(
        "(trap : USR1; trap 'touch {}; exit' TERM; touch READY; while :; do sleep 0.05; done) &
         trap 'touch {}' USR1; trap 'exit 5' TERM; while [ ! -e READY ]; do sleep 0.05; done; touch {}
         while :; do sleep 0.05; done",
        world.file("background").display(),
        world.file("usr1").display(),
        world.file("ready2").display()
    );
    let child = world.start(&[], &script).await?;
    appears(&world.file("ready2")).await?;
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::USR1)?;
    appears(&world.file("usr1")).await?;
    kill_process(pid, Signal::TERM)?;
    assert_eq!(code(&output(child).await?), Some(5));
    assert!(world.file("background").exists(), "TERM reached the shell alone");
    world.is_free().await
}

#[tokio::test]
async fn a_command_that_ignores_term_is_killed_after_the_grace() -> Result<()> {
    let world = World::new().await?;
    let script = "trap '' TERM; touch READY; while :; do sleep 0.05; done";
    let child = world.start(&["--grace", "1s"], script).await?;
    let asked = Instant::now();
    kill_process(Pid::from_child(&child), Signal::TERM)?;
    assert_eq!(code(&output(child).await?), Some(128 + 9));
    let took = asked.elapsed();
    // It would be ten seconds if nothing had been asked for.
    assert!((Duration::from_secs(1)..Duration::from_secs(9)).contains(&took), "it took {took:?}");
    world.is_free().await
}

#[tokio::test]
async fn a_lease_that_is_taken_away_stops_the_command() -> Result<()> {
    let world = World::new().await?;
    let child = world.start(&["--ttl", "2s"], "touch READY; exec sleep 60").await?;
    assert!(world.gpus.force_free("gpu-0").await?);
    let output = output(child).await?;
    assert_eq!(code(&output), Some(79), "{}", stderr(&output));
    assert!(stderr(&output).contains("gpu-0 of pool default/gpus is lost"), "{}", stderr(&output));
    Ok(())
}

#[tokio::test]
async fn when_the_server_is_silent_the_command_is_dead_before_its_lease_ends() -> Result<()> {
    const TTL: Duration = Duration::from_secs(6);
    let world = World::new().await?;
    // It ignores TERM: only KILL ends it, which must come in time. It says itself how long it has lived.
    let script = format!(
        "trap '' TERM; echo $$ >{}; touch READY; while :; do : >{}; sleep 0.05; done",
        world.file("pid").display(),
        world.file("alive").display()
    );
    let child = world.start(&["--ttl", "6s", "--grace", "30s"], &script).await?;
    let command: i32 = fs::read_to_string(world.file("pid"))?.trim().parse()?;
    let silent = SystemTime::now();
    world.server.pause()?;
    ends(command).await?;
    let took = fs::metadata(world.file("alive"))?.modified()?.duration_since(silent)?;
    // The last renewal was asked for before the silence: the lease's time counts from there.
    assert!(took < TTL, "the command ran on for {took:?}, its lease for at most {TTL:?}");
    world.server.resume()?;
    let output = output(child).await?;
    assert_eq!(code(&output), Some(79), "{}", stderr(&output));
    Ok(())
}

#[tokio::test]
async fn a_watchdog_stops_the_command_of_a_killed_redis_allocator() -> Result<()> {
    let world = World::new().await?;
    let script =
        format!("trap '' TERM; echo $$ >{}; touch READY; while :; do sleep 0.05; done", world.file("pid").display());
    let mut child = world.start(&["--ttl", "3s"], &script).await?;
    let command: i32 = fs::read_to_string(world.file("pid"))?.trim().parse()?;
    let Place::Leased(lease) = world.place().await? else { bail!("gpu-0 should be leased") };
    child.kill()?;
    child.wait()?;
    ends(command).await?;
    // Nobody returned the lease: it still keeps others away, and comes back when its time is over.
    let Place::Leased(still) = world.place().await? else { bail!("gpu-0 should be leased still") };
    assert_eq!(still.token, lease.token);
    eventually(SOON, async || world.gpus.malloc().await?.context("gpu-0 is not free again")).await?.free().await?;
    Ok(())
}

#[tokio::test]
async fn a_watchdog_stops_the_command_of_a_stopped_redis_allocator_before_the_lease_ends() -> Result<()> {
    let world = World::new().await?;
    let script =
        format!("trap '' TERM; echo $$ >{}; touch READY; while :; do sleep 0.05; done", world.file("pid").display());
    let mut child = world.start(&["--ttl", "6s"], &script).await?;
    let command: i32 = fs::read_to_string(world.file("pid"))?.trim().parse()?;
    kill_process(Pid::from_child(&child), Signal::STOP)?;
    ends(command).await?;
    let place = world.place().await?;
    // Only KILL ends this process, which would renew again.
    child.kill()?;
    child.wait()?;
    assert!(matches!(place, Place::Leased(_)), "the command outlived its lease: {place:?}");
    Ok(())
}

#[tokio::test]
async fn what_would_suspend_it_does_not_keep_it_from_renewing() -> Result<()> {
    let world = World::new().await?;
    let child = world.start(&["--ttl", "2s"], "touch READY; sleep 5; exit 7").await?;
    for signal in [Signal::TSTP, Signal::TTIN, Signal::TTOU] {
        kill_process(Pid::from_child(&child), signal)?;
    }
    let output = output(child).await?;
    assert_eq!(code(&output), Some(7), "{}", stderr(&output));
    assert!(stderr(&output).contains("can't be suspended"), "{}", stderr(&output));
    world.is_free().await
}

#[tokio::test]
async fn a_command_with_a_terminal_can_read_from_it() -> Result<()> {
    let world = World::new().await?;
    let binary = program::binary("redis-allocator")?;
    let inner = format!(
        "{} malloc gpus --redis-url {} -- sh -c 'read first; echo command got $first'; read second; echo shell got $second",
        binary.display(),
        world.server.url()
    );
    // script(1) gives it a terminal; its own input is what is typed.
    let typed = "(sleep 1; echo one; sleep 1; echo two; sleep 1)";
    let output = Command::new("sh")
        .args(["-c", &format!("{typed} | timeout 60 script -qec \"$1\" /dev/null"), "sh", &inner])
        .output()?;
    let seen = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(seen.contains("command got one"), "{seen}");
    assert!(seen.contains("shell got two"), "the terminal was not given back: {seen}");
    world.is_free().await
}
