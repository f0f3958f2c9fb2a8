//! What a program prints: one JSON document with `--json`, else tables, and always the machine and the time it took in all.
//!
//! No other file of this crate prints to standard output; what is going on is told on standard error.
#![allow(clippy::print_stdout)]

use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::machine::Machine;

/// The option that every program has.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct OutputArgs {
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// A program's report in the making.
#[derive(Debug)]
pub struct Report {
    args: OutputArgs,
    started: Instant,
    command: &'static str,
}

#[derive(Serialize)]
struct Document<'a, T> {
    command: &'a str,
    machine: Machine,
    date_unix_s: u64,
    total_seconds: f64,
    result: &'a T,
}

impl Report {
    /// Starts the clock of the program `command`.
    pub fn start(command: &'static str, args: OutputArgs) -> Self {
        Self { args, started: Instant::now(), command }
    }

    /// Tells a person what is being measured.
    pub fn note(&self, text: &str) {
        eprintln!("[{:6.1} s] {text}", self.started.elapsed().as_secs_f64());
    }

    /// Prints the result: `document` with `--json`, else what `text` returns.
    ///
    /// # Errors
    /// If the document cannot be written as JSON.
    pub fn finish<T: Serialize>(&self, document: &T, text: impl FnOnce() -> String) -> anyhow::Result<()> {
        let total_seconds = self.started.elapsed().as_secs_f64();
        let machine = Machine::here();
        if self.args.json {
            let whole =
                Document { command: self.command, machine, date_unix_s: now_unix_s(), total_seconds, result: document };
            println!("{}", serde_json::to_string_pretty(&whole)?);
        } else {
            println!("{}\n\n{}\n\ntotal time {total_seconds:.1} s", machine.text(), text().trim_end());
        }
        Ok(())
    }
}

/// Ends a program: with its error, the causes behind it, on standard error, if it has one.
pub fn exit(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Seconds since 1970.
pub fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Rows in aligned columns: the first to the left, all others to the right.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let cells = |row: &[String], column: usize| row.get(column).map_or(0, |cell| cell.chars().count());
    let header: Vec<String> = header.iter().map(|cell| (*cell).to_owned()).collect();
    let widths: Vec<usize> = (0..header.len())
        .map(|column| rows.iter().map(|row| cells(row, column)).chain([cells(&header, column)]).max().unwrap_or(0))
        .collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("  {cell:>width$}"),
        });
        cells.collect::<String>().trim_end().to_owned()
    };
    std::iter::once(&header).chain(rows).map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = vec![vec!["rope".into(), "1.5".into()], vec!["packed_linear".into(), "12.25".into()]];
        assert_eq!(table(&["op", "µs"], &rows), "op                µs\nrope             1.5\npacked_linear  12.25");
    }
}
