//! Cross-entropy through the packed output matrix, a few positions at a time, so that the logits of a batch never stand in
//! memory together.

use rayon::prelude::*;

use super::buffer::{self, Buffer};
use super::exp::exp;
use super::simd::{Simd, vectorized};
use super::weights::Weights;
use crate::nn::Stop;

/// Most bytes of logits at a time. Also bounds how long it takes until a stop is seen: a product of 64 positions with a
/// vocabulary of 50,000 and a width of 576 takes some 20 ms on two cores.
pub(crate) const LOGITS_BYTES: usize = 12 << 20;

/// Negative log-likelihood of each position's target in nats, and where `gradient` is given, d nll / d hidden.
///
/// Looks at `stop` before each product with the output matrix, and leaves what is missing as it was.
///
/// # Shapes
/// `hidden` and `gradient` `[positions, hidden_size]`, `weight` `[vocab_size, hidden_size]`, `targets` and `nll` `[positions]`.
pub(crate) fn token_nll(
    hidden: &[f32],
    targets: &[u32],
    weight: &Weights,
    nll: &mut [f32],
    mut gradient: Option<&mut [f32]>,
    stop: &Stop,
) {
    let (vocab, width) = (weight.rows(), weight.cols());
    let simd = Simd::detect();
    let at_once = positions_at_once(weight, targets.len());
    let mut logits = Buffer::new(at_once.min(targets.len()) * vocab);
    for (chunk, (targets, nll)) in targets.chunks(at_once).zip(nll.chunks_mut(at_once)).enumerate() {
        if stop.is_set() {
            return;
        }
        let rows = chunk * at_once * width..(chunk * at_once + targets.len()) * width;
        let logits = &mut logits[..targets.len() * vocab];
        weight.forward(&hidden[rows.clone()], logits);
        let want_gradient = gradient.is_some();
        logits.par_chunks_mut(vocab).zip(nll).zip(targets).for_each(|((logits, nll), &target)| {
            *nll = cross_entropy(simd, logits, target as usize, want_gradient);
        });
        if let Some(gradient) = gradient.as_deref_mut().filter(|_| !stop.is_set()) {
            weight.backward(logits, &mut gradient[rows]);
        }
    }
    drop(logits);
    // Nothing else is as large, and what follows keeps much.
    buffer::clear();
}

/// Positions whose logits are in memory together.
fn positions_at_once(weight: &Weights, positions: usize) -> usize {
    let most = (LOGITS_BYTES / (4 * weight.rows())).clamp(8, 512);
    match weight {
        Weights::Packed(_) => most,
        // Evenly: a few positions that are left over would be multiplied in 8 bits, as when decoding.
        Weights::Tiled(_) => positions.div_ceil(positions.div_ceil(most).max(1)).max(1),
    }
}

vectorized! {
    /// `log Σ exp(logits) − logits[target]`; where `to_gradient`, `logits` becomes `softmax(logits) − onehot(target)`.
    fn cross_entropy(logits: &mut [f32], target: usize, to_gradient: bool) -> f32 = cross_entropy_body
}

#[inline(always)]
fn cross_entropy_body(logits: &mut [f32], target: usize, to_gradient: bool) -> f32 {
    let largest = largest(logits);
    let of_target = logits[target];
    let sum = if to_gradient {
        for logit in logits.iter_mut() {
            *logit = exp(*logit - largest);
        }
        sum(logits, |x| x)
    } else {
        sum(logits, |logit| exp(logit - largest))
    };
    if to_gradient {
        let scale = 1.0 / sum;
        for probability in logits.iter_mut() {
            *probability *= scale;
        }
        logits[target] -= 1.0;
    }
    // The difference first: both may be large where their distance is small.
    (largest - of_target) + sum.ln()
}

const LANES: usize = 32;

#[inline(always)]
fn largest(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

#[inline(always)]
fn sum(values: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] += term(chunk[lane]);
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|&value| term(value)).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{PackedMatrix, TensorType};

    #[test]
    fn losses_and_gradients_equal_f64_sums() {
        let (positions, vocab, width) = (11, 77, 32);
        let numbers = |count: usize, seed: usize| -> Vec<f32> {
            (0..count).map(|i| ((i + seed) * 7919 % 997) as f32 / 200.0 - 2.5).collect()
        };
        let weight = PackedMatrix::quantize(TensorType::Q8_0, [vocab, width], &numbers(vocab * width, 3));
        let mut dense = vec![0.0; vocab * width];
        weight.dequantize_rows(0..vocab, &mut dense);
        let weight = Weights::from(weight);
        let hidden = numbers(positions * width, 8);
        let targets: Vec<u32> = (0..positions as u32).map(|p| p * 13 % vocab as u32).collect();
        let (mut nll, mut gradient) = (vec![0.0; positions], vec![0.0; positions * width]);
        token_nll(&hidden, &targets, &weight, &mut nll, Some(&mut gradient), &Stop::new());
        let mut without = vec![0.0; positions];
        token_nll(&hidden, &targets, &weight, &mut without, None, &Stop::new());
        for p in 0..positions {
            let logits: Vec<f64> = (0..vocab)
                .map(|v| (0..width).map(|k| f64::from(hidden[p * width + k]) * f64::from(dense[v * width + k])).sum())
                .collect();
            let total: f64 = logits.iter().map(|l| l.exp()).sum();
            let expected = total.ln() - logits[targets[p] as usize];
            // Logits reach 100, so their f32 rounding is up to 1e-5.
            assert!((f64::from(nll[p]) - expected).abs() < 5e-5, "nll[{p}] {} is not {expected}", nll[p]);
            assert!((nll[p] - without[p]).abs() < 1e-5);
            for k in 0..width {
                let d: f64 = (0..vocab)
                    .map(|v| {
                        (logits[v].exp() / total - f64::from(u8::from(v == targets[p] as usize)))
                            * f64::from(dense[v * width + k])
                    })
                    .sum();
                assert!((f64::from(gradient[p * width + k]) - d).abs() < 1e-4, "gradient[{p}][{k}]");
            }
        }
    }
}
