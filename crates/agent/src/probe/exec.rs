//! A resource works when a command exits with 0. It is run directly, never by a shell: a resource's name is data.

use std::{process::Stdio, time::Duration};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::Command,
};

/// How much of what it says on standard error is told as the reason.
const SAID: usize = 300;
/// How long a command that has exited may leave its standard error open to others.
const LINGER: Duration = Duration::from_millis(100);

/// Kills what a command has started when the probe is given up: it is too slow, or the agent ends.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // Fails when all of it has ended by itself.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

pub(super) async fn probe(command: &[String]) -> Result<(), String> {
    let Some((program, args)) = command.split_first() else { return Err("the command is empty".to_owned()) };
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("starting {program:?} failed: {error}"))?;
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
    let mut said = Vec::new();
    let status = {
        let stderr = child.stderr.take();
        let reading = read_beginning(stderr, &mut said);
        tokio::pin!(reading);
        let mut all_read = false;
        let status = loop {
            tokio::select! {
                status = child.wait() => break status,
                () = &mut reading, if !all_read => all_read = true,
            }
        };
        if !all_read {
            let _ = tokio::time::timeout(LINGER, reading).await;
        }
        status
    };
    // It has ended by itself, and its number may be another's soon.
    group.0 = None;
    let status = status.map_err(|error| format!("waiting for {program:?} failed: {error}"))?;
    if status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&said);
    let said = said.trim().replace(char::is_control, " ");
    Err(format!("{program:?} ended with {status}{}{said}", if said.is_empty() { "" } else { ": " }))
}

/// Keeps the beginning, and reads on so that the writer is never held up.
async fn read_beginning(source: Option<impl AsyncRead + Unpin>, beginning: &mut Vec<u8>) {
    let Some(mut source) = source else { return };
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = source.read(&mut buffer).await {
        let room = SAID - beginning.len();
        beginning.extend_from_slice(&buffer[..length.min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often a test looks whether something has happened.
    const LOOK: Duration = Duration::from_millis(10);

    async fn run(command: &[&str]) -> Result<(), String> {
        probe(&command.iter().map(|&part| part.to_owned()).collect::<Vec<_>>()).await
    }

    #[tokio::test]
    async fn the_exit_code_decides_and_standard_error_is_the_reason() {
        run(&["true"]).await.unwrap();
        let error = run(&["sh", "-c", "echo no such device >&2; exit 3"]).await.unwrap_err();
        assert!(error.contains("exit status: 3: no such device"), "{error}");
        assert!(run(&["/nowhere/at-all"]).await.unwrap_err().contains("starting"));
    }

    #[tokio::test]
    async fn a_name_is_never_run_by_a_shell() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("made");
        run(&["echo", &format!("; touch {}", file.display())]).await.unwrap();
        assert!(!file.exists());
    }

    #[tokio::test]
    async fn a_talkative_command_is_not_held_up() {
        let error = run(&["sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' x >&2; exit 1"]).await.unwrap_err();
        assert!(error.len() < 2 * SAID, "{}", error.len());
    }

    #[tokio::test]
    async fn a_slow_command_is_killed_with_all_it_has_started() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", file.display());
        let command = ["sh", "-c", &script];
        let started = async {
            loop {
                if let Ok(pid) = std::fs::read_to_string(&file).unwrap_or_default().trim().parse::<u32>() {
                    break pid;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let pid = tokio::select! {
            outcome = run(&command) => panic!("it ended by itself: {outcome:?}"),
            pid = started => pid,
        };
        let ended = async {
            loop {
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                if stat.is_empty() || stat.contains(") Z") {
                    break;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), ended)
            .await
            .unwrap_or_else(|_| panic!("process {pid} still runs"));
    }
}
