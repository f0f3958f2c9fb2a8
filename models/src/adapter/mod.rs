//! A LoRA adapter on the host: one flat vector of floats, and the layout that says what lies where.
//!
//! Burn-free: learning, checkpoints and file formats move these floats without a tensor. How they act on a layer is
//! `y = W x + scaling · B (A x)`, computed elsewhere.

mod error;
mod inspect;
mod layout;
mod peft;
#[cfg(test)]
mod peft_tests;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

pub use error::AdapterError;
pub use inspect::{PeftSummary, inspect_peft};
pub use layout::{AdapterLayout, LoraConfig, PairLayout};
pub use peft::{BaseIdentity, PeftAdapter, read_peft, write_peft};

use crate::config::ModelConfig;

/// Pairs of low-rank matrices for some projections of every decoder layer.
///
/// The values lie layer after layer, within a layer in the order of [`Projection::ALL`](crate::Projection::ALL), of each
/// pair A then B, row-major as PEFT stores them: A `[rank, d_in]`, B `[d_out, rank]`. The rows of B follow Hugging
/// Face's order of outputs, also where the model file's differs ([`ModelConfig::file_row_order`]).
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    layout: Arc<AdapterLayout>,
    values: Vec<f32>,
}

impl Adapter {
    /// A fresh adapter, which changes nothing yet: A uniform in ±1/√d_in, B zero, as PEFT begins.
    ///
    /// The values of a pair depend on the seed, its layer and its projection only, not on what else is targeted.
    ///
    /// # Errors
    /// [`AdapterError::Setting`] if the configuration is out of range.
    pub fn init(model: &ModelConfig, config: &LoraConfig, seed: u64) -> Result<Self, AdapterError> {
        let layout = AdapterLayout::new(model, config)?;
        let mut adapter = Self::zeros(&layout);
        for pair in layout.pairs() {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream((pair.layer * 7 + pair.projection as usize) as u64);
            let bound = 1.0 / (pair.d_in as f32).sqrt();
            for value in &mut adapter.values[pair.a.clone()] {
                // 24 bits fill the mantissa: uniform in [0, 1), then in [-bound, bound).
                let unit = (rng.next_u32() >> 8) as f32 / (1 << 24) as f32;
                *value = bound * (2.0 * unit - 1.0);
            }
        }
        Ok(adapter)
    }

    /// All zeros.
    pub fn zeros(layout: &Arc<AdapterLayout>) -> Self {
        Self { layout: Arc::clone(layout), values: vec![0.0; layout.len()] }
    }

    /// All zeros, in the layout of `other`.
    pub fn zeros_like(other: &Self) -> Self {
        Self::zeros(&other.layout)
    }

    /// Values that were stored, back in their layout.
    ///
    /// # Errors
    /// [`AdapterError::ValueCount`].
    pub fn from_values(layout: &Arc<AdapterLayout>, values: Vec<f32>) -> Result<Self, AdapterError> {
        if values.len() != layout.len() {
            return Err(AdapterError::ValueCount { expected: layout.len(), found: values.len() });
        }
        Ok(Self { layout: Arc::clone(layout), values })
    }

    /// Moves this adapter towards another one, in place: `self = lambda · self + (1 − lambda) · towards`.
    ///
    /// `lambda`, in `[0, 1]`, is the share of `self` that survives one call. A and B are averaged separately, so their
    /// product is averaged only to first order. With 0 the result equals `towards` exactly, with 1 nothing changes.
    ///
    /// # Errors
    /// [`AdapterError::Layout`] names the first pair that differs, [`AdapterError::Setting`] a lambda out of range;
    /// `self` is then unchanged.
    ///
    /// # Source
    /// I-LoRA (arXiv 2402.18865), long-term memory.
    pub fn interpolate(&mut self, towards: &Self, lambda: f32) -> Result<(), AdapterError> {
        self.layout.check_same(&towards.layout)?;
        if !(0.0..=1.0).contains(&lambda) {
            return Err(AdapterError::Setting { name: "lambda", found: lambda.to_string(), expected: "0 to 1" });
        }
        let rest = 1.0 - lambda;
        for (slow, fast) in self.values.iter_mut().zip(&towards.values) {
            *slow = lambda * *slow + rest * fast;
        }
        Ok(())
    }

    /// What lies where.
    pub fn layout(&self) -> &Arc<AdapterLayout> {
        &self.layout
    }

    /// Rank, alpha and targets.
    pub fn config(&self) -> &LoraConfig {
        self.layout.config()
    }

    /// The factor of `B (A x)`.
    pub fn scaling(&self) -> f32 {
        self.layout.config().scaling()
    }

    /// All values, flat.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// All values, flat, to be changed in place.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// All values, taken out.
    pub fn into_values(self) -> Vec<f32> {
        self.values
    }
}
