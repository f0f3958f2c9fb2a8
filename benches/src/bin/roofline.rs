//! Holds each operation against what the machine can do at best.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use mynah_benches::model::{self, PrecisionArgs};
use mynah_benches::ops::{Op, Pass, ops};
use mynah_benches::peaks::Peaks;
use mynah_benches::report::{self, OutputArgs, Report, table};
use mynah_benches::spread::Spread;
use serde::Serialize;

/// Hold each operation of training, prefill and decode against the machine's peaks, which are measured first.
///
/// The roof of an operation is the time that its arithmetic takes at the peak, or its bytes at the memory's, whichever is the
/// longer. What is 100 % cannot be faster with these numbers; more than that means that the bytes came from a cache.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  roofline                          everything, about two minutes
  roofline --threads 1 --tokens 128 --only packed_linear")]
struct Arguments {
    /// Threads that compute
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    threads: u16,
    #[command(flatten)]
    precision: PrecisionArgs,
    /// Tokens of a pass; 1 is decode
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 128, 512])]
    tokens: Vec<usize>,
    /// Operations whose name holds this text
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Milliseconds that each operation is measured for
    #[arg(long, default_value_t = 500)]
    ms: u64,
    /// Try the program itself in seconds
    #[arg(long)]
    smoke: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Serialize)]
struct Outcome {
    precision: &'static str,
    one_thread: Peaks,
    all_threads: Peaks,
    ops: Vec<Measured>,
}

#[derive(Debug, Serialize)]
struct Measured {
    name: String,
    tokens: usize,
    seconds: Spread,
    flop: f64,
    bytes: f64,
    gflops: f64,
    gb_per_s: f64,
    /// The least possible time over the median.
    share_of_roof: f64,
}

fn main() -> ExitCode {
    report::exit(run())
}

fn run() -> anyhow::Result<()> {
    let mut arguments = Arguments::parse();
    let report = Report::start("roofline", arguments.output);
    if arguments.smoke {
        (arguments.tokens, arguments.ms) = (vec![16], 1);
    }
    model::start_threads(usize::from(arguments.threads))?;
    let device = arguments.precision.device();
    report.note("peaks");
    let one_thread = Peaks::measure(1);
    let all_threads = Peaks::measure(usize::from(arguments.threads));
    let mut outcome = Outcome { precision: arguments.precision.name(), one_thread, all_threads, ops: Vec::new() };
    for &tokens in &arguments.tokens {
        let mut all = ops(Pass::Infer, tokens, &device)?;
        if tokens > 1 {
            // Those of training, but for what both passes have.
            let is_new = |op: &Op| {
                !op.name.contains("forward") || op.name == "attention forward" || op.name.starts_with("lora_linear")
            };
            all.extend(ops(Pass::Train, tokens, &device)?.into_iter().filter(is_new));
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        for mut op in all.into_iter().filter(|op| op.name.contains(&arguments.only)) {
            report.note(&format!("{} tokens, {}", op.tokens, op.name));
            outcome.ops.push(measure(&mut op, Duration::from_millis(arguments.ms), &all_threads));
        }
    }
    report.finish(&outcome, || text(&outcome))
}

fn measure(op: &mut Op, at_least: Duration, peaks: &Peaks) -> Measured {
    let seconds = op.measure(at_least);
    Measured {
        name: op.name.clone(),
        tokens: op.tokens,
        flop: op.flop,
        bytes: op.bytes,
        gflops: op.flop / seconds.median / 1e9,
        gb_per_s: op.bytes / seconds.median / 1e9,
        share_of_roof: peaks.least_seconds(op.flop, op.bytes) / seconds.median,
        seconds,
    }
}

fn text(outcome: &Outcome) -> String {
    let peaks = [&outcome.one_thread, &outcome.all_threads].map(|peaks| {
        let bf16 = peaks.bf16_gflops.map_or_else(|| "none".to_owned(), |gflops| format!("{gflops:.0}"));
        vec![
            format!("{}", peaks.threads),
            format!("{:.0}", peaks.f32_gflops),
            bf16,
            format!("{:.1}", peaks.memory_gb_per_s),
        ]
    });
    let peaks = table(&["threads", "f32 GFLOP/s", "bf16 GFLOP/s", "memory GB/s"], &peaks);
    let rows: Vec<Vec<String>> = outcome
        .ops
        .iter()
        .map(|op| {
            vec![
                op.name.clone(),
                op.tokens.to_string(),
                format!("{:.1}", op.seconds.median * 1e6),
                format!("{:.1}", op.seconds.lowest * 1e6),
                format!("{:.2}", op.flop / 1e6),
                format!("{:.3}", op.bytes / 1e6),
                format!("{:.1}", op.gflops),
                format!("{:.1}", op.gb_per_s),
                format!("{:.0} %", op.share_of_roof * 100.0),
            ]
        })
        .collect();
    let header = ["operation", "tokens", "µs", "least", "MFLOP", "MB", "GFLOP/s", "GB/s", "of the roof"];
    format!("{peaks}\n\n{} precision\n{}", outcome.precision, table(&header, &rows))
}
