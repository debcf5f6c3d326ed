//! Rows on standard output: as a table like kubectl's, or as JSON or YAML. It must not know what the rows are about.

use std::io::{self, Write};

use anyhow::{Context, Result};
use comfy_table::{ColumnConstraint, Table, Width, presets};
use jiff::Timestamp;
use serde::Serialize;

/// How rows are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Columns, times as ages.
    Table,
    /// More columns.
    Wide,
    /// Everything, times in RFC 3339.
    Json,
    /// The same as YAML.
    Yaml,
}

/// One printed thing.
pub(super) trait Row: Serialize + PartialEq {
    /// Column titles, of which the last `wide_columns` are for the wide table only.
    const COLUMNS: &'static [&'static str];
    /// How many columns at the end are left out of the plain table.
    const WIDE_COLUMNS: usize;

    /// The text of every column.
    fn cells(&self, now: Timestamp) -> Vec<String>;
    /// What tells it from the other rows, however it changes: its namespace, shown as a column of its own when several are
    /// listed, its pool, and what else there is to tell.
    fn id(&self) -> (&str, &str, &str);
    /// Whether anything has happened to it that a watch tells of.
    fn differs(&self, older: &Self) -> bool {
        self != older
    }
}

/// Where rows go. A reader that has gone away (`| head`) is not an error: see [`closed`].
#[derive(Debug)]
pub(super) struct Printer<W> {
    out: W,
    format: Format,
    namespaces: bool,
    /// Of the first table, for rows that follow it later.
    widths: Option<Vec<u16>>,
}

#[derive(Serialize)]
struct List<'a, T> {
    items: &'a [T],
}

#[derive(Serialize)]
struct Gone<'a, T> {
    deleted: bool,
    #[serde(flatten)]
    row: &'a T,
}

impl<W: Write> Printer<W> {
    pub(super) fn new(out: W, format: Format, namespaces: bool) -> Self {
        Self { out, format, namespaces, widths: None }
    }

    /// Prints all rows at once.
    pub(super) fn list<T: Row>(&mut self, rows: &[T], now: Timestamp) -> Result<()> {
        match self.format {
            Format::Table | Format::Wide => {
                let rows: Vec<_> = rows.iter().map(|row| self.cells(row, now)).collect();
                let table = table(Some(self.titles::<T>()), rows);
                self.widths = Some(table.column_max_content_widths());
                self.write_table(&table)
            }
            Format::Json => self.write_json(&List { items: rows }),
            Format::Yaml => self.write_yaml(&List { items: rows }),
        }
    }

    /// Prints the one row that was asked for by name: in JSON and YAML without a list around it.
    pub(super) fn single<T: Row>(&mut self, row: &T, now: Timestamp) -> Result<()> {
        match self.format {
            Format::Table | Format::Wide => self.list(std::slice::from_ref(row), now),
            Format::Json => self.write_json(row),
            Format::Yaml => self.write_yaml(row),
        }
    }

    /// Prints a row of a watch: below the table that was printed first, or as a document of its own (JSON in one line).
    pub(super) fn update<T: Row>(&mut self, row: &T, deleted: bool, now: Timestamp) -> Result<()> {
        match self.format {
            Format::Table | Format::Wide => {
                let mut cells = self.cells(row, now);
                if deleted && let Some(last) = cells.last_mut() {
                    *last = format!("{last} (deleted)");
                }
                let titles = self.widths.is_none().then(|| self.titles::<T>());
                let mut table = table(titles, vec![cells]);
                if let Some(widths) = &self.widths {
                    let at_least = |width: &u16| ColumnConstraint::LowerBoundary(Width::Fixed(width + GAP));
                    table.set_constraints(widths.iter().map(at_least));
                } else {
                    self.widths = Some(table.column_max_content_widths());
                }
                self.write_table(&table)
            }
            Format::Json if deleted => self.write_json_line(&Gone { deleted, row }),
            Format::Json => self.write_json_line(row),
            Format::Yaml => {
                writeln!(self.out, "---")?;
                if deleted { self.write_yaml(&Gone { deleted, row }) } else { self.write_yaml(row) }
            }
        }
    }

    /// Makes everything printed visible.
    pub(super) fn flush(&mut self) -> Result<()> {
        Ok(self.out.flush()?)
    }

    fn columns<T: Row>(&self) -> usize {
        if self.format == Format::Wide { T::COLUMNS.len() } else { T::COLUMNS.len() - T::WIDE_COLUMNS }
    }

