//! The operations of a decoder model, one by one, in the shapes that SmolLM2-135M has them.

use std::time::{Duration, Instant};

use burn::tensor::{Device, Distribution, Tensor};
use mynah_models::ops::{
    Frozen, Geometry, LoraBranch, NormWeight, RopeAngles, attention, lora_linear, packed_linear, rms_norm, rope,
    swiglu, token_nll,
};
use mynah_models::{ComputeDevice, PackedMatrix, Stop, TensorType};

use crate::model::random_ids;
use crate::spread::Spread;

const HIDDEN: usize = 576;
const INTERMEDIATE: usize = 1536;
const HEADS: usize = 9;
const KEY_VALUE_HEADS: usize = 3;
const HEAD_DIM: usize = 64;
const VOCABULARY: usize = 49152;
const RANK: usize = 8;
/// Two times the caches of the machines that this was written on: what is read in turns comes from memory, as in a model.
const COLD_BYTES: usize = 128 << 20;

/// One operation with its inputs.
pub struct Op {
    /// Operation, direction and shape, as `packed_linear forward 1536x576`.
    pub name: String,
    /// Tokens that it is done for.
    pub tokens: usize,
    /// Multiplications and additions.
    pub flop: f64,
    /// Bytes of its inputs and outputs, each counted once.
    pub bytes: f64,
    run: Box<dyn FnMut() -> Duration + Send>,
}

impl Op {
    /// Does it once, on a thread of the pool as a pass does, and tells how long that took without what was to be prepared.
    pub fn run(&mut self) -> Duration {
        rayon::scope(|_| (self.run)())
    }

    /// Seconds of one run: for so long, but at least three times, after one run that is not counted.
    pub fn measure(&mut self, at_least: Duration) -> Spread {
        rayon::scope(|_| {
            self.run();
            let (started, mut seconds) = (Instant::now(), Vec::new());
            while started.elapsed() < at_least || seconds.len() < 3 {
                seconds.push(self.run().as_secs_f64());
            }
            Spread::of(&seconds)
        })
    }
}

/// Which of the operations are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// Those of a forward pass, of prefill or decode.
    Infer,
    /// Those of a training step, forwards and backwards.
    Train,
}

/// All operations of a pass over `tokens` tokens of one sequence, in the precision of `device`, which is the CPU.
///
/// # Errors
/// If there is no memory for a matrix.
pub fn ops(pass: Pass, tokens: usize, device: &ComputeDevice) -> anyhow::Result<Vec<Op>> {
    let mut ops = Vec::new();
    let projections =
        [(HIDDEN, HIDDEN), (KEY_VALUE_HEADS * HEAD_DIM, HIDDEN), (INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE)];
    for (d_out, d_in) in projections {
        ops.push(linear_forward(tokens, [d_out, d_in], device)?);
        if pass == Pass::Train {
            ops.push(linear_backward(tokens, [d_out, d_in], device)?);
            ops.extend(lora_linear_both(tokens, [d_out, d_in], device)?);
        }
    }
    if pass == Pass::Infer {
        ops.push(linear_forward(1, [VOCABULARY, HIDDEN], device)?);
        ops.push(attention_cached(tokens));
    } else {
        ops.extend(attention_batch(tokens));
        ops.push(head_loss(tokens, device)?);
    }
    ops.extend(row_ops(pass, tokens));
    Ok(ops)
}

fn op(name: String, tokens: usize, flop: usize, bytes: usize, run: impl FnMut() -> Duration + Send + 'static) -> Op {
    Op { name, tokens, flop: flop as f64, bytes: bytes as f64, run: Box::new(run) }
}

/// Times what makes a tensor. Everything on the CPU is computed when it is asked for.
fn timed<T>(make: impl FnOnce() -> T) -> Duration {
    let started = Instant::now();
    std::hint::black_box(make());
    started.elapsed()
}

/// Times going backwards through what `make` computes from tracked tensors.
fn timed_backward<const D: usize>(make: impl FnOnce() -> Tensor<D>) -> Duration {
    let made = make();
    timed(|| made.backward())
}

fn noise(rows: usize, cols: usize) -> Tensor<2> {
    Tensor::random([rows, cols], Distribution::Uniform(-1.0, 1.0), &Device::flex())
}

fn tracked(x: &Tensor<2>) -> Tensor<2> {
    Tensor::from_data(x.to_data(), &Device::flex().autodiff()).require_grad()
}

