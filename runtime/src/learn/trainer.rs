//! The step: micro-batches, losses, gradients, clipping, AdamW, and the method's own after-step.

use burn::tensor::Tensor;
use mynah_models::adapter::Adapter;
use mynah_models::{ComputeError, Model, Stop};
use serde::{Deserialize, Serialize};

use super::batch::{Batch, Row, split};
use super::learners::Learners;
use super::methods::{ContinualMethod, Loss, MicroBatch, Moment, SettingError, StepTotals};
use super::optimizer::{AdamW, OptimizerConfig, clip};

/// What the passes of a step may take by default, beside model, adapters and moments: enough to compute nothing again in
/// micro-batches of the default size.
pub const DEFAULT_MEMORY_BYTES: u64 = 512 << 20;

/// Everything that a step changes. Lives on the host, in f32; the device only ever has copies.
#[derive(Debug, Clone)]
pub struct LearnerState {
    /// The trained adapter.
    pub fast: Adapter,
    /// The served adapter.
    pub slow: Adapter,
    /// Moments of the fast adapter's gradients.
    pub optimizer: AdamW,
}

impl LearnerState {
    /// Starts from one adapter: the slow learner is a copy of it, the moments are zero.
    pub fn new(adapter: Adapter) -> Self {
        let optimizer = AdamW::new(adapter.values().len());
        Self { slow: adapter.clone(), fast: adapter, optimizer }
    }
}

/// How gradients are computed and used.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TrainerConfig {
    /// Learning rate and all that.
    pub optimizer: OptimizerConfig,
    /// Tokens computed at once; a longer example is computed alone. Bounds the memory of activations,
    /// and changes results only by rounding. Default 256.
    pub micro_batch_tokens: usize,
}

impl Default for TrainerConfig {
    fn default() -> Self {
        Self { optimizer: OptimizerConfig::default(), micro_batch_tokens: 256 }
    }
}

impl TrainerConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`SettingError`] names the first that is out of range.
    pub fn check(&self) -> Result<(), SettingError> {
        let tokens = self.micro_batch_tokens;
        SettingError::unless(tokens > 0, "micro_batch_tokens", tokens as f64, "1 or more")?;
        self.optimizer.check()
    }
}

/// Why a step failed. The state is as before it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LearnError {
    /// A loss or gradient is infinite or not a number: the learning rate is too high, or the state is damaged.
    #[error("step {step}: the loss is {loss} and its gradient's norm {grad_norm}")]
    NotFinite {
        /// Number of the step in its run, from 1.
        step: u64,
        /// The loss.
        loss: f64,
        /// L2 norm of the gradient.
        grad_norm: f64,
    },
    /// The device failed, or someone cancelled.
    #[error(transparent)]
    Compute(#[from] ComputeError),
}

/// The examples of one step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StepRows<'a> {
    /// What the run is to learn.
    pub new: Vec<Row<'a>>,
    /// What is replayed beside it.
    pub replayed: Vec<Row<'a>>,
}

/// What a step measured, all before its update.
#[derive(Debug, Clone, PartialEq)]
pub struct StepLog {
    /// Mean cross entropy of the new examples' scored tokens, in nats.
    pub cross_entropy: f64,
    /// The same of the replayed ones, where there were any.
    pub replayed_cross_entropy: Option<f64>,
    /// Mean consistency, where the method has one and something was replayed.
    pub consistency: Option<f64>,
    /// What was minimized.
    pub loss: f64,
    /// Mean negative log likelihood of each new example's scored tokens in nats, in the order of the rows.
    pub new_nll: Vec<f32>,
    /// L2 norm of its gradient, before clipping.
    pub grad_norm: f64,
    /// Forward passes over the base, of both learners.
    pub forward_passes: u64,
    /// Tokens that went through the fast learner.
    pub tokens: usize,
}

/// Takes steps.
#[derive(Debug)]
pub struct Trainer<'a, M> {
    model: &'a Model,
    method: M,
    config: TrainerConfig,
    memory_bytes: u64,
}

impl<'a, M: ContinualMethod> Trainer<'a, M> {
    /// A trainer of adapters for `model`.
    pub fn new(model: &'a Model, method: M, config: TrainerConfig) -> Self {
        Self { model, method, config, memory_bytes: DEFAULT_MEMORY_BYTES }
    }

    /// Bounds what the passes of a step may take beside model, adapters and moments. Activations that do not fit are computed
    /// again on the way back: that takes up to a third more time and gives the same bits. A pass that needs more even then
    /// takes what it needs. Default [`DEFAULT_MEMORY_BYTES`].
    pub fn memory_budget(self, bytes: u64) -> Self {
        Self { memory_bytes: bytes, ..self }
    }

