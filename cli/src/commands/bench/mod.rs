//! `mynah bench`: how fast this machine trains and answers, and what memory that takes.

mod training;

use std::time::{Duration, Instant};

use mynah::budget::peak_resident_bytes;
use mynah_models::{GpuWork, Model, Precision, Stop};
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
    /// On a GPU: kernels launched, tensors read back and how the work was cut, for one pass.
    launches_per_token: Option<f64>,
    reads_per_token: Option<f64>,
    submissions_ms: Option<Submissions>,
}

/// How long submissions to a GPU took, in milliseconds.
#[derive(Debug, Serialize)]
struct Submissions {
    count: usize,
    p50: f64,
    p99: f64,
    max: f64,
}

/// What passes measured.
struct Timed {
    times: Vec<Duration>,
    /// Of one more pass, on a GPU.
    work: Option<GpuWork>,
}

/// Runs the verb.
pub(crate) fn run(args: &BenchArgs, options: &Options, output: Output) -> Result<(), CliError> {
    let started = Instant::now();
    let model = open::model(&args.model.model, Precision::Fast, options)?;
    let load_seconds = started.elapsed().as_secs_f64();
    if args.what == Workload::Cancel {
        return training::cancel(&model, args, options, output);
    }
    let (workload, tokens_per_step, Timed { times, work }) = match args.what {
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
        launches_per_token: work.as_ref().map(|work| work.launches as f64 / tokens_per_step as f64),
        reads_per_token: work.as_ref().map(|work| work.reads as f64 / tokens_per_step as f64),
        submissions_ms: work.and_then(|work| Submissions::of(work.submissions)),
    };
    output.result(&document, || {
        let memory =
            document.peak_rss_mb.map_or_else(|| "unknown".to_owned(), |megabytes| format!("{megabytes:.0} MB"));
        let mut text = format!(
            "{workload} on {}: {:.1} tokens/s, {:.3} s a pass (median of {}), peak memory {memory}, loaded in {:.2} s",
            document.device, document.tokens_per_s, document.s_per_step, document.steps, document.load_seconds,
        );
        if let (Some(launches), Some(reads)) = (document.launches_per_token, document.reads_per_token) {
            text.push_str(&format!("\n{launches:.2} launches and {reads:.3} reads a token"));
        }
        if let Some(Submissions { count, p50, p99, max }) = &document.submissions_ms {
            text.push_str(&format!(
                "\n{count} submissions a pass: median {p50:.1} ms, p99 {p99:.1} ms, longest {max:.1} ms"
            ));
        }
        text
    })
}

impl Submissions {
    fn of(mut times: Vec<Duration>) -> Option<Self> {
        times.sort();
        let at = |share: f64| {
            let rank = (share * times.len() as f64).ceil() as usize;
            times.get(rank.max(1) - 1).map(|time| time.as_secs_f64() * 1e3)
        };
        Some(Self { count: times.len(), p50: at(0.5)?, p99: at(0.99)?, max: at(1.0)? })
    }
}

fn prefill(model: &Model, args: &BenchArgs, options: &Options) -> Result<Timed, CliError> {
    let ids = random_ids(model, args.tokens as usize, options.seed);
    let mut cache = model.new_cache(ids.len());
    timed(model, "prefill", args.steps, |stop| {
        cache.reset();
        model.decode(&mut cache, &ids, None, stop)?;
        Ok(())
    })
}

fn decode(model: &Model, args: &BenchArgs, options: &Options) -> Result<Timed, CliError> {
    let ids = random_ids(model, args.tokens as usize, options.seed);
    let mut cache = model.new_cache(ids.len());
    timed(model, "decode", args.steps, |stop| {
        cache.reset();
        for id in &ids {
            model.decode(&mut cache, std::slice::from_ref(id), None, stop)?;
        }
        Ok(())
    })
}

/// The times of `passes` passes, after those that warm up; on a GPU one more is observed.
fn timed(
    model: &Model,
    label: &str,
    passes: u32,
    mut pass: impl FnMut(&Stop) -> Result<(), CliError>,
) -> Result<Timed, CliError> {
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
    let work = match model.device().is_gpu() {
        true => {
            let (passed, work) = model.device().observed(|| pass(&stop));
            passed?;
            work
        }
        false => None,
    };
    progress.clear();
    Ok(Timed { times, work })
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

    #[test]
    fn a_percentile_is_a_time_that_was_measured() {
        let times: Vec<Duration> = (1..=200).rev().map(Duration::from_millis).collect();
        let Some(Submissions { count, p50, p99, max }) = Submissions::of(times) else { panic!("no times") };
        assert_eq!((count, p50, p99, max), (200, 100.0, 198.0, 200.0));
        assert!(Submissions::of(Vec::new()).is_none());
    }
}
