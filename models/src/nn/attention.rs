//! Causal attention with grouped queries.

use burn::tensor::{Device, Tensor, activation::softmax};

use super::{Linear, Pass, RmsNorm};
use crate::config::ModelConfig;
use crate::ops::rope;

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

/// `o(softmax(rope(q) · rope(k)ᵀ / sqrt(head_dim) + mask) · v)`, with q and k normalized per head where a family does that.
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
    /// # Shapes
    /// `x` and the result `[rows · cols, hidden_size]`.
    pub(crate) fn forward(&self, x: Tensor<2>, layer: usize, pass: &mut Pass<'_>) -> Tensor<2> {
        let normed = |x: Tensor<2>, norm: &Option<RmsNorm>| match norm {
            Some(norm) => norm.forward(x),
            None => x,
        };
        let q = rope(normed(self.q_proj.forward(x.clone(), pass), &self.q_norm), &pass.angles);
        let k = rope(normed(self.k_proj.forward(x.clone(), pass), &self.k_norm), &pass.angles);
        let v = self.v_proj.forward(x, pass);
        let mixed = self.attend(q, k, v, layer, pass);
        self.o_proj.forward(mixed, pass)
    }

    fn attend(&self, q: Tensor<2>, k: Tensor<2>, v: Tensor<2>, layer: usize, pass: &mut Pass<'_>) -> Tensor<2> {
        let AttentionShape { num_attention_heads, num_key_value_heads: kv_heads, head_dim } = self.shape;
        let (rows, cols, group) = (pass.rows, pass.cols, num_attention_heads / kv_heads);
        // The queries of a group read the same keys: they lie one after another, so no key is repeated.
        let q = q.reshape([rows, cols, kv_heads, group, head_dim]).permute([0, 2, 3, 1, 4]);
        let q = q.reshape([rows, kv_heads, group * cols, head_dim]).mul_scalar(1.0 / (head_dim as f32).sqrt());
        let by_head = |x: Tensor<2>| x.reshape([rows, cols, kv_heads, head_dim]).swap_dims(1, 2);
        let (mut k, mut v) = (by_head(k), by_head(v));
        if let Some(cache) = pass.cache.as_deref_mut() {
            let (keys, values) = cache.append(layer, k.squeeze_dim(0), v.squeeze_dim(0));
            (k, v) = (keys.unsqueeze(), values.unsqueeze());
        }
        let mut scores = q.matmul(k.swap_dims(2, 3));
        if let Some(mask) = &pass.mask {
            let [_, _, _, seen] = mask.dims();
            let grouped = scores.reshape([rows * kv_heads, group, cols, seen]) + mask.clone();
            scores = grouped.reshape([rows, kv_heads, group * cols, seen]);
        }
        let mixed = softmax(scores, 3).matmul(v);
        let mixed = mixed.reshape([rows, kv_heads, group, cols, head_dim]).permute([0, 3, 1, 2, 4]);
        mixed.reshape([rows * cols, num_attention_heads * head_dim])
    }
}
