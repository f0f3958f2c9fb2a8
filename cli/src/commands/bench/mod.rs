//! `mynah bench`: how fast this machine trains and answers, and what memory that takes.

mod training;

use std::time::{Duration, Instant};

use mynah::budget::peak_resident_bytes;
use mynah_models::{Model, Precision, Stop};
use serde::Serialize;

use self::training::MethodChoice;
use crate::error::CliError;
use crate::interrupt;
use crate::open::{self, ModelArg};
use crate::options::Options;
use crate::output::Output;
use crate::progress::Progress;

/// Passes before the clock runs: caches fill, kernels compile.
const WARM_UP: usize = 1;

/// Measure speed and memory.
///
/// Each pass is timed by itself after one that is not; the median counts. Tokens are drawn at random from the seed.
/// `train` takes whole optimizer steps, with the loss on every position. `cancel` stops such steps at random moments and
/// times how long they take to end.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mynah bench -m smollm2-135m-instruct train --batch 1 --tokens 128
  mynah bench -m smollm2-135m-instruct cancel --batch 4 --tokens 512 --steps 200
  mynah bench -m smollm2-135m-instruct prefill --tokens 512
  mynah bench -m smollm2-135m-instruct decode --tokens 128 --json")]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    model: ModelArg,
    /// What to measure
    #[arg(value_enum)]
    what: Workload,
    /// train, cancel: sequences of one step
    #[arg(long, value_name = "B", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    /// Tokens of a sequence, of the prompt, or of the answer
    #[arg(long, value_name = "T", default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..))]
    tokens: u32,
    /// train, cancel: rank of the adapter, on all seven projections
    #[arg(long, value_name = "R", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    rank: u16,
    /// train, cancel: how it is learned; er and ilora replay as many sequences as are new
    #[arg(long, value_enum, default_value_t = MethodChoice::Sequential)]
    method: MethodChoice,
    /// train, cancel: tokens at the end of each sequence that the loss is on; all if not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    scored: Option<u32>,
    /// train, cancel: megabytes that a step may take beside model and adapters; what does not fit is computed again
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u32).range(1..))]
    memory_budget: Option<u32>,
    /// How many passes are timed, or cancelled
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
}

impl BenchArgs {
    /// New tokens of an optimizer step.
    fn tokens_per_step(&self) -> usize {
        usize::from(self.batch) * self.tokens as usize
    }
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Workload {
    /// Optimizer steps
    Train,
    /// The time from a cancel to the end of the step that it stops
    Cancel,
    /// Reading a prompt
    Prefill,
    /// Writing an answer, token by token
    Decode,
}

#[derive(Debug, Serialize)]
struct Document {
    tokens_per_s: f64,
    s_per_step: f64,
    peak_rss_mb: Option<f64>,
    workload: &'static str,
    tokens_per_step: usize,
    steps: usize,
    load_seconds: f64,
    device: String,
}

/// Runs the verb.
pub(crate) fn run(args: &BenchArgs, options: &Options, output: Output) -> Result<(), CliError> {
    let started = Instant::now();
    let model = open::model(&args.model.model, Precision::Fast, options)?;
    let load_seconds = started.elapsed().as_secs_f64();
    if args.what == Workload::Cancel {
        return training::cancel(&model, args, options, output);
    }
    let (workload, tokens_per_step, times) = match args.what {
        Workload::Prefill => ("prefill", args.tokens as usize, prefill(&model, args, options)?),
        Workload::Decode => ("decode", args.tokens as usize, decode(&model, args, options)?),
        Workload::Train | Workload::Cancel => {
            ("train", args.tokens_per_step(), training::train(&model, args, options)?)
        }
    };
    let s_per_step = median(&times).as_secs_f64();
    let document = Document {
        tokens_per_s: tokens_per_step as f64 / s_per_step,
        s_per_step,
        peak_rss_mb: peak_resident_bytes().map(|bytes| bytes as f64 / 1e6),
        workload,
        tokens_per_step,
        steps: times.len(),
        load_seconds,
        device: model.device().name().to_owned(),
    };
    output.result(&document, || {
        let memory =
            document.peak_rss_mb.map_or_else(|| "unknown".to_owned(), |megabytes| format!("{megabytes:.0} MB"));
        format!(
            "{workload} on {}: {:.1} tokens/s, {:.3} s a pass (median of {}), peak memory {memory}, loaded in {:.2} s",
            document.device, document.tokens_per_s, document.s_per_step, document.steps, document.load_seconds,
        )
    })
}

fn prefill(model: &Model, args: &BenchArgs, options: &Options) -> Result<Vec<Duration>, CliError> {
    let ids = random_ids(model, args.tokens as usize, options.seed);
    let mut cache = model.new_cache(ids.len());
    timed("prefill", args.steps, |stop| {
        cache.reset();
        model.decode(&mut cache, &ids, None, stop)?;
        Ok(())
    })
}

fn decode(model: &Model, args: &BenchArgs, options: &Options) -> Result<Vec<Duration>, CliError> {
    let ids = random_ids(model, args.tokens as usize, options.seed);
    let mut cache = model.new_cache(ids.len());
    timed("decode", args.steps, |stop| {
        cache.reset();
        for id in &ids {
            model.decode(&mut cache, std::slice::from_ref(id), None, stop)?;
        }
        Ok(())
    })
}

/// The times of `passes` passes, after those that warm up.
fn timed(
    label: &str,
    passes: u32,
    mut pass: impl FnMut(&Stop) -> Result<(), CliError>,
) -> Result<Vec<Duration>, CliError> {
    let stop = Stop::new();
    let from_handler = stop.clone();
    interrupt::on_interrupt(move || from_handler.set());
    let progress = Progress::counted(label, u64::from(passes));
    let mut times = Vec::new();
    for index in 0..WARM_UP + passes as usize {
        let started = Instant::now();
        pass(&stop)?;
        if index >= WARM_UP {
            times.push(started.elapsed());
            progress.set(times.len() as u64);
        }
    }
    progress.clear();
    Ok(times)
}

/// The first `count` of [`random`].
fn random_ids(model: &Model, count: usize, seed: u64) -> Vec<u32> {
    random(model, seed).take(count).collect()
}

/// Token ids that mean nothing, the same for the same seed, without end.
fn random(model: &Model, seed: u64) -> impl Iterator<Item = u32> + use<> {
    // A linear congruential generator is random enough to defeat no cache that would matter here.
    let mut state = seed;
    let vocab_size = model.config().vocab_size as u64;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % vocab_size) as u32
    })
}

/// The time in the middle; the mean of the two in the middle where their number is even.
fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    match sorted.len() {
        0 => Duration::ZERO,
        len if len % 2 == 1 => sorted[len / 2],
        len => (sorted[len / 2 - 1] + sorted[len / 2]) / 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let seconds = |values: &[u64]| values.iter().map(|value| Duration::from_secs(*value)).collect::<Vec<_>>();
        assert_eq!(median(&seconds(&[5, 1, 3])), Duration::from_secs(3));
        assert_eq!(median(&seconds(&[4, 1, 2, 9])), Duration::from_secs(3));
        assert_eq!(median(&[]), Duration::ZERO);
    }
}
