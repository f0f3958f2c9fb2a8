//! Causal attention: a workgroup answers one query of one head, [`UNITS`] keys at a time, and never holds more scores than
//! those. The softmax runs along with its sums, rescaled whenever a higher score is met.
//!
//! Units first take a key each, then a dimension of the head each: values are read by neighbours side by side, keys line by
//! line, each line to its end. On the way back one kernel goes over the keys of each query, a second over the queries of each
//! key, so that no two workgroups add to one place and sums have one order. Memory of a workgroup: 512 bytes.

use std::ops::Range;

use burn::backend::tensor::FloatTensor;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;
use cubecl::prelude::*;

use super::launch::{Gpu, buffer, contiguous, empty, in_launches};
use crate::gpu_pace::Kernel;
use crate::ops::attention::{AttentionKernel, AttentionOps, Geometry};

/// Units of a workgroup, and keys or queries that it takes at a time.
const UNITS: u32 = 64;
/// Dimensions of a head that a unit can own.
const SLOTS: u32 = 4;
/// Below every score.
const LOWEST: f32 = -3e38;

impl AttentionOps for Gpu {
    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        geometry: Geometry,
    ) -> FloatTensor<Self> {
        let ((q, [tokens, width]), (k, _), (v, _)) = (contiguous(q), contiguous(k), contiguous(v));
        let out = empty(&q, tokens, width);
        for sizes in Sizes::of_all(&geometry) {
            sizes.in_launches(&q.client, Kernel::Attention, sizes.heads, sizes.flop(4.0), |first, count| {
                forward(&sizes, [&q, &k, &v], &out, first, count);
            });
        }
        out
    }
}

impl AttentionKernel for Gpu {
    fn attention_backward(
        inputs: [FloatTensor<Self>; 3],
        d_out: FloatTensor<Self>,
        geometry: &Geometry,
    ) -> [FloatTensor<Self>; 3] {
        let [(q, q_shape), (k, k_shape), (v, _)] = inputs.map(contiguous);
        let (d_out, _) = contiguous(d_out);
        let of = |[rows, cols]: [usize; 2]| empty(&q, rows, cols);
        let (dq, dk, dv, sums) = (of(q_shape), of(k_shape), of(k_shape), of([q_shape[0] * geometry.heads, 2]));
        let given = [&q, &k, &v, &d_out];
        for sizes in Sizes::of_all(geometry) {
            sizes.in_launches(&q.client, Kernel::AttentionQueries, sizes.heads, sizes.flop(10.0), |first, count| {
                queries_backward(&sizes, given, [&dq, &sums], first, count);
            });
            sizes.in_launches(
                &q.client,
                Kernel::AttentionKeys,
                sizes.heads / sizes.group,
                sizes.flop(8.0),
                |first, count| {
                    keys_backward(&sizes, given, &sums, [&dk, &dv], first, count);
                },
            );
        }
        [dq, dk, dv]
    }
}

/// Neighbouring sequences of one length, which are computed at once, as kernels are told them.
struct Sizes {
    /// The first of their tokens.
    first_token: u32,
    /// All their tokens.
    tokens: u32,
    /// Tokens of each.
    cols: u32,
    past: u32,
    heads: u32,
    /// Query heads of a key-value head.
    group: u32,
    head_dim: u32,
    head_stride: u32,
    token_stride: u32,
    scale: f32,
}