    /// Takes one step: changes `state` as a whole, or not at all.
    ///
    /// `stop` is looked at between layers, forwards and backwards; a step that was stopped has not happened.
    ///
    /// # Errors
    /// [`LearnError`]; [`ComputeError::Cancelled`] after a stop.
    pub fn step(
        &self,
        state: &mut LearnerState,
        rows: &StepRows<'_>,
        moment: Moment,
        stop: &Stop,
    ) -> Result<StepLog, LearnError> {
        let micro_batches = self.micro_batches(rows)?;
        let slow = self.method.asks_slow().then_some(&state.slow);
        let learners = Learners::upload(self.model, &state.fast, slow, &rows.replayed, self.memory_bytes)?;
        let mut gradient: Option<Vec<f32>> = None;
        let mut measured = Measured::default();
        for micro in &micro_batches {
            let loss = self.method.loss(&learners, micro, stop)?;
            measured.add(micro, self.read(&loss)?);
            let part = loss.tape.gradients(&loss.total)?;
            match &mut gradient {
                Some(gradient) => add(gradient, &part),
                None => gradient = Some(part),
            }
            stop.check()?;
        }
        let mut gradient = gradient.unwrap_or_else(|| vec![0.0; state.fast.values().len()]);
        let grad_norm = clip(&mut gradient, self.config.optimizer.max_grad_norm);
        check_finite(moment, measured.loss, grad_norm)?;
        let rate = self.config.optimizer.learning_rate_at(state.optimizer.steps());
        state.optimizer.step(state.fast.values_mut(), &gradient, rate, &self.config.optimizer);
        self.method.after_step(moment, &state.fast, &mut state.slow);
        Ok(measured.log(grad_norm, learners.forward_passes(), &micro_batches))
    }

    /// The step's rows in parts that are computed one after another, each knowing what the whole step has.
    fn micro_batches(&self, rows: &StepRows<'_>) -> Result<Vec<MicroBatch>, ComputeError> {
        let step = StepTotals::of(rows);
        let all: Vec<Row<'_>> = rows.new.iter().chain(&rows.replayed).copied().collect();
        let (mut new_rows, mut replayed_tokens) = (rows.new.len(), 0);
        let mut parts = Vec::new();
        for part in split(&all, self.config.micro_batch_tokens) {
            let (new, replayed) = part.split_at(new_rows.min(part.len()));
            new_rows -= new.len();
            let first = replayed_tokens;
            replayed_tokens += replayed.iter().map(|row| row.tokens.len()).sum::<usize>();
            parts.push(MicroBatch {
                batch: Batch::new(&part)?,
                new_rows: new.len(),
                new_positions: new.iter().map(|row| row.scored().len()).sum(),
                replayed: first..replayed_tokens,
                step,
            });
        }
        Ok(parts)
    }

    /// The numbers of a loss, in one transfer from the device.
    fn read(&self, loss: &Loss<'_>) -> Result<Numbers, ComputeError> {
        let terms: Terms<Option<Tensor<1>>> = [
            Some(loss.total.clone().inner()),
            loss.cross_entropy.clone(),
            loss.replayed_cross_entropy.clone(),
            loss.consistency.clone(),
        ];
        let there: Vec<Tensor<1>> = terms.iter().flatten().chain([&loss.token_nll]).cloned().collect();
        let mut values = self.model.device().read_all(there)?.into_iter().flatten();
        let terms = terms.map(|term| term.and_then(|_| values.next()).map(f64::from));
        Ok(Numbers { terms, token_nll: values.collect() })
    }
}

/// Of a loss: the total, the cross entropies of new and replayed rows, the consistency.
type Terms<T> = [T; 4];

/// A [`Loss`] on the host.
#[derive(Debug)]
struct Numbers {
    terms: Terms<Option<f64>>,
    token_nll: Vec<f32>,
}

/// Sums over the micro-batches of a step.
#[derive(Debug, Default)]
struct Measured {
    loss: f64,
    cross_entropy: f64,
    replayed_cross_entropy: Option<f64>,
    consistency: Option<f64>,
    new_nll: Vec<f32>,
}

impl Measured {
    fn add(&mut self, micro: &MicroBatch, numbers: Numbers) {
        let [loss, cross_entropy, replayed_cross_entropy, consistency] = numbers.terms;
        self.new_nll.extend(micro.batch.row_means(&numbers.token_nll).into_iter().take(micro.new_rows));
        self.loss += loss.unwrap_or(f64::NAN);
        self.cross_entropy += cross_entropy.unwrap_or(0.0);
        for (sum, part) in
            [(&mut self.replayed_cross_entropy, replayed_cross_entropy), (&mut self.consistency, consistency)]
        {
            if let Some(part) = part {
                *sum = Some(sum.unwrap_or(0.0) + part);
            }
        }
    }

    fn log(self, grad_norm: f64, forward_passes: u64, micro_batches: &[MicroBatch]) -> StepLog {
        StepLog {
            cross_entropy: self.cross_entropy,
            replayed_cross_entropy: self.replayed_cross_entropy,
            consistency: self.consistency,
            loss: self.loss,
            new_nll: self.new_nll,
            grad_norm,
            forward_passes,
            tokens: micro_batches.iter().map(|micro| micro.batch.tokens.ids().len()).sum(),
        }
    }
}

fn add(sum: &mut [f32], part: &[f32]) {
    sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
}

fn check_finite(moment: Moment, loss: f64, grad_norm: f64) -> Result<(), LearnError> {
    if loss.is_finite() && grad_norm.is_finite() {
        return Ok(());
    }
    Err(LearnError::NotFinite { step: moment.steps_done, loss, grad_norm })
}