/// Weights as a model has them on `device`, each a copy of its own, and the bytes of one.
fn matrices([d_out, d_in]: [usize; 2], count: usize, device: &ComputeDevice) -> anyhow::Result<(Vec<Frozen>, usize)> {
    let ids = random_ids(2001, d_out * d_in, 1);
    let values: Vec<f32> = ids.into_iter().map(|id| (id as f32 - 1000.0) / 20_000.0).collect();
    let first = PackedMatrix::quantize(TensorType::Q4_1, [d_out, d_in], &values);
    let copy = |_| PackedMatrix::from_packed(TensorType::Q4_1, [d_out, d_in], first.bytes().to_vec());
    let copies = (0..count).map(copy).map(|matrix| Frozen::for_device(&matrix, device));
    Ok((copies.collect::<Result<_, _>>()?, first.bytes().len()))
}

fn linear_forward(tokens: usize, shape: [usize; 2], device: &ComputeDevice) -> anyhow::Result<Op> {
    let [d_out, d_in] = shape;
    // A few tokens wait for the weights; these come from memory in a model, since all others were used in between.
    let copies = if tokens < 64 { COLD_BYTES / (d_out * d_in * 5 / 8) + 1 } else { 1 };
    let ((weights, weight_bytes), x) = (matrices(shape, copies, device)?, noise(tokens, d_in));
    let (flop, bytes) = (2 * tokens * d_out * d_in, weight_bytes + 4 * tokens * (d_out + d_in));
    let mut next = 0;
    Ok(op(format!("packed_linear forward {d_out}x{d_in}"), tokens, flop, bytes, move || {
        next = (next + 1) % weights.len();
        let x = x.clone();
        timed(|| packed_linear(x, &weights[next]))
    }))
}

fn linear_backward(tokens: usize, shape: [usize; 2], device: &ComputeDevice) -> anyhow::Result<Op> {
    let [d_out, d_in] = shape;
    let ((weights, weight_bytes), x) = (matrices(shape, 1, device)?, noise(tokens, d_in));
    let (flop, bytes) = (2 * tokens * d_out * d_in, weight_bytes + 4 * tokens * (d_out + d_in));
    Ok(op(format!("packed_linear backward {d_out}x{d_in}"), tokens, flop, bytes, move || {
        let x = tracked(&x);
        timed_backward(|| packed_linear(x, &weights[0]))
    }))
}

/// A projection with its branch of rank [`RANK`], as a training step has it.
fn lora_linear_both(tokens: usize, shape: [usize; 2], device: &ComputeDevice) -> anyhow::Result<[Op; 2]> {
    let [d_out, d_in] = shape;
    let (weights, weight_bytes) = matrices(shape, 2, device)?;
    let inputs = [noise(tokens, d_in), noise(RANK, d_in), noise(d_out, RANK)];
    let (thin, values) = (2 * tokens * RANK * (d_in + d_out), tokens * (d_out + d_in) + RANK * (d_in + d_out));
    let whole = 2 * tokens * d_out * d_in;
    let (forward_bytes, backward_bytes) = (weight_bytes + 4 * values, weight_bytes + 8 * values);
    let [forward, backward] = [0, 1].map(|which| {
        let (weight, inputs) = (weights[which].clone(), inputs.clone());
        move || (inputs.clone().map(|input| tracked(&input)), weight.clone())
    });
    Ok([
        op(format!("lora_linear forward {d_out}x{d_in}"), tokens, whole + thin, forward_bytes, move || {
            let ([x, a, b], weight) = forward();
            timed(|| lora_linear(x, [(&weight, Some(&LoraBranch { a, b, scaling: 2.0 }))], None))
        }),
        // Both thin products again, and the gradients of A and B.
        op(format!("lora_linear backward {d_out}x{d_in}"), tokens, whole + 2 * thin, backward_bytes, move || {
            let ([x, a, b], weight) = backward();
            timed_backward(|| {
                let [y] = lora_linear(x, [(&weight, Some(&LoraBranch { a, b, scaling: 2.0 }))], None);
                y
            })
        }),
    ])
}

fn attention_batch(tokens: usize) -> [Op; 2] {
    let geometry = move || Geometry::of_batch([tokens].into(), HEADS, KEY_VALUE_HEADS, HEAD_DIM);
    let (query_width, key_width) = (HEADS * HEAD_DIM, KEY_VALUE_HEADS * HEAD_DIM);
    let inputs = || (noise(tokens, query_width), noise(tokens, key_width), noise(tokens, key_width));
    // Causal: half of the products, of two matrix products forwards and five backwards, scores computed again.
    let one_product = tokens * (tokens + 1) * query_width;
    let values = tokens * (2 * query_width + 2 * key_width);
    let (q, k, v) = inputs();
    let forward = op("attention forward".to_owned(), tokens, 2 * one_product, 4 * values, move || {
        let (q, k, v) = (q.clone(), k.clone(), v.clone());
        timed(|| attention(q, k, v, geometry()))
    });
    let (q, k, v) = inputs();
    let backward = op("attention backward".to_owned(), tokens, 5 * one_product, 8 * values, move || {
        let (q, k, v) = (tracked(&q), tracked(&k), tracked(&v));
        timed_backward(|| attention(q, k, v, geometry()))
    });
    [forward, backward]
}

