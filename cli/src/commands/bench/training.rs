//! Optimizer steps: how fast they are, and how soon one ends that was cancelled.

use std::time::{Duration, Instant};

use mynah::learn::{Er, Ilora, LearnError, LearnerState, Method, Moment, Row, Sequential};
use mynah::learn::{StepRows, Trainer, TrainerConfig};
use mynah_models::adapter::{Adapter, LoraConfig};
use mynah_models::{ComputeError, Model, Stop};
use serde::Serialize;

use super::{BenchArgs, Timed, median, random, random_ids, timed};
use crate::error::CliError;
use crate::options::Options;
use crate::output::Output;
use crate::progress::Progress;

/// Methods that a step can be taken with. All but the first replay as many sequences as are new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum MethodChoice {
    Sequential,
    Er,
    Ilora,
}

impl MethodChoice {
    fn method(self) -> Method {
        match self {
            Self::Sequential => Method::Sequential(Sequential),
            Self::Er => Method::Er(Er::DEFAULT),
            Self::Ilora => Method::Ilora(Ilora::DEFAULT),
        }
    }
}

/// One step that is taken again and again.
struct Training<'a> {
    trainer: Trainer<'a, Method>,
    state: LearnerState,
    new: Vec<u32>,
    replayed: Vec<u32>,
    row_tokens: usize,
    /// Tokens at the head of a row that are not scored.
    prompt_len: usize,
    steps_done: u64,
}

impl<'a> Training<'a> {
    fn new(model: &'a Model, args: &BenchArgs, options: &Options) -> Result<Self, CliError> {
        let lora = LoraConfig { rank: usize::from(args.rank), ..LoraConfig::default() };
        let (row_tokens, tokens) = (args.tokens as usize, args.tokens_per_step());
        let replayed = if args.method == MethodChoice::Sequential { 0 } else { tokens };
        let mut new = random_ids(model, tokens + replayed, options.seed);
        let replayed = new.split_off(tokens);
        let mut trainer = Trainer::new(model, args.method.method(), TrainerConfig::default());
        if let Some(megabytes) = args.memory_budget {
            trainer = trainer.memory_budget(u64::from(megabytes) * 1_000_000);
        }
        let scored = args.scored.map_or(row_tokens, |scored| scored as usize);
        Ok(Self {
            trainer,
            state: LearnerState::new(Adapter::init(model.config(), &lora, options.seed)?),
            new,
            replayed,
            row_tokens,
            prompt_len: row_tokens.saturating_sub(scored).max(1),
            steps_done: 0,
        })
    }

    fn step(&mut self, stop: &Stop) -> Result<(), LearnError> {
        let rows = |ids| rows(ids, self.row_tokens, self.prompt_len);
        let rows = StepRows { new: rows(&self.new), replayed: rows(&self.replayed) };
        let moment = Moment { steps_done: self.steps_done + 1, steps_total: u64::MAX };
        self.trainer.step(&mut self.state, &rows, moment, stop)?;
        self.steps_done += 1;
        Ok(())
    }
}

fn rows(ids: &[u32], row_tokens: usize, prompt_len: usize) -> Vec<Row<'_>> {
    ids.chunks(row_tokens).map(|tokens| Row { tokens, prompt_len }).collect()
}

/// The times of steps.
pub(super) fn train(model: &Model, args: &BenchArgs, options: &Options) -> Result<Timed, CliError> {
    let mut training = Training::new(model, args, options)?;
    timed(model, "training", args.steps, |stop| Ok(training.step(stop)?))
}

#[derive(Debug, Serialize)]
struct Document {
    /// From the cancel to the return of the step, in the middle of all.
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    cancels: usize,
    /// A step that is not cancelled.
    s_per_step: f64,
    tokens_per_step: usize,
    device: String,
}

/// Cancels steps at moments spread evenly at random over their length, and prints how soon they end.
pub(super) fn cancel(model: &Model, args: &BenchArgs, options: &Options, output: Output) -> Result<(), CliError> {
    let mut training = Training::new(model, args, options)?;
    let whole_step = median(&timed(model, "training", 2, |stop| Ok(training.step(stop)?))?.times);
    let progress = Progress::counted("cancelling", u64::from(args.steps));
    let of_step = |id: u32| whole_step.mul_f64(f64::from(id) / model.config().vocab_size as f64);
    let mut moments = random(model, options.seed).map(of_step);
    let mut delays = Vec::new();
    while delays.len() < args.steps as usize {
        let Some(moment) = moments.next() else { break };
        delays.extend(cancelled_after(&mut training, moment)?);
        progress.set(delays.len() as u64);
    }
    progress.clear();
    delays.sort();
    let milliseconds = |share: f64| {
        let rank = (share * delays.len() as f64).ceil() as usize;
        delays[rank.clamp(1, delays.len()) - 1].as_secs_f64() * 1e3
    };
    let document = Document {
        p50_ms: milliseconds(0.5),
        p99_ms: milliseconds(0.99),
        max_ms: milliseconds(1.0),
        cancels: delays.len(),
        s_per_step: whole_step.as_secs_f64(),
        tokens_per_step: args.tokens_per_step(),
        device: model.device().name().to_owned(),
    };
    output.result(&document, || {
        let Document { p50_ms, p99_ms, max_ms, cancels, s_per_step, .. } = &document;
        format!(
            "{cancels} steps of {s_per_step:.3} s cancelled: ended after {p50_ms:.1} ms (median), {p99_ms:.1} ms \
             (99 of 100), {max_ms:.1} ms (longest)"
        )
    })
}

/// How long a step goes on that is cancelled `moment` after its begin; none if it was over by then.
fn cancelled_after(training: &mut Training<'_>, moment: Duration) -> Result<Option<Duration>, CliError> {
    let stop = Stop::new();
    std::thread::scope(|scope| {
        let from_elsewhere = stop.clone();
        let canceller = scope.spawn(move || {
            std::thread::sleep(moment);
            let cancelled = Instant::now();
            from_elsewhere.set();
            cancelled
        });
        let result = training.step(&stop);
        let ended = Instant::now();
        let Ok(cancelled) = canceller.join() else { return Ok(None) };
        match result {
            Ok(()) | Err(LearnError::Compute(ComputeError::Cancelled)) => Ok(ended.checked_duration_since(cancelled)),
            Err(error) => Err(error.into()),
        }
    })
}
