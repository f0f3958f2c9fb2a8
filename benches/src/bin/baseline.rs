//! Keeps the times of all operations, and shows what has changed against those that were kept.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use mynah_benches::machine::Machine;
use mynah_benches::model::{self, PrecisionArgs};
use mynah_benches::ops::{Pass, ops};
use mynah_benches::report::{self, OutputArgs, Report, now_unix_s, table};
use mynah_benches::spread::Spread;
use serde::{Deserialize, Serialize};

/// Measure every operation and keep the times, or show the change against those kept before.
///
/// The baseline in the repository says on which machine and when it was measured. On another machine the change means nothing:
/// save one of your own with --file first.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  baseline show                              the change against the repository's baseline
  baseline save --file before.json      keep the state before a change
  baseline show --file before.json      and look at it after")]
struct Arguments {
    /// What to do
    #[arg(value_enum)]
    action: Action,
    /// The baseline; the repository's own if not given
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Threads that compute
    #[arg(long, default_value_t = 2)]
    threads: usize,
    #[command(flatten)]
    precision: PrecisionArgs,
    /// Milliseconds that each operation is measured for
    #[arg(long, default_value_t = 500)]
    ms: u64,
    /// Try the program itself in seconds
    #[arg(long)]
    smoke: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Action {
    /// Measure, and compare
    Show,
    /// Measure, and keep
    Save,
}

/// Differences below this share are what a machine does by itself.
const NOISE: f64 = 0.05;

/// What the file holds.
#[derive(Debug, Serialize, Deserialize)]
struct Baseline {
    machine: Machine,
    date_unix_s: u64,
    threads: usize,
    precision: String,
    ops: Vec<Timed>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Timed {
    name: String,
    tokens: usize,
    seconds: Spread,
}

#[derive(Debug, Serialize)]
struct Outcome {
    /// Whether machine, threads and precision are the same.
    is_comparable: bool,
    now: Baseline,
    before: Option<Baseline>,
}

fn main() -> ExitCode {
    report::exit(run())
}

fn run() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let report = Report::start("baseline", arguments.output);
    let file = arguments.file.unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/baseline.json").into());
    let before = match arguments.action {
        Action::Show => {
            let text = std::fs::read_to_string(&file);
            let text = text.with_context(|| format!("cannot read {}; save one first", file.display()))?;
            Some(
                serde_json::from_str::<Baseline>(&text)
                    .with_context(|| format!("{} is no baseline", file.display()))?,
            )
        }
        Action::Save => None,
    };
    model::start_threads(arguments.threads)?;
    let device = arguments.precision.device();
    let passes: &[(Pass, usize)] = if arguments.smoke {
        &[(Pass::Train, 16)]
    } else {
        &[(Pass::Infer, 1), (Pass::Infer, 128), (Pass::Train, 128)]
    };
    let at_least = Duration::from_millis(if arguments.smoke { 1 } else { arguments.ms });
    let mut timed: Vec<Timed> = Vec::new();
    for (pass, tokens) in passes {
        for mut op in ops(*pass, *tokens, &device)? {
            if timed.iter().any(|known| (&known.name, known.tokens) == (&op.name, op.tokens)) {
                continue;
            }
            report.note(&format!("{} tokens, {}", op.tokens, op.name));
            timed.push(Timed { seconds: op.measure(at_least), name: op.name.clone(), tokens: op.tokens });
        }
    }
    let now = Baseline {
        machine: Machine::here(),
        date_unix_s: now_unix_s(),
        threads: arguments.threads,
        precision: arguments.precision.name().to_owned(),
        ops: timed,
    };
    if matches!(arguments.action, Action::Save) {
        let text = format!("{}\n", serde_json::to_string_pretty(&now)?);
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let conditions = |of: &Baseline| (of.machine.clone(), of.threads, of.precision.clone());
    let is_comparable = before.as_ref().is_none_or(|before| conditions(before) == conditions(&now));
    let outcome = Outcome { is_comparable, now, before };
    report.finish(&outcome, || text(&outcome))
}

fn text(outcome: &Outcome) -> String {
    let rows: Vec<Vec<String>> = outcome
        .now
        .ops
        .iter()
        .map(|op| {
            let before = outcome.before.as_ref().and_then(|before| {
                before.ops.iter().find(|known| (&known.name, known.tokens) == (&op.name, op.tokens))
            });
            let change = before.map_or_else(String::new, |before| change(before.seconds, op.seconds));
            let micros = |seconds: f64| format!("{:.1}", seconds * 1e6);
            let before = before.map_or_else(|| "-".to_owned(), |before| micros(before.seconds.median));
            vec![op.name.clone(), op.tokens.to_string(), before, micros(op.seconds.median), change]
        })
        .collect();
    let warning = match &outcome.before {
        Some(before) if !outcome.is_comparable => {
            let Baseline { machine, threads, precision, .. } = before;
            format!(
                "\n\nNOT COMPARABLE: the baseline is of {threads} threads, {precision} precision, {}",
                machine.text()
            )
        }
        _ => String::new(),
    };
    format!("{}{warning}", table(&["operation", "tokens", "µs before", "µs now", "change"], &rows))
}

/// The change in words; of the least times too, since a busy machine moves the median first.
fn change(before: Spread, now: Spread) -> String {
    let (median, least) = (now.median / before.median - 1.0, now.lowest / before.lowest - 1.0);
    let verdict = match (median, least) {
        (m, l) if m > NOISE && l > NOISE => "slower",
        (m, l) if m < -NOISE && l < -NOISE => "faster",
        _ => "same",
    };
    format!("{:+.0} % {verdict}", median * 100.0)
}
