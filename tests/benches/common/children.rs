//! Other processes of the same benchmark, which begin and end together. It must not know what they do.
//!
//! A child says that it is ready, waits for a word, and says its result in one line. One whose parent is gone hears the
//! word, too.

use std::{
    env,
    io::{self, BufRead, BufReader, Write, stdin, stdout},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// The children, each ready.
pub(crate) struct Children(Vec<(Child, ChildStdin, BufReader<ChildStdout>)>);

impl Children {
    /// Starts `count` processes of this program with these arguments, and waits until all are ready.
    ///
    /// # Errors
    /// When one can't be started or ends early.
    pub(crate) fn start(count: usize, arguments: &[&str]) -> Result<Self> {
        let start = || -> Result<_> {
            let mut child = Command::new(env::current_exe()?)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?;
            let word = child.stdin.take().context("a child has no stdin")?;
            let said = BufReader::new(child.stdout.take().context("a child has no stdout")?);
            Ok((child, word, said))
        };
        let mut children = Self((0..count).map(|_| start()).collect::<Result<_>>()?);
        for (_, _, said) in &mut children.0 {
            line(said)?;
        }
        Ok(children)
    }

    /// Gives all the word; what each says then.
    ///
    /// # Errors
    /// When one ends without a result.
    pub(crate) fn results(mut self) -> Result<Vec<String>> {
        for (_, word, _) in &mut self.0 {
            word.write_all(b"go\n")?;
        }
        let mut results = Vec::with_capacity(self.0.len());
        for (mut child, _, mut said) in self.0 {
            results.push(line(&mut said)?);
            child.wait()?;
        }
        Ok(results)
    }
}

fn line(said: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    said.read_line(&mut line)?;
    if line.is_empty() {
        bail!("a child ended early");
    }
    Ok(line.trim_end().to_owned())
}

/// In a child: says that it is ready, and waits for the word.
///
/// # Errors
/// When the pipes are broken.
pub(crate) fn wait_for_the_word() -> io::Result<()> {
    println!("ready");
    stdout().flush()?;
    stdin().read_line(&mut String::new())?;
    Ok(())
}
