//! `redis-allocator validate PATH…`: the file source's checks, without a server.

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Result;
use miette::{GraphicalReportHandler, GraphicalTheme};

use crate::source::files::{Checked, Shown, check};

/// What `validate` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit code 0 when all is fine, 1 when there is any error, 2 when the command line is wrong.")]
pub(crate) struct ValidateArgs {
    /// Files, or directories that are searched for *.yaml, *.yml and *.json.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

pub(crate) fn run(args: &ValidateArgs) -> Result<ExitCode> {
    let Checked { files, objects, problems } = check(&args.paths);
    let stderr = io::stderr();
    let plain = !stderr.is_terminal() || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let theme = if plain { GraphicalTheme::unicode_nocolor() } else { GraphicalTheme::unicode() };
    // Lines that are not broken can be searched, and terminals break them as well.
    let handler = GraphicalReportHandler::new_themed(theme).with_width(usize::MAX).with_links(false);
    let mut report = String::new();
    for problem in &problems {
        handler.render_report(&mut report, &Shown::from(problem))?;
    }
    let count = |number: usize, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
    let (files, objects) = (count(files, "file"), count(objects, "object"));
    if problems.is_empty() {
        writeln!(io::stdout(), "{files}, {objects}: all fine")?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(stderr.lock(), "{report}{files}: {}", count(problems.len(), "error"))?;
    Ok(ExitCode::FAILURE)
}
