//! The gated feed-forward layer.

use burn::tensor::Tensor;

use super::{Linear, Pass};
use crate::ops::swiglu;

/// `down(silu(gate(x)) · up(x))`.
#[derive(Debug)]
pub(crate) struct Mlp {
    pub(crate) gate_proj: Linear,
    pub(crate) up_proj: Linear,
    pub(crate) down_proj: Linear,
}

impl Mlp {
    /// What the layer adds to `residual`, with that.
    ///
    /// # Shapes
    /// `x`, `residual` and the result `[tokens, hidden_size]`.
    pub(crate) fn forward_onto(&self, residual: Tensor<2>, x: Tensor<2>, pass: &Pass<'_>) -> Tensor<2> {
        let [gate, up] = Linear::forward_all([&self.gate_proj, &self.up_proj], x, pass);
        self.down_proj.forward_onto(residual, swiglu(gate, up), pass)
    }
}
