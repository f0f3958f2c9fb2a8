//! One layer of a pre-norm decoder.

use burn::tensor::Tensor;

use super::{Attention, Mlp, Pass, RmsNorm};
use crate::compute_error::ComputeError;

/// `x + attention(norm(x))`, then `x + mlp(norm(x))`.
#[derive(Debug)]
pub(crate) struct DecoderLayer {
    pub(crate) input_layernorm: RmsNorm,
    pub(crate) self_attn: Attention,
    pub(crate) post_attention_layernorm: RmsNorm,
    pub(crate) mlp: Mlp,
}

impl DecoderLayer {
    /// # Shapes
    /// `x` and the result `[tokens, hidden_size]`.
    ///
    /// # Errors
    /// [`ComputeError::Cancelled`] before the layer begins.
    pub(crate) fn forward(&self, x: Tensor<2>, layer: usize, pass: &mut Pass<'_>) -> Result<Tensor<2>, ComputeError> {
        pass.stop.check()?;
        let normed = self.input_layernorm.forward(x.clone());
        let x = self.self_attn.forward_onto(x, normed, layer, pass);
        let normed = self.post_attention_layernorm.forward(x.clone());
        Ok(self.mlp.forward_onto(x, normed, pass))
    }
}