/// The last of `tokens` tokens, or where there is only one, the one after 128 others, over a cache.
fn attention_cached(tokens: usize) -> Op {
    let past = if tokens == 1 { 128 } else { 0 };
    let room = past + tokens;
    let geometry = Geometry::of_cache([tokens].into(), past, room, HEADS, KEY_VALUE_HEADS, HEAD_DIM);
    let query_width = HEADS * HEAD_DIM;
    let q = noise(tokens, query_width);
    let (k, v) = (noise(KEY_VALUE_HEADS * room, HEAD_DIM), noise(KEY_VALUE_HEADS * room, HEAD_DIM));
    let pairs = tokens * past + tokens * (tokens + 1) / 2;
    let bytes = 4 * (2 * tokens * query_width + 2 * KEY_VALUE_HEADS * room * HEAD_DIM);
    op(format!("attention over a cache of {room}"), tokens, 4 * pairs * query_width, bytes, move || {
        let (q, k, v) = (q.clone(), k.clone(), v.clone());
        timed(|| attention(q, k, v, geometry.clone()))
    })
}

/// Output matrix and cross entropy with the gradient, which is made in the forward pass.
fn head_loss(tokens: usize, device: &ComputeDevice) -> anyhow::Result<Op> {
    let (weights, weight_bytes) = matrices([VOCABULARY, HIDDEN], 1, device)?;
    let (hidden, targets) = (noise(tokens, HIDDEN), random_ids(VOCABULARY, tokens, 2));
    let (flop, bytes) = (4 * tokens * VOCABULARY * HIDDEN, weight_bytes + 8 * tokens * HIDDEN);
    Ok(op("head_loss with gradient".to_owned(), tokens, flop, bytes, move || {
        let hidden = tracked(&hidden);
        timed(|| token_nll(hidden, &targets, &weights[0], &Stop::new()))
    }))
}

/// Those that work on each row by itself, and are bound by memory.
fn row_ops(pass: Pass, tokens: usize) -> Vec<Op> {
    let norm = NormWeight::new(vec![1.0; HIDDEN], 1e-5);
    let frequencies: Vec<f64> = (0..HEAD_DIM / 2).map(|i| 1e4_f64.powf(-2.0 * i as f64 / HEAD_DIM as f64)).collect();
    let angles = RopeAngles::new(0..tokens, &frequencies);
    let (hidden, wide) = (tokens * HIDDEN, tokens * INTERMEDIATE);
    let mut ops = Vec::new();
    let (x, weight) = (noise(tokens, HIDDEN), norm.clone());
    ops.push(op("rms_norm forward".to_owned(), tokens, 4 * hidden, 8 * hidden, move || {
        let x = x.clone();
        timed(|| rms_norm(x, &weight))
    }));
    let (gate, up) = (noise(tokens, INTERMEDIATE), noise(tokens, INTERMEDIATE));
    // The exponential counted as one operation.
    ops.push(op("swiglu forward".to_owned(), tokens, 5 * wide, 12 * wide, move || {
        let (gate, up) = (gate.clone(), up.clone());
        timed(|| swiglu(gate, up))
    }));
    let (x, turns) = (noise(tokens, HIDDEN), angles.clone());
    ops.push(op("rope forward".to_owned(), tokens, 3 * hidden, 8 * hidden, move || {
        let x = x.clone();
        timed(|| rope(x, &turns))
    }));
    if pass == Pass::Infer {
        return ops;
    }
    let x = noise(tokens, HIDDEN);
    ops.push(op("rms_norm backward".to_owned(), tokens, 10 * hidden, 12 * hidden, move || {
        let x = tracked(&x);
        timed_backward(|| rms_norm(x, &norm))
    }));
    let (gate, up) = (noise(tokens, INTERMEDIATE), noise(tokens, INTERMEDIATE));
    ops.push(op("swiglu backward".to_owned(), tokens, 9 * wide, 20 * wide, move || {
        let (gate, up) = (tracked(&gate), tracked(&up));
        timed_backward(|| swiglu(gate, up))
    }));
    let x = noise(tokens, HIDDEN);
    ops.push(op("rope backward".to_owned(), tokens, 3 * hidden, 8 * hidden, move || {
        let x = tracked(&x);
        timed_backward(|| rope(x, &angles))
    }));
    ops
}
