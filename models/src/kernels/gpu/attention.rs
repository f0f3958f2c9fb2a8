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
        let probabilities = probabilities(queries(&geometry, q), keys(&geometry, k), &geometry);
        primitive(by_token(&geometry, probabilities.matmul(keys(&geometry, v))))
    }
}

impl AttentionKernel for Gpu {
    fn attention_backward(
        inputs: [FloatTensor<Self>; 3],
        d_out: FloatTensor<Self>,
        geometry: &Geometry,
    ) -> [FloatTensor<Self>; 3] {
        let [q, k, v] = inputs;
        let (q, k, v) = (queries(geometry, q), keys(geometry, k), keys(geometry, v));
        let d_out = queries(geometry, d_out);
        let p = probabilities(q.clone(), k.clone(), geometry);
        let dv = p.clone().swap_dims(2, 3).matmul(d_out.clone());
        let d_p = d_out.matmul(v.swap_dims(2, 3));
        let mean = (d_p.clone() * p.clone()).sum_dim(3);
        let d_scores = (p * (d_p - mean)).mul_scalar(scale(geometry));
        let dq = d_scores.clone().matmul(k);
        let dk = d_scores.swap_dims(2, 3).matmul(q);
        let of_keys = |gradient: Tensor<4>| {
            let width = geometry.key_value_heads * geometry.head_dim;
            primitive(gradient.swap_dims(1, 2).reshape([geometry.rows * geometry.cols, width]))
        };
        [primitive(by_token(geometry, dq)), of_keys(dk), of_keys(dv)]
    }
}

fn scale(geometry: &Geometry) -> f32 {
    1.0 / (geometry.head_dim as f32).sqrt()
}

fn group(geometry: &Geometry) -> usize {
    geometry.heads / geometry.key_value_heads
}

/// `[rows, key_value_heads, group · cols, head_dim]`: the queries of a group lie one after another, so no key is repeated.
fn queries(g: &Geometry, q: CubeTensor) -> Tensor<4> {
    let q = tensor(q).reshape([g.rows, g.cols, g.key_value_heads, group(g), g.head_dim]).permute([0, 2, 3, 1, 4]);
    q.reshape([g.rows, g.key_value_heads, group(g) * g.cols, g.head_dim])
}

/// `[rows, key_value_heads, past + cols, head_dim]`.
fn keys(g: &Geometry, k: CubeTensor) -> Tensor<4> {
    match g.room {
        Some(room) => tensor(k).reshape([1, g.key_value_heads, room, g.head_dim]).slice([
            0..1,
            0..g.key_value_heads,
            0..g.past + g.cols,
            0..g.head_dim,
        ]),
        None => tensor(k).reshape([g.rows, g.cols, g.key_value_heads, g.head_dim]).swap_dims(1, 2),
    }
}

/// From the shape of [`queries`] back to `[rows · cols, heads · head_dim]`.
fn by_token(g: &Geometry, mixed: Tensor<4>) -> Tensor<2> {
    let mixed = mixed.reshape([g.rows, g.key_value_heads, group(g), g.cols, g.head_dim]).permute([0, 3, 1, 2, 4]);
    mixed.reshape([g.rows * g.cols, g.heads * g.head_dim])
}

fn probabilities(q: Tensor<4>, k: Tensor<4>, g: &Geometry) -> Tensor<4> {
    let seen = g.past + g.cols;
    let scores = q.matmul(k.swap_dims(2, 3)).mul_scalar(scale(g));
    let scores = scores.reshape([g.rows * g.key_value_heads, group(g), g.cols, seen]);
    let scores = match causal_mask(g, &scores.device()) {
        Some(mask) => scores + mask,
        None => scores,
    };
    softmax(scores.reshape([g.rows, g.key_value_heads, group(g) * g.cols, seen]), 3)
}

/// 0 or −∞, `[1, 1, cols, past + cols]`; none for a single query, which sees all.
fn causal_mask(g: &Geometry, device: &Device) -> Option<Tensor<4>> {
    if g.cols == 1 {
        return None;
    }
    let seen = g.past + g.cols;
    let mut mask = vec![0.0f32; g.cols * seen];
    for (query, row) in mask.chunks_exact_mut(seen).enumerate() {
        row[g.past + query + 1..].fill(f32::NEG_INFINITY);
    }
    Some(Tensor::from_data(TensorData::new(mask, [1, 1, g.cols, seen]), device))
}
