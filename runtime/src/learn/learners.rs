//! The two learners of a step on the device: one frozen base, and gradients for the fast adapter only.

use std::cell::{Cell, OnceCell};
use std::ops::Range;

use burn::tensor::Tensor;
use mynah_models::adapter::Adapter;
use mynah_models::{ComputeError, DeviceAdapter, Model, Stop, Tape, TapeMemory, TokenBatch};

use super::batch::{Batch, Row, split};
use super::loss;

/// Tokens of one pass of the slow learner. It keeps nothing, so a pass may be longer than one of the fast learner; more than
/// these gain nothing.
const SLOW_PASS_TOKENS: usize = 512;

/// What a method computes with.
#[derive(Debug)]
pub struct Learners<'a> {
    model: &'a Model,
    fast: DeviceAdapter,
    slow: Option<DeviceAdapter>,
    /// The replayed rows of the step, as many at a time as one pass of the slow learner takes.
    replayed: Vec<TokenBatch>,
    /// The slow learner's states of all of them.
    slow_states: OnceCell<Vec<Tensor<2>>>,
    are_equal: bool,
    activation_bytes: u64,
    forward_passes: Cell<u64>,
}

impl<'a> Learners<'a> {
    /// Brings `fast` to the model's device, and `slow` where a method asks for it and it differs. `replayed` are the rows
    /// that the slow learner may be asked about; a pass of the fast one keeps what fits `activation_bytes`.
    ///
    /// # Errors
    /// [`ComputeError::AdapterShape`] for an adapter of another model.
    pub fn upload(
        model: &'a Model,
        fast: &Adapter,
        slow: Option<&Adapter>,
        replayed: &[Row<'_>],
        activation_bytes: u64,
    ) -> Result<Self, ComputeError> {
        let are_equal = slow.is_some_and(|slow| slow.values() == fast.values());
        let slow = slow.filter(|_| !are_equal).map(|slow| model.upload(slow)).transpose()?;
        let tokens_of = |part: Vec<Row<'_>>| TokenBatch::packed(&part.iter().map(|row| row.tokens).collect::<Vec<_>>());
        let replayed = split(replayed, SLOW_PASS_TOKENS).into_iter().map(tokens_of).collect::<Result<_, _>>()?;
        let (fast, slow_states, forward_passes) = (model.upload(fast)?, OnceCell::new(), Cell::new(0));
        Ok(Self { model, fast, slow, replayed, slow_states, are_equal, activation_bytes, forward_passes })
    }

    /// Whether the two adapters have the same values: then their hidden states differ by rounding at most, and nothing
    /// needs to be computed to know that.
    pub fn are_equal(&self) -> bool {
        self.are_equal
    }

    /// The base.
    pub fn model(&self) -> &Model {
        self.model
    }

    /// Decoder layers of the base.
    pub fn num_hidden_layers(&self) -> usize {
        self.model.config().num_hidden_layers
    }

    /// Hidden states of the fast learner at `depths`, and the way back from them. The last depth is the model's last.
    ///
    /// # Errors
    /// [`ComputeError`], a cancel through `stop` included.
    pub fn fast<'s>(&'s self, batch: &Batch, depths: &[usize], stop: &'s Stop) -> Result<Tape<'s>, ComputeError> {
        self.count_pass();
        let (layers, tokens) = (self.num_hidden_layers(), batch.tokens.ids().len());
        let memory = TapeMemory::of(self.model.config(), self.fast.rank(), tokens);
        let kept_layers = memory.kept_layers(layers, self.activation_bytes);
        self.model.record(&batch.tokens, depths, &self.fast, kept_layers, stop)
    }

    /// Hidden states of the slow learner over some of the tokens of the step's replayed rows, constants to gradients. All of
    /// them are computed at the first call, so every call of a step asks for the same `depths`.
    ///
    /// # Shapes
    /// `[tokens.len(), hidden_size]` each.
    ///
    /// # Errors
    /// As [`Learners::fast`].
    ///
    /// # Panics
    /// If the method did not say that it [asks](super::ContinualMethod::asks_slow) the slow learner, or the two
    /// [are equal](Learners::are_equal).
    pub fn slow(&self, depths: &[usize], tokens: Range<usize>, stop: &Stop) -> Result<Vec<Tensor<2>>, ComputeError> {
        let states = match self.slow_states.get() {
            Some(states) => states,
            None => {
                let states = self.all_slow_states(depths, stop)?;
                self.slow_states.get_or_init(|| states)
            }
        };
        let part = |state: &Tensor<2>| state.clone().slice([tokens.clone(), 0..state.dims()[1]]);
        Ok(states.iter().map(part).collect())
    }

    fn all_slow_states(&self, depths: &[usize], stop: &Stop) -> Result<Vec<Tensor<2>>, ComputeError> {
        let Some(slow) = &self.slow else { panic!("the slow learner was not announced, or is the fast one") };
        let mut by_depth = vec![Vec::new(); depths.len()];
        for tokens in &self.replayed {
            self.count_pass();
            let states = self.model.hidden_states(tokens, depths, Some(slow), stop)?;
            by_depth.iter_mut().zip(states).for_each(|(all, state)| all.push(state));
        }
        Ok(by_depth.into_iter().map(|parts| Tensor::cat(parts, 0)).collect())
    }

    /// Negative log likelihood of each of a batch's scored tokens, `[positions]`, in nats.
    ///
    /// # Errors
    /// [`ComputeError::TokenOutOfRange`] for a target that the vocabulary does not have; a cancel.
    pub fn token_nll(&self, hidden: &Tensor<2>, batch: &Batch, stop: &Stop) -> Result<Tensor<1>, ComputeError> {
        self.model.token_nll(loss::select(hidden, &batch.positions), &batch.targets, stop)
    }

    /// Forward passes so far, over either learner.
    pub fn forward_passes(&self) -> u64 {
        self.forward_passes.get()
    }

    fn count_pass(&self) {
        self.forward_passes.set(self.forward_passes.get() + 1);
    }
}
