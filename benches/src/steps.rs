//! Training steps that are timed from the inside: a trainer, its state, and rows of tokens.

use anyhow::Context;
use mynah::learn::{LearnError, LearnerState, Method, Moment, Row, StepLog, StepRows, Trainer, TrainerConfig};
use mynah_models::adapter::{Adapter, LoraConfig};
use mynah_models::{Model, Stop};

use crate::model::random_ids;

/// Rows of one step, all of one length, with the loss on every token but the first.
#[derive(Debug, Clone)]
pub struct Rows {
    ids: Vec<u32>,
    tokens: usize,
}

impl Rows {
    /// `rows` times `tokens` token ids that mean nothing.
    pub fn random(model: &Model, rows: usize, tokens: usize, seed: u64) -> Self {
        Self { ids: random_ids(model.config().vocab_size, rows * tokens, seed), tokens }
    }

    fn rows(&self) -> Vec<Row<'_>> {
        self.ids.chunks(self.tokens).map(|tokens| Row { tokens, prompt_len: 1 }).collect()
    }
}

/// A learner in the middle of a run.
#[derive(Debug)]
pub struct Learning<'a> {
    trainer: Trainer<'a, Method>,
    state: LearnerState,
    steps_done: u64,
}

impl<'a> Learning<'a> {
    /// Begins with a fresh adapter of rank 8.
    ///
    /// # Errors
    /// If the model has none of the projections.
    pub fn begin(model: &'a Model, method: Method) -> anyhow::Result<Self> {
        let adapter = Adapter::init(model.config(), &LoraConfig::default(), 0).context("cannot make an adapter")?;
        let trainer = Trainer::new(model, method, TrainerConfig::default());
        Ok(Self { trainer, state: LearnerState::new(adapter), steps_done: 0 })
    }

    /// Takes one step.
    ///
    /// # Errors
    /// [`LearnError`], a stop included.
    pub fn step(&mut self, new: &Rows, replayed: Option<&Rows>, stop: &Stop) -> Result<StepLog, LearnError> {
        let rows = StepRows { new: new.rows(), replayed: replayed.map(Rows::rows).unwrap_or_default() };
        let moment = Moment { steps_done: self.steps_done + 1, steps_total: u64::MAX };
        let log = self.trainer.step(&mut self.state, &rows, moment, stop)?;
        self.steps_done += 1;
        Ok(log)
    }
}
