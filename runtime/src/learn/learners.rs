//! The two learners of a step on the device: one frozen base, the fast adapter tracked, the slow one not.

use std::cell::Cell;

use burn::tensor::Tensor;
use mynah_models::adapter::Adapter;
use mynah_models::{ComputeError, DeviceAdapter, Model, Stop};

use super::batch::Batch;
use super::loss;

/// What a method computes with.
#[derive(Debug)]
pub struct Learners<'a> {
    model: &'a Model,
    fast: DeviceAdapter,
    slow: Option<DeviceAdapter>,
    are_equal: bool,
    forward_passes: Cell<u64>,
}

impl<'a> Learners<'a> {
    /// Brings `fast` to the model's device, and `slow` where a method asks for it and it differs.
    ///
    /// # Errors
    /// [`ComputeError::AdapterShape`] for an adapter of another model.
    pub fn upload(model: &'a Model, fast: &Adapter, slow: Option<&Adapter>) -> Result<Self, ComputeError> {
        let are_equal = slow.is_some_and(|slow| slow.values() == fast.values());
        let slow = slow.filter(|_| !are_equal).map(|slow| model.upload(slow, false)).transpose()?;
        Ok(Self { model, fast: model.upload(fast, true)?, slow, are_equal, forward_passes: Cell::new(0) })
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

    /// Hidden states of the fast learner at `depths`, tracked for gradients. The last depth is the model's last.
    ///
    /// # Shapes
    /// `[rows * cols, hidden_size]` each.
    ///
    /// # Errors
    /// [`ComputeError`], a cancel through `stop` included.
    pub fn fast(&self, batch: &Batch, depths: &[usize], stop: &Stop) -> Result<Vec<Tensor<2>>, ComputeError> {
        self.forward(batch, depths, &self.fast, stop)
    }

    /// Hidden states of the slow learner, constants to gradients. Shapes and errors as [`Learners::fast`].
    ///
    /// # Panics
    /// If the method did not say that it [asks](super::ContinualMethod::asks_slow) the slow learner, or the two
    /// [are equal](Learners::are_equal).
    pub fn slow(&self, batch: &Batch, depths: &[usize], stop: &Stop) -> Result<Vec<Tensor<2>>, ComputeError> {
        let Some(slow) = &self.slow else { panic!("the slow learner was not announced, or is the fast one") };
        Ok(self.forward(batch, depths, slow, stop)?.into_iter().map(Tensor::inner).collect())
    }

    /// Negative log likelihood of each of a batch's scored tokens, `[positions]`, in nats.
    ///
    /// # Errors
    /// [`ComputeError::TokenOutOfRange`] for a target that the vocabulary does not have.
    pub fn token_nll(&self, hidden: &Tensor<2>, batch: &Batch) -> Result<Tensor<1>, ComputeError> {
        loss::token_nll(self.model, hidden, batch)
    }

    /// Goes backwards from a loss of the fast learner. Gives the gradient in the order of [`Adapter::values`].
    ///
    /// # Errors
    /// [`ComputeError::Device`] if the device failed.
    pub fn gradient(&self, loss: &Tensor<1>) -> Result<Vec<f32>, ComputeError> {
        self.fast.gradients(&loss.backward())
    }

    /// Forward passes so far, over either learner.
    pub fn forward_passes(&self) -> u64 {
        self.forward_passes.get()
    }

    fn forward(
        &self,
        batch: &Batch,
        depths: &[usize],
        adapter: &DeviceAdapter,
        stop: &Stop,
    ) -> Result<Vec<Tensor<2>>, ComputeError> {
        self.forward_passes.set(self.forward_passes.get() + 1);
        self.model.hidden_states(&batch.tokens, depths, Some(adapter), stop)
    }
}