impl Sizes {
    /// The sequences of a batch, those of one length that lie together at once.
    ///
    /// # Panics
    /// If a head has more dimensions than the units of a workgroup can own: no model that is known has.
    fn of_all(geometry: &Geometry) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for sequence in geometry.sequences().filter(|sequence| !sequence.is_empty()) {
            match all.last_mut() {
                Some(sizes) if sizes.cols as usize == sequence.len() => sizes.tokens += sizes.cols,
                _ => all.push(Self::of(geometry, &sequence)),
            }
        }
        all
    }

    fn of(geometry: &Geometry, sequence: &Range<usize>) -> Self {
        let head_dim = geometry.head_dim as u32;
        assert!(head_dim <= UNITS * SLOTS, "a head of {head_dim} dimensions, {} at most", UNITS * SLOTS);
        let operand = geometry.operand();
        Self {
            first_token: sequence.start as u32,
            tokens: sequence.len() as u32,
            cols: sequence.len() as u32,
            past: geometry.past as u32,
            heads: geometry.heads as u32,
            group: (geometry.heads / geometry.key_value_heads) as u32,
            head_dim,
            head_stride: operand.head_stride as u32,
            token_stride: operand.token_stride as u32,
            scale: 1.0 / (geometry.head_dim as f32).sqrt(),
        }
    }

    /// Launches a workgroup for each of `heads` heads of every token: `launch(first, count)`, numbered from the batch's first
    /// token on.
    fn in_launches(
        &self,
        client: &Client,
        kernel: Kernel,
        heads: u32,
        flop_per_cube: f64,
        mut launch: impl FnMut(u32, u32),
    ) {
        let before = self.first_token * heads;
        in_launches(client, kernel, self.tokens * heads, flop_per_cube, |first, count| launch(before + first, count));
    }

    /// For the launch whose first workgroup is `first_task`.
    fn layout(&self, first_task: u32) -> LayoutLaunch {
        LayoutLaunch::new(
            first_task,
            self.first_token,
            self.cols,
            self.past,
            self.heads,
            self.group,
            self.head_dim,
            self.head_stride,
            self.token_stride,
            self.scale,
        )
    }

    /// Of one workgroup, with so many for each key and dimension.
    fn flop(&self, each: f64) -> f64 {
        each * f64::from(self.past + self.cols) * f64::from(self.head_dim)
    }
}

/// The sizes as the kernels take them.
#[derive(CubeType, CubeLaunch)]
struct Layout {
    /// The first workgroup of the launch, numbered from the first head of the batch's first token on.
    first_task: u32,
    first_token: u32,
    cols: u32,
    past: u32,
    heads: u32,
    group: u32,
    head_dim: u32,
    head_stride: u32,
    token_stride: u32,
    scale: f32,
}

fn forward(sizes: &Sizes, [q, k, v]: [&CubeTensor; 3], out: &CubeTensor, first: u32, count: u32) {
    // SAFETY: every buffer is passed with its own length, and the sizes are those of the buffers.
    unsafe {
        forward_kernel::launch_unchecked(
            &q.client,
            CubeCount::Static(count, 1, 1),
            CubeDim::new_1d(UNITS),
            buffer(q),
            buffer(k),
            buffer(v),
            buffer(out),
            sizes.layout(first),
        );
    }
}

fn queries_backward(
    sizes: &Sizes,
    [q, k, v, d_out]: [&CubeTensor; 4],
    [dq, sums]: [&CubeTensor; 2],
    first: u32,
    count: u32,
) {
    // SAFETY: as in the forward pass.
    unsafe {
        queries_kernel::launch_unchecked(
            &q.client,
            CubeCount::Static(count, 1, 1),
            CubeDim::new_1d(UNITS),
            buffer(q),
            buffer(k),
            buffer(v),
            buffer(d_out),
            buffer(dq),
            buffer(sums),
            sizes.layout(first),
        );
    }
}

fn keys_backward(
    sizes: &Sizes,
    [q, k, v, d_out]: [&CubeTensor; 4],
    sums: &CubeTensor,
    [dk, dv]: [&CubeTensor; 2],
    first: u32,
    count: u32,
) {
    // SAFETY: as in the forward pass.
    unsafe {
        keys_kernel::launch_unchecked(
            &q.client,
            CubeCount::Static(count, 1, 1),
            CubeDim::new_1d(UNITS),
            buffer(q),
            buffer(k),
            buffer(v),
            buffer(d_out),
            buffer(sums),
            buffer(dk),
            buffer(dv),
            sizes.layout(first),
        );
    }
}

#[cube]
fn dot(a: &[f32], a_first: u32, b: &[f32], b_first: u32, len: u32) -> f32 {
    let mut sum = 0.0f32;
    for index in 0..len {
        sum += a[(a_first + index) as usize] * b[(b_first + index) as usize];
    }
    sum
}

/// The highest of `top` and every unit's `own`; all units get the same, and `scores` is free again.
#[cube]
fn highest(own: f32, top: f32, scores: &mut Shared<[f32]>) -> f32 {
    scores[UNIT_POS_X as usize] = own;
    sync_cube();
    let mut found = top;
    for unit in 0..UNITS {
        let score = scores[unit as usize];
        found = select(score > found, score, found);
    }
    sync_cube();
    found
}