    fn titles<T: Row>(&self) -> Vec<&'static str> {
        let namespace = self.namespaces.then_some("NAMESPACE");
        namespace.into_iter().chain(T::COLUMNS.iter().copied().take(self.columns::<T>())).collect()
    }

    fn cells<T: Row>(&self, row: &T, now: Timestamp) -> Vec<String> {
        let namespace = self.namespaces.then(|| row.id().0.to_owned());
        let cells = namespace.into_iter().chain(row.cells(now).into_iter().take(self.columns::<T>()));
        cells.map(|cell| if cell.is_empty() { "-".to_owned() } else { printable(&cell) }).collect()
    }

    fn write_table(&mut self, table: &Table) -> Result<()> {
        for line in table.lines() {
            writeln!(self.out, "{}", line.trim_end())?;
        }
        Ok(())
    }

    fn write_json(&mut self, value: &impl Serialize) -> Result<()> {
        serde_json::to_writer_pretty(&mut self.out, value).map_err(io::Error::from)?;
        Ok(writeln!(self.out)?)
    }

    fn write_json_line(&mut self, value: &impl Serialize) -> Result<()> {
        serde_json::to_writer(&mut self.out, value).map_err(io::Error::from)?;
        Ok(writeln!(self.out)?)
    }

    fn write_yaml(&mut self, value: &impl Serialize) -> Result<()> {
        let text = serde_saphyr::to_string(value).context("writing YAML failed")?;
        Ok(writeln!(self.out, "{}", text.trim_end())?)
    }
}

/// Between two columns.
const GAP: u16 = 3;

fn table(titles: Option<Vec<&str>>, rows: Vec<Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).force_no_tty();
    if let Some(titles) = titles {
        table.set_header(titles);
    }
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, GAP));
    }
    table
}

/// A cell without line breaks and without what a terminal would obey: names and reasons come from anywhere.
fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// Whether an error says only that nobody reads any more.
pub(super) fn closed(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, PartialEq)]
    struct Fruit {
        basket: String,
        name: String,
        note: String,
    }

    impl Row for Fruit {
        const COLUMNS: &'static [&'static str] = &["NAME", "NOTE"];
        const WIDE_COLUMNS: usize = 1;

        fn cells(&self, _now: Timestamp) -> Vec<String> {
            vec![self.name.clone(), self.note.clone()]
        }

        fn id(&self) -> (&str, &str, &str) {
            (&self.basket, &self.name, "")
        }
    }

    fn fruit(name: &str, note: &str) -> Fruit {
        Fruit { basket: "b".into(), name: name.into(), note: note.into() }
    }

    fn printed(format: Format, namespaces: bool, print: impl FnOnce(&mut Printer<Vec<u8>>)) -> String {
        let mut printer = Printer::new(Vec::new(), format, namespaces);
        print(&mut printer);
        String::from_utf8(printer.out).unwrap()
    }

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    #[test]
    fn a_table_has_no_borders_and_no_trailing_blanks() {
        let rows = [fruit("apple", ""), fruit("fig", "x")];
        let text = printed(Format::Wide, true, |printer| printer.list(&rows, NOW).unwrap());
        assert_eq!(text, "NAMESPACE   NAME    NOTE\nb           apple   -\nb           fig     x\n");
        let text = printed(Format::Table, false, |printer| printer.list(&rows, NOW).unwrap());
        assert_eq!(text, "NAME\napple\nfig\n");
    }

    #[test]
    fn rows_that_follow_a_table_are_under_its_columns() {
        let text = printed(Format::Wide, false, |printer| {
            printer.list(&[fruit("pomegranate", "red")], NOW).unwrap();
            printer.update(&fruit("fig", "x"), false, NOW).unwrap();
            printer.update(&fruit("fig", "x"), true, NOW).unwrap();
        });
        let expected = "NAME          NOTE\npomegranate   red\nfig           x\nfig           x (deleted)\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn what_a_terminal_would_obey_is_made_visible() {
        let text = printed(Format::Table, false, |printer| printer.list(&[fruit("a\n\u{1b}[2Jb", "")], NOW).unwrap());
        assert_eq!(text, "NAME\na\\n\\u{1b}[2Jb\n");
    }

    #[test]
    fn json_and_yaml_hold_everything() {
        let rows = [fruit("no", "1.0")];
        let json = printed(Format::Json, false, |printer| printer.list(&rows, NOW).unwrap());
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json, serde_json::json!({"items": [{"basket": "b", "name": "no", "note": "1.0"}]}));
        let yaml = printed(Format::Yaml, false, |printer| printer.list(&rows, NOW).unwrap());
        assert_eq!(serde_saphyr::from_str::<serde_json::Value>(&yaml).unwrap(), json);
        let line = printed(Format::Json, false, |printer| printer.update(&rows[0], true, NOW).unwrap());
        assert_eq!(line, "{\"deleted\":true,\"basket\":\"b\",\"name\":\"no\",\"note\":\"1.0\"}\n");
    }

    #[test]
    fn a_reader_that_went_away_is_recognised() {
        #[derive(Debug)]
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        for format in [Format::Table, Format::Json, Format::Yaml] {
            let error = Printer::new(Closed, format, false).list(&[fruit("fig", "")], NOW).unwrap_err();
            assert!(closed(&error), "{error:#}");
        }
    }
}
