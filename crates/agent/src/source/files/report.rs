//! What is wrong in a file, as people are told: one line for logs, or the source line with a mark under it.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use miette::{LabeledSpan, NamedSource, SourceCode};

use super::yaml::Position;

/// One error and its place.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub(crate) file: Arc<Path>,
    /// Absent where the file as a whole is wrong: it can't be read, it is too large.
    pub(crate) at: Option<Position>,
    /// Where, what was found, what is allowed.
    pub(crate) message: String,
    pub(crate) help: Option<String>,
    /// Another place that belongs to it, and what is there.
    pub(crate) also: Option<(Location, String)>,
    /// The file's text, to show the line.
    pub(crate) text: Option<Arc<str>>,
}

/// A place in some file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Location {
    pub(crate) file: Arc<Path>,
    pub(crate) at: Position,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.at)
    }
}

impl Problem {
    /// An error that is the whole file's.
    pub(crate) fn of_file(file: &Arc<Path>, message: impl Into<String>) -> Self {
        Self { file: Arc::clone(file), at: None, message: message.into(), help: None, also: None, text: None }
    }

    /// An error at a place.
    pub(crate) fn at(location: &Location, message: impl Into<String>) -> Self {
        Self { at: Some(location.at), ..Self::of_file(&location.file, message) }
    }

    /// Where it is, as editors and terminals understand it.
    fn place(&self) -> String {
        match self.at {
            Some(at) => format!("{}:{at}", self.file.display()),
            None => self.file.display().to_string(),
        }
    }

    /// The file, for those who list files.
    pub(crate) fn path(&self) -> PathBuf {
        self.file.to_path_buf()
    }
}

/// `file:line:column: message`, on one line.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place(), self.message)?;
        if let Some(help) = &self.help {
            write!(f, " ({help})")?;
        }
        if let Some((location, what)) = &self.also {
            write!(f, "; {location}: {what}")?;
        }
        Ok(())
    }
}

/// A problem with its source line.
#[derive(Debug)]
pub(crate) struct Shown {
    message: String,
    help: Option<String>,
    source: Option<NamedSource<Arc<str>>>,
    labels: Vec<LabeledSpan>,
}

impl From<&Problem> for Shown {
    fn from(problem: &Problem) -> Self {
        let mut labels = Vec::new();
        let mut help = problem.help.clone();
        let shown = problem.text.as_ref().zip(problem.at);
        if let Some((text, at)) = shown {
            labels.push(LabeledSpan::new_primary_with_span(None, span(text, at)));
        }
        match (&problem.also, shown) {
            (Some((location, what)), Some((text, _))) if location.file == problem.file => {
                labels.push(LabeledSpan::new_with_span(Some(what.clone()), span(text, location.at)));
            }
            (Some((location, what)), _) => {
                let what = format!("{location}: {what}");
                help = Some(help.map_or(what.clone(), |help| format!("{help}\n{what}")));
            }
            (None, _) => {}
        }
        let source = problem
            .text
            .as_ref()
            .filter(|_| !labels.is_empty())
            .map(|text| NamedSource::new(problem.file.display().to_string(), Arc::clone(text)));
        Self { message: format!("{}: {}", problem.place(), problem.message), help, source, labels }
    }
}

/// What is marked: from the place to the end of the word that stands there.
fn span(text: &str, at: Position) -> miette::SourceSpan {
    let line_start: usize =
        text.split_inclusive('\n').take(at.line as usize - 1).map(str::len).sum::<usize>().min(text.len());
    let line = text[line_start..].split('\n').next().unwrap_or_default();
    let offset = line.char_indices().nth(at.column as usize - 1).map_or(line.len(), |(offset, _)| offset);
    let end = |c: char| c.is_whitespace() || matches!(c, ',' | ':' | ']' | '}' | '[' | '{');
    let length = line[offset..].find(end).unwrap_or(line.len() - offset);
    (line_start + offset, length).into()
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Shown {}

impl miette::Diagnostic for Shown {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.source.as_ref().map(|source| source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        Some(Box::new(self.labels.iter().cloned()))
    }
}

#[cfg(test)]
mod tests {
    use miette::{GraphicalReportHandler, GraphicalTheme};

    use super::*;

    fn location(file: &str, line: u32, column: u32) -> Location {
        Location { file: Path::new(file).into(), at: Position { line, column } }
    }

    #[test]
    fn a_problem_is_one_line_with_its_place() {
        let mut problem = Problem::at(&location("a.yaml", 3, 7), "spec.order: found 1, allowed is …");
        problem.help = Some("did you mean …?".to_owned());
        problem.also = Some((location("b.yaml", 1, 1), "first here".to_owned()));
        assert_eq!(
            problem.to_string(),
            "a.yaml:3:7: spec.order: found 1, allowed is … (did you mean …?); b.yaml:1:1: first here"
        );
    }

    #[test]
    fn shown_at_length_it_has_the_source_line() {
        let mut problem = Problem::at(&location("a.yaml", 2, 5), "bad");
        problem.text = Some("é: 1\nb: [worse, 2]\n".into());
        let mut shown = String::new();
        GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor())
            .render_report(&mut shown, &Shown::from(&problem))
            .unwrap();
        assert!(shown.contains("a.yaml:2:5: bad") && shown.contains("b: [worse, 2]"), "{shown}");
        assert!(shown.contains("─────") || shown.contains("──┬──"), "{shown}");
    }

    #[test]
    fn a_place_behind_the_end_is_no_panic() {
        for (line, column) in [(1, 1), (1, 99), (9, 9), (u32::MAX, u32::MAX)] {
            for text in ["", "é", "a\n", "\n\n"] {
                let _ = span(text, Position { line, column });
            }
        }
    }
}
