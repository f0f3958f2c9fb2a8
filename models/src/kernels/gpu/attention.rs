//! Causal attention, composed of burn's operations.

use burn::backend::tensor::FloatTensor;
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor, TensorData};
use burn_cubecl::tensor::CubeTensor;

use super::device_matrix::{Gpu, primitive, tensor};
use crate::ops::attention::{AttentionKernel, AttentionOps, Geometry};

impl AttentionOps for Gpu {
    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        geometry: Geometry,
    ) -> FloatTensor<Self> {
        let parts = alike(&geometry).into_iter().map(|g| {
            let [q, k, v] = [&q, &k, &v].map(|all| g.rows_of(all));
            let probabilities = probabilities(queries(&g, q), keys(&g, k), &g);
            by_token(&g, probabilities.matmul(keys(&g, v)))
        });
        primitive(Tensor::cat(parts.collect(), 0))
    }
}

impl AttentionKernel for Gpu {
    fn attention_backward(
        inputs: [FloatTensor<Self>; 3],
        d_out: FloatTensor<Self>,
        geometry: &Geometry,
    ) -> [FloatTensor<Self>; 3] {
        let [q, k, v] = inputs;
        let mut gradients: [Vec<Tensor<2>>; 3] = Default::default();
        for g in alike(geometry) {
            let of_part = differentiate(&g, [&q, &k, &v, &d_out].map(|all| g.rows_of(all)));
            gradients.iter_mut().zip(of_part).for_each(|(all, of_part)| all.push(of_part));
        }
        gradients.map(|parts| primitive(Tensor::cat(parts, 0)))
    }
}

/// Neighbouring sequences of one length, which are computed at once.
struct Alike<'a> {
    geometry: &'a Geometry,
    /// The first of their tokens.
    first: usize,
    rows: usize,
    cols: usize,
}

/// The sequences of a batch, those of one length that lie together at once.
fn alike(geometry: &Geometry) -> Vec<Alike<'_>> {
    let mut parts: Vec<Alike<'_>> = Vec::new();
    for tokens in geometry.sequences().filter(|tokens| !tokens.is_empty()) {
        match parts.last_mut() {
            Some(part) if part.cols == tokens.len() => part.rows += 1,
            _ => parts.push(Alike { geometry, first: tokens.start, rows: 1, cols: tokens.len() }),
        }
    }
    parts
}

impl Alike<'_> {
    /// Their rows of queries, keys or values; a cache is theirs as a whole.
    fn rows_of(&self, all: &CubeTensor) -> Tensor<2> {
        let all = tensor(all.clone());
        let ([_, width], tokens) = (all.dims(), self.rows * self.cols);
        if self.geometry.room.is_some() || self.geometry.tokens() == tokens {
            return all;
        }
        all.slice([self.first..self.first + tokens, 0..width])
    }

    fn group(&self) -> usize {
        self.geometry.heads / self.geometry.key_value_heads
    }

    fn scale(&self) -> f32 {
        1.0 / (self.geometry.head_dim as f32).sqrt()
    }
}

fn differentiate(g: &Alike<'_>, [q, k, v, d_out]: [Tensor<2>; 4]) -> [Tensor<2>; 3] {
    let (q, k, v, d_out) = (queries(g, q), keys(g, k), keys(g, v), queries(g, d_out));
    let p = probabilities(q.clone(), k.clone(), g);
    let dv = p.clone().swap_dims(2, 3).matmul(d_out.clone());
    let d_p = d_out.matmul(v.swap_dims(2, 3));
    let mean = (d_p.clone() * p.clone()).sum_dim(3);
    let d_scores = (p * (d_p - mean)).mul_scalar(g.scale());
    let dq = d_scores.clone().matmul(k);
    let dk = d_scores.swap_dims(2, 3).matmul(q);
    let of_keys = |gradient: Tensor<4>| {
        let width = g.geometry.key_value_heads * g.geometry.head_dim;
        gradient.swap_dims(1, 2).reshape([g.rows * g.cols, width])
    };
    [by_token(g, dq), of_keys(dk), of_keys(dv)]
}

/// `[rows, key_value_heads, group · cols, head_dim]`: the queries of a group lie one after another, so no key is repeated.
fn queries(g: &Alike<'_>, q: Tensor<2>) -> Tensor<4> {
    let Geometry { key_value_heads, head_dim, .. } = *g.geometry;
    let q = q.reshape([g.rows, g.cols, key_value_heads, g.group(), head_dim]).permute([0, 2, 3, 1, 4]);
    q.reshape([g.rows, key_value_heads, g.group() * g.cols, head_dim])
}

/// `[rows, key_value_heads, past + cols, head_dim]`.
fn keys(g: &Alike<'_>, k: Tensor<2>) -> Tensor<4> {
    let Geometry { key_value_heads, head_dim, past, room, .. } = *g.geometry;
    match room {
        Some(room) => {
            let cached = k.reshape([1, key_value_heads, room, head_dim]);
            cached.slice([0..1, 0..key_value_heads, 0..past + g.cols, 0..head_dim])
        }
        None => k.reshape([g.rows, g.cols, key_value_heads, head_dim]).swap_dims(1, 2),
    }
}

/// From the shape of [`queries`] back to `[rows · cols, heads · head_dim]`.
fn by_token(g: &Alike<'_>, mixed: Tensor<4>) -> Tensor<2> {
    let Geometry { heads, key_value_heads, head_dim, .. } = *g.geometry;
    let mixed = mixed.reshape([g.rows, key_value_heads, g.group(), g.cols, head_dim]).permute([0, 3, 1, 2, 4]);
    mixed.reshape([g.rows * g.cols, heads * head_dim])
}

fn probabilities(q: Tensor<4>, k: Tensor<4>, g: &Alike<'_>) -> Tensor<4> {
    let Geometry { key_value_heads, past, .. } = *g.geometry;
    let seen = past + g.cols;
    let scores = q.matmul(k.swap_dims(2, 3)).mul_scalar(g.scale());
    let scores = scores.reshape([g.rows * key_value_heads, g.group(), g.cols, seen]);
    let scores = match causal_mask(g.cols, past, &scores.device()) {
        Some(mask) => scores + mask,
        None => scores,
    };
    softmax(scores.reshape([g.rows, key_value_heads, g.group() * g.cols, seen]), 3)
}

/// 0 or −∞, `[1, 1, cols, past + cols]`; none for a single query, which sees all.
fn causal_mask(cols: usize, past: usize, device: &Device) -> Option<Tensor<4>> {
    if cols == 1 {
        return None;
    }
    let seen = past + cols;
    let mut mask = vec![0.0f32; cols * seen];
    for (query, row) in mask.chunks_exact_mut(seen).enumerate() {
        row[past + query + 1..].fill(f32::NEG_INFINITY);
    }
    Some(Tensor::from_data(TensorData::new(mask, [1, 1, cols, seen]), device))
}