#[cube(launch_unchecked)]
fn forward_kernel(q: &[f32], k: &[f32], v: &[f32], out: &mut [f32], layout: &Layout) {
    let task = layout.first_task + CUBE_POS_X;
    let (token, head) = (task / layout.heads, task % layout.heads);
    let query = task * layout.head_dim;
    let place = (token - layout.first_token) % layout.cols;
    let keys = (head / layout.group) * layout.head_stride + (token - place) * layout.token_stride;
    let seen = layout.past + place + 1;
    let mut weights = Shared::<[f32]>::new_slice(comptime!(UNITS as usize));
    let mut sums = Array::<f32>::new(comptime!(SLOTS as usize));
    #[unroll]
    for slot in 0..SLOTS {
        sums[slot as usize] = 0.0;
    }
    let mut top = f32::new(LOWEST);
    let mut total = 0.0f32;
    let mut tile = 0u32;
    while tile < seen {
        let key = tile + UNIT_POS_X;
        let mut score = f32::new(LOWEST);
        if key < seen {
            score = dot(q, query, k, keys + key * layout.token_stride, layout.head_dim) * layout.scale;
        }
        let new_top = highest(score, top, &mut weights);
        weights[UNIT_POS_X as usize] = select(key < seen, (score - new_top).exp(), 0.0);
        sync_cube();
        let shrink = (top - new_top).exp();
        let count = select(seen - tile < UNITS, seen - tile, UNITS);
        total *= shrink;
        for index in 0..count {
            total += weights[index as usize];
        }
        #[unroll]
        for slot in 0..SLOTS {
            let dim = UNIT_POS_X + slot * UNITS;
            if dim < layout.head_dim {
                let mut sum = sums[slot as usize] * shrink;
                for index in 0..count {
                    sum += weights[index as usize] * v[(keys + (tile + index) * layout.token_stride + dim) as usize];
                }
                sums[slot as usize] = sum;
            }
        }
        sync_cube();
        top = new_top;
        tile += UNITS;
    }
    #[unroll]
    for slot in 0..SLOTS {
        let dim = UNIT_POS_X + slot * UNITS;
        if dim < layout.head_dim {
            out[(query + dim) as usize] = sums[slot as usize] / total;
        }
    }
}

/// The gradient of a query, and for its keys what they need of it: the logarithm of the softmax's sum, and the mean of the
/// probabilities' gradients.
#[cube(launch_unchecked)]
fn queries_kernel(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    d_out: &[f32],
    dq: &mut [f32],
    log_sums_and_means: &mut [f32],
    layout: &Layout,
) {
    let task = layout.first_task + CUBE_POS_X;
    let (token, head) = (task / layout.heads, task % layout.heads);
    let query = task * layout.head_dim;
    let place = (token - layout.first_token) % layout.cols;
    let keys = (head / layout.group) * layout.head_stride + (token - place) * layout.token_stride;
    let seen = place + 1;
    let mut weights = Shared::<[f32]>::new_slice(comptime!(UNITS as usize));
    let mut products = Shared::<[f32]>::new_slice(comptime!(UNITS as usize));
    let mut top = f32::new(LOWEST);
    let mut total = 0.0f32;
    let mut mean = 0.0f32;
    let mut tile = 0u32;
    while tile < seen {
        let key = tile + UNIT_POS_X;
        let mut score = f32::new(LOWEST);
        let mut d_probability = 0.0f32;
        if key < seen {
            score = dot(q, query, k, keys + key * layout.token_stride, layout.head_dim) * layout.scale;
            d_probability = dot(d_out, query, v, keys + key * layout.token_stride, layout.head_dim);
        }
        let new_top = highest(score, top, &mut weights);
        let weight = select(key < seen, (score - new_top).exp(), 0.0);
        weights[UNIT_POS_X as usize] = weight;
        products[UNIT_POS_X as usize] = weight * d_probability;
        sync_cube();
        let shrink = (top - new_top).exp();
        total *= shrink;
        mean *= shrink;
        for index in 0..UNITS {
            total += weights[index as usize];
            mean += products[index as usize];
        }
        sync_cube();
        top = new_top;
        tile += UNITS;
    }
    let log_sum = top + total.ln();
    mean /= total;
    let mut sums = Array::<f32>::new(comptime!(SLOTS as usize));
    #[unroll]
    for slot in 0..SLOTS {
        sums[slot as usize] = 0.0;
    }
    let mut tile = 0u32;
    while tile < seen {
        let key = tile + UNIT_POS_X;
        let mut d_score = 0.0f32;
        if key < seen {
            let score = dot(q, query, k, keys + key * layout.token_stride, layout.head_dim) * layout.scale;
            let d_probability = dot(d_out, query, v, keys + key * layout.token_stride, layout.head_dim);
            d_score = (score - log_sum).exp() * (d_probability - mean) * layout.scale;
        }
        weights[UNIT_POS_X as usize] = d_score;
        sync_cube();
        let count = select(seen - tile < UNITS, seen - tile, UNITS);
        #[unroll]
        for slot in 0..SLOTS {
            let dim = UNIT_POS_X + slot * UNITS;
            if dim < layout.head_dim {
                let mut sum = sums[slot as usize];
                for index in 0..count {
                    sum += weights[index as usize] * k[(keys + (tile + index) * layout.token_stride + dim) as usize];
                }
                sums[slot as usize] = sum;
            }
        }
        sync_cube();
        tile += UNITS;
    }
    #[unroll]
    for slot in 0..SLOTS {
        let dim = UNIT_POS_X + slot * UNITS;
        if dim < layout.head_dim {
            dq[(query + dim) as usize] = sums[slot as usize];
        }
    }
    if UNIT_POS_X == 0 {
        log_sums_and_means[(2 * task) as usize] = log_sum;
        log_sums_and_means[(2 * task + 1) as usize] = mean;
    }
}

