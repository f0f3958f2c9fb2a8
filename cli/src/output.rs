//! Everything that goes to standard output: one JSON document with `--json`, plain text without.
//!
//! No other file prints to standard output, so a program that reads it never meets a stray line.

use std::io::{ErrorKind, Write};

use serde::Serialize;

use crate::error::CliError;

/// Where a verb's result goes, and in which of the two forms.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    /// `json` asks for one JSON document in place of text.
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether a program reads the output.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Writes the result of a verb: `document` with `--json`, else what `text` returns, each ended by a line break.
    pub(crate) fn result<T: Serialize>(self, document: &T, text: impl FnOnce() -> String) -> Result<(), CliError> {
        let line = if self.json {
            serde_json::to_string(document).map_err(|source| CliError::Encode { source })?
        } else {
            text()
        };
        write_line(&line)
    }

    /// Writes the result of a verb whose text is on standard output already: with `--json` only.
    pub(crate) fn document<T: Serialize>(self, document: &T) -> Result<(), CliError> {
        if self.json { self.result(document, String::new) } else { Ok(()) }
    }

    /// Writes one line of text, and nothing with `--json`.
    pub(crate) fn line(self, text: &str) -> Result<(), CliError> {
        if self.json { Ok(()) } else { write_line(text) }
    }

    /// Writes a piece of streamed text at once, without a line break, and nothing with `--json`.
    pub(crate) fn piece(self, text: &str) -> Result<(), CliError> {
        if self.json { Ok(()) } else { write(text.as_bytes()) }
    }
}

fn write_line(line: &str) -> Result<(), CliError> {
    write(format!("{line}\n").as_bytes())
}

fn write(bytes: &[u8]) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        // The reader has had enough (`mynah ... | head`): nothing is wrong, and nobody is left to tell.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(source) => Err(CliError::Stdout { source }),
        Ok(()) => Ok(()),
    }
}

/// Rows of text in aligned columns: the first column to the left, all others to the right.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .chain(header.get(column).map(|cell| cell.chars().count()))
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: &[String]| {
        let mut text = String::new();
        for (column, (cell, width)) in cells.iter().zip(&widths).enumerate() {
            if column == 0 {
                text.push_str(&format!("{cell:<width$}"));
            } else {
                text.push_str(&format!("  {cell:>width$}"));
            }
        }
        text.trim_end().to_owned()
    };
    let header: Vec<String> = header.iter().map(|cell| (*cell).to_owned()).collect();
    let mut lines = vec![line(&header)];
    lines.extend(rows.iter().map(|row| line(row)));
    lines.join("\n")
}

/// A number of bytes for people: `98.4 MB`, in powers of 1000 as disks are sold.
pub(crate) fn bytes_text(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_aligns_its_columns() {
        let rows = vec![vec!["town".into(), "1/8".into()], vec!["machine".into(), "12/12".into()]];
        assert_eq!(table(&["subject", "right"], &rows), "subject  right\ntown       1/8\nmachine  12/12");
    }

    #[test]
    fn bytes_are_said_in_the_largest_unit_that_fits() {
        assert_eq!(bytes_text(0), "0 B");
        assert_eq!(bytes_text(999), "999 B");
        assert_eq!(bytes_text(98_362_432), "98.4 MB");
        assert_eq!(bytes_text(999_999), "1.0 MB");
        assert_eq!(bytes_text(u64::MAX), "18446744.1 TB");
    }
}
