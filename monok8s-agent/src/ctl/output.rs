//! Output in the form that was asked for.

use std::fmt::{Display, Write as _};
use std::io::{self, Write as _};

use anyhow::Result;
use serde::Serialize;

/// The form of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
    /// For programs and people.
    Yaml,
}

impl Format {
    /// Prints `value`, as `text` for people.
    pub(super) fn print(self, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
        let printed = match self {
            Self::Text => text(),
            Self::Json => format!("{}\n", serde_json::to_string_pretty(value)?),
            Self::Yaml => serde_yaml::to_string(value)?,
        };
        print(&printed)
    }
}

/// Prints `text` as it is.
pub(super) fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

/// Whether the reader of our output went away.
pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// One item a line.
pub(super) fn lines<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().fold(String::new(), |mut text, item| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{item}");
        text
    })
}

/// Aligned columns, as kubectl prints them: three blanks apart, none at the end of a line.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("   ").trim_end().to_owned()
    };
    lines(rows.iter().map(line))
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_are_aligned_and_lines_end_with_their_last_word() {
        let rows = [vec!["A", "LONG", "C"], vec!["bcd", "e", ""]];
        let rows: Vec<Vec<String>> =
            rows.iter().map(|row| row.iter().map(ToString::to_string).collect()).collect();
        assert_eq!(super::table(&rows), "A     LONG   C\nbcd   e\n");
    }
}