/// The gradients of a key and its value, over the queries of every head that reads them, head after head.
#[cube(launch_unchecked)]
fn keys_kernel(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    d_out: &[f32],
    log_sums_and_means: &[f32],
    dk: &mut [f32],
    dv: &mut [f32],
    layout: &Layout,
) {
    let task = layout.first_task + CUBE_POS_X;
    let key_heads = layout.heads / layout.group;
    let (token, key_head) = (task / key_heads, task % key_heads);
    let key = task * layout.head_dim;
    // Queries from this token on to the end of its sequence.
    let queries = layout.cols - (token - layout.first_token) % layout.cols;
    let mut weights = Shared::<[f32]>::new_slice(comptime!(UNITS as usize));
    let mut d_scores = Shared::<[f32]>::new_slice(comptime!(UNITS as usize));
    let mut of_key = Array::<f32>::new(comptime!(SLOTS as usize));
    let mut of_value = Array::<f32>::new(comptime!(SLOTS as usize));
    #[unroll]
    for slot in 0..SLOTS {
        of_key[slot as usize] = 0.0;
        of_value[slot as usize] = 0.0;
    }
    for member in 0..layout.group {
        let head = key_head * layout.group + member;
        let mut tile = 0u32;
        while tile < queries {
            let index = tile + UNIT_POS_X;
            let place = (token + index) * layout.heads + head;
            let mut weight = 0.0f32;
            let mut d_score = 0.0f32;
            if index < queries {
                let score = dot(q, place * layout.head_dim, k, key, layout.head_dim) * layout.scale;
                weight = (score - log_sums_and_means[(2 * place) as usize]).exp();
                let d_probability = dot(d_out, place * layout.head_dim, v, key, layout.head_dim);
                d_score = weight * (d_probability - log_sums_and_means[(2 * place + 1) as usize]) * layout.scale;
            }
            weights[UNIT_POS_X as usize] = weight;
            d_scores[UNIT_POS_X as usize] = d_score;
            sync_cube();
            let count = select(queries - tile < UNITS, queries - tile, UNITS);
            #[unroll]
            for slot in 0..SLOTS {
                let dim = UNIT_POS_X + slot * UNITS;
                if dim < layout.head_dim {
                    let mut d_key = of_key[slot as usize];
                    let mut d_value = of_value[slot as usize];
                    for index in 0..count {
                        let from = (((token + tile + index) * layout.heads + head) * layout.head_dim + dim) as usize;
                        d_key += d_scores[index as usize] * q[from];
                        d_value += weights[index as usize] * d_out[from];
                    }
                    of_key[slot as usize] = d_key;
                    of_value[slot as usize] = d_value;
                }
            }
            sync_cube();
            tile += UNITS;
        }
    }
    #[unroll]
    for slot in 0..SLOTS {
        let dim = UNIT_POS_X + slot * UNITS;
        if dim < layout.head_dim {
            dk[(key + dim) as usize] = of_key[slot as usize];
            dv[(key + dim) as usize] = of_value[slot as usize];
        }
    }
}
