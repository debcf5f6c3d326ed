//! `redis-allocator completions SHELL`: what makes a shell complete this command line. It must not know any command.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::Result;
use clap_complete::Shell;

/// What `completions` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = "For bash, say in ~/.bashrc: source <(redis-allocator completions bash)")]
pub(crate) struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// `whole` is the whole command line.
pub(crate) fn run(args: &CompletionsArgs, whole: &clap::Command) -> Result<ExitCode> {
    // Not written by the generator itself, which panics when nobody reads.
    io::stdout().write_all(&script(args.shell, whole))?;
    Ok(ExitCode::SUCCESS)
}

fn script(shell: Shell, whole: &clap::Command) -> Vec<u8> {
    const NAME: &str = "redis-allocator";
    // The generators list hidden commands with all others.
    let mut shown = clap::Command::new(NAME)
        .version(env!("CARGO_PKG_VERSION"))
        .propagate_version(true)
        .subcommands(whole.get_subcommands().filter(|command| !command.is_hide_set()).cloned());
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut shown, NAME, &mut script);
    script
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use clap::{CommandFactory as _, ValueEnum as _};

    use super::*;
    use crate::cli::{Cli, malloc};

    fn of(shell: Shell) -> String {
        String::from_utf8(script(shell, &Cli::command())).unwrap()
    }

    #[test]
    fn every_shell_learns_commands_and_flags_and_no_hidden_command() {
        assert_eq!(Shell::value_variants().len(), 5);
        for &shell in Shell::value_variants() {
            let script = of(shell);
            for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
                assert!(script.contains(command.get_name()), "{shell}: {}", command.get_name());
            }
            // Fish writes flags without their dashes.
            for flag in ["redis-url", "takeover", "recovered", "selector", "session-ttl", "waiters"] {
                assert!(script.contains(flag), "{shell}: {flag}");
            }
            assert!(!script.contains(malloc::WATCHDOG), "{shell} completes the hidden command");
        }
    }

    #[test]
    fn bash_understands_its_own() {
        let mut bash = Command::new("bash").arg("-n").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        bash.stdin.take().unwrap().write_all(of(Shell::Bash).as_bytes()).unwrap();
        let output = bash.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
