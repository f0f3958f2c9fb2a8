//! How long a step goes on after it was told to stop.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Parser;
use mynah::learn::{LearnError, Method, Sequential};
use mynah_benches::arguments::StepArgs;
use mynah_benches::model::{self, random_ids};
use mynah_benches::report::{self, Report};
use mynah_benches::spread::quantile;
use mynah_benches::steps::{Learning, Rows};
use mynah_models::{ComputeError, Model, Stop};
use serde::Serialize;

/// Measure how long a training step goes on after a cancel that comes at a random moment of it.
///
/// The time of an undisturbed step is measured first; cancels are spread evenly over it. One that comes when the step has just
/// ended is made again.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    step: StepArgs,
    /// Sequences of the step
    #[arg(long, default_value_t = 4)]
    rows: usize,
    /// Tokens of each
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u16).range(2..))]
    tokens: u16,
    /// Cancels
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..))]
    cancels: u16,
    /// The seed of the moments
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// From cancel to return, in 99 of 100 cases.
const GOAL_SECONDS: f64 = 0.050;
/// Moments that are drawn from, over the length of a step.
const MOMENTS: usize = 1 << 20;

#[derive(Debug, Serialize)]
struct Outcome {
    rows: usize,
    tokens: u16,
    threads: usize,
    precision: &'static str,
    seed: u64,
    step_seconds: f64,
    cancels: usize,
    /// Cancels that came after the step had ended.
    late: usize,
    p50_seconds: f64,
    p99_seconds: f64,
    longest_seconds: f64,
    goal_seconds: f64,
}

fn main() -> ExitCode {
    report::exit(run())
}

fn run() -> anyhow::Result<()> {
    let mut arguments = Arguments::parse();
    if arguments.step.smoke {
        (arguments.tokens, arguments.cancels) = (128, 5);
    }
    let (report, file) = arguments.step.start("cancel")?;
    let model = model::load(&file, &arguments.step.precision.device())?;
    let outcome = measure(&arguments, &model, &report)?;
    report.finish(&outcome, || text(&outcome))
}

fn measure(arguments: &Arguments, model: &Model, report: &Report) -> anyhow::Result<Outcome> {
    let rows = Rows::random(model, arguments.rows, usize::from(arguments.tokens), 0);
    let mut learning = Learning::begin(model, Method::Sequential(Sequential))?;
    report.note("undisturbed steps");
    let mut step_seconds = f64::INFINITY;
    for _ in 0..3 {
        let started = Instant::now();
        learning.step(&rows, None, &Stop::new())?;
        step_seconds = step_seconds.min(started.elapsed().as_secs_f64());
    }
    report.note(&format!("cancels over {step_seconds:.2} s"));
    let wanted = usize::from(arguments.cancels);
    let (mut latencies, mut late) = (Vec::new(), 0);
    // Ten times as many tries as cancels, and then something is wrong.
    let mut moments = random_ids(MOMENTS, 10 * wanted, arguments.seed).into_iter();
    while latencies.len() < wanted {
        let Some(moment) = moments.next() else { bail!("steps end before they are cancelled") };
        let after = Duration::from_secs_f64(step_seconds * f64::from(moment) / MOMENTS as f64);
        match cancel_after(&mut learning, &rows, after)? {
            Some(latency) => latencies.push(latency.as_secs_f64()),
            None => late += 1,
        }
    }
    latencies.sort_by(f64::total_cmp);
    Ok(Outcome {
        rows: arguments.rows,
        tokens: arguments.tokens,
        threads: arguments.step.threads,
        precision: arguments.step.precision.name(),
        seed: arguments.seed,
        step_seconds,
        cancels: latencies.len(),
        late,
        p50_seconds: quantile(&latencies, 0.5),
        p99_seconds: quantile(&latencies, 0.99),
        longest_seconds: quantile(&latencies, 1.0),
        goal_seconds: GOAL_SECONDS,
    })
}

/// From the cancel to the return of the step; none if the step ended by itself.
fn cancel_after(learning: &mut Learning<'_>, rows: &Rows, after: Duration) -> anyhow::Result<Option<Duration>> {
    let stop = Stop::new();
    std::thread::scope(|scope| {
        let canceller = scope.spawn(|| {
            std::thread::sleep(after);
            let cancelled = Instant::now();
            stop.set();
            cancelled
        });
        let ended = learning.step(rows, None, &stop);
        let returned = Instant::now();
        let Ok(cancelled) = canceller.join() else { bail!("the cancelling thread failed") };
        match ended {
            Ok(_) => Ok(None),
            Err(LearnError::Compute(ComputeError::Cancelled)) => Ok(Some(returned - cancelled)),
            Err(error) => Err(error.into()),
        }
    })
}

fn text(outcome: &Outcome) -> String {
    let Outcome { rows, tokens, threads, step_seconds, cancels, late, .. } = outcome;
    let verdict = if outcome.p99_seconds <= GOAL_SECONDS { "met" } else { "missed" };
    let ms = |seconds: f64| seconds * 1e3;
    format!(
        "{rows}x{tokens}, {threads} threads, a step takes {step_seconds:.2} s; {cancels} cancels, {late} came too late\n\
         p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms; goal: p99 within {:.0} ms, {verdict}",
        ms(outcome.p50_seconds),
        ms(outcome.p99_seconds),
        ms(outcome.longest_seconds),
        ms(GOAL_SECONDS),
    )
}
