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
    /// # Shapes
    /// `x` and the result `[tokens, hidden_size]`.
    pub(crate) fn forward(&self, x: Tensor<2>, pass: &Pass<'_>) -> Tensor<2> {
        let gate = self.gate_proj.forward(x.clone(), pass);
        let up = self.up_proj.forward(x, pass);
        self.down_proj.forward(swiglu(gate, up), pass)
    }
}
