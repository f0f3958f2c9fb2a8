//! Our side of a race: a process that answers requests, as the scripts in `peers/` do for the others.
//!
//! A request is one line of JSON on standard input, its answer one line on standard output; `peers/serve.py` lists them.

use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use mynah::budget::peak_resident_bytes;
use mynah::learn::{LearnerState, Method, Moment, Row, Sequential, StepRows, Trainer, TrainerConfig};
use mynah_models::adapter::{Adapter, LoraConfig};
use mynah_models::{ComputeDevice, KvCache, Model, Stop};
use serde::{Deserialize, Serialize};

use crate::model;

/// What one side is to do, as often as it is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// What.
    pub kind: Kind,
    /// Sequences of a training step; 1 otherwise.
    pub rows: usize,
    /// Tokens of each.
    pub tokens: usize,
    /// How many tokens of a sequence, counted from its end, the loss is taken on.
    pub scored: usize,
    /// Rank of the adapter.
    pub rank: usize,
    /// Threads that compute.
    pub threads: usize,
    /// `rows · tokens` token ids.
    pub ids: Vec<u32>,
}

/// Kinds of passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One optimizer step of a LoRA adapter
    Train,
    /// Reading a prompt
    Prefill,
    /// Writing token by token
    Decode,
    /// From the start of the process to the first token after a prompt
    Start,
}

/// A request of a race.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// Load the model and make the pass that warms up.
    Prepare(Workload),
    /// Make one timed pass.
    Run(bool),
    /// Tell the largest resident size so far.
    Memory(bool),
}

/// The answer to any request; what a request does not ask for is absent.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Answer {
    /// The model is loaded and warm.
    pub ready: bool,
    /// Duration of the pass.
    pub seconds: Option<f64>,
    /// Loss of the pass, before its update.
    pub loss: Option<f64>,
    /// Largest resident size of the process.
    pub peak_rss_bytes: Option<u64>,
    /// Why the request failed.
    pub error: Option<String>,
}

/// Answers requests until the input ends.
///
/// # Errors
/// If input or output break; what fails within a request is its answer.
pub fn serve(file: &Path, device: &ComputeDevice) -> anyhow::Result<()> {
    let (input, mut output) = (std::io::stdin().lock(), std::io::stdout().lock());
    let mut runner = None;
    for line in input.lines() {
        let answer = match serde_json::from_str(&line?) {
            Ok(request) => respond(file, device, request, &mut runner),
            Err(error) => Err(error.into()),
        };
        let answer = answer.unwrap_or_else(|error| Answer { error: Some(format!("{error:#}")), ..Answer::default() });
        writeln!(output, "{}", serde_json::to_string(&answer)?)?;
        output.flush()?;
    }
    Ok(())
}

fn respond(
    file: &Path,
    device: &ComputeDevice,
    request: Request,
    runner: &mut Option<Runner>,
) -> anyhow::Result<Answer> {
    let warm = |runner: &mut Option<Runner>| runner.as_mut().context("nothing is prepared")?.pass();
    match request {
        Request::Prepare(workload) => {
            let is_cold = workload.kind == Kind::Start;
            model::start_threads(workload.threads)?;
            *runner = Some(Runner::new(model::load(file, device)?, workload)?);
            let loss = if is_cold { None } else { warm(runner)? };
            Ok(Answer { ready: true, loss, ..Answer::default() })
        }
        Request::Run(_) => {
            let started = Instant::now();
            let loss = warm(runner)?;
            Ok(Answer { seconds: Some(started.elapsed().as_secs_f64()), loss, ..Answer::default() })
        }
        Request::Memory(_) => Ok(Answer { peak_rss_bytes: peak_resident_bytes(), ..Answer::default() }),
    }
}

/// A loaded model and what a pass needs.
struct Runner {
    model: Model,
    workload: Workload,
    state: Option<LearnerState>,
    cache: KvCache,
    steps_done: u64,
}

impl Runner {
    fn new(model: Model, workload: Workload) -> anyhow::Result<Self> {
        let lora = LoraConfig { rank: workload.rank, alpha: 2.0 * workload.rank as f32, ..LoraConfig::default() };
        let state = match workload.kind {
            Kind::Train => Some(LearnerState::new(Adapter::init(model.config(), &lora, 0)?)),
            Kind::Prefill | Kind::Decode | Kind::Start => None,
        };
        Ok(Self { cache: model.new_cache(workload.tokens), model, workload, state, steps_done: 0 })
    }

    fn pass(&mut self) -> anyhow::Result<Option<f64>> {
        let Self { model, workload, state, cache, steps_done } = self;
        let stop = Stop::new();
        cache.reset();
        match state {
            Some(state) => {
                let prompt_len = workload.tokens - workload.scored;
                let rows = workload.ids.chunks(workload.tokens).map(|tokens| Row { tokens, prompt_len });
                let rows = StepRows { new: rows.collect(), replayed: Vec::new() };
                *steps_done += 1;
                let moment = Moment { steps_done: *steps_done, steps_total: u64::MAX };
                let trainer = Trainer::new(model, Method::Sequential(Sequential), TrainerConfig::default());
                Ok(Some(trainer.step(state, &rows, moment, &stop)?.loss))
            }
            None => {
                let at_once = if workload.kind == Kind::Decode { 1 } else { workload.tokens };
                for ids in workload.ids.chunks(at_once) {
                    model.decode(cache, ids, None, &stop)?;
                }
                Ok(None)
            }
        }
    }
}
