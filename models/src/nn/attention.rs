//! Causal attention with grouped queries.

use std::sync::Arc;

use burn::tensor::{Device, Tensor};

use super::{Linear, Pass, RmsNorm};
use crate::config::ModelConfig;
use crate::ops::{Geometry, attention, rope};

/// Heads and their size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttentionShape {
    pub(crate) num_attention_heads: usize,
    pub(crate) num_key_value_heads: usize,
    pub(crate) head_dim: usize,
}

impl AttentionShape {
    /// The shape that a config gives.
    pub(crate) fn of(config: &ModelConfig) -> Self {
        Self {
            num_attention_heads: config.num_attention_heads,
            num_key_value_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        }
    }

    /// Room for keys or values: `[num_key_value_heads, tokens, head_dim]`.
    pub(crate) fn zeros(self, tokens: usize, device: &Device) -> Tensor<3> {
        Tensor::zeros([self.num_key_value_heads, tokens, self.head_dim], device)
    }
}

/// `o(softmax(rope(q) · rope(k)ᵀ / sqrt(head_dim)) · v)`, with q and k normalized per head where a family does that.
#[derive(Debug)]
pub(crate) struct Attention {
    pub(crate) shape: AttentionShape,
    pub(crate) q_proj: Linear,
    pub(crate) k_proj: Linear,
    pub(crate) v_proj: Linear,
    pub(crate) o_proj: Linear,
    pub(crate) q_norm: Option<RmsNorm>,
    pub(crate) k_norm: Option<RmsNorm>,
}

impl Attention {
    /// What attention adds to `residual`, with that.
    ///
    /// # Shapes
    /// `x`, `residual` and the result `[tokens, hidden_size]`.
    pub(crate) fn forward_onto(
        &self,
        residual: Tensor<2>,
        x: Tensor<2>,
        layer: usize,
        pass: &mut Pass<'_>,
    ) -> Tensor<2> {
        let normed = |x: Tensor<2>, norm: &Option<RmsNorm>| match norm {
            Some(norm) => norm.forward(x),
            None => x,
        };
        let [q, k, v] = Linear::forward_all([&self.q_proj, &self.k_proj, &self.v_proj], x, pass);
        let q = rope(normed(q, &self.q_norm), &pass.angles);
        let k = rope(normed(k, &self.k_norm), &pass.angles);
        let mixed = self.attend(q, k, v, layer, pass);
        self.o_proj.forward_onto(residual, mixed, pass)
    }

    fn attend(&self, q: Tensor<2>, k: Tensor<2>, v: Tensor<2>, layer: usize, pass: &mut Pass<'_>) -> Tensor<2> {
        let AttentionShape { num_attention_heads: heads, num_key_value_heads, head_dim } = self.shape;
        let lengths = Arc::clone(&pass.lengths);
        match pass.cache.as_deref_mut() {
            Some(cache) => {
                let past = cache.len();
                let (keys, values, room) = cache.append(layer, k, v);
                attention(
                    q,
                    keys,
                    values,
                    Geometry::of_cache(lengths, past, room, heads, num_key_value_heads, head_dim),
                )
            }
            None => attention(q, k, v, Geometry::of_batch(lengths, heads, num_key_value_heads, head_dim)),
        }
    }
}
