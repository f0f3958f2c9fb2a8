//! Normalization of rows and its gradient.

use rayon::prelude::*;

use super::simd::{Simd, vectorized};

/// Rows that a task handles at least: below, one thread is faster than two.
const TASK_ROWS: usize = 16;

/// `y = x / sqrt(mean(x²) + epsilon) · weight`, row by row.
///
/// # Shapes
/// `x` and `y` `[rows, weight.len()]`.
pub(crate) fn forward(x: &[f32], weight: &[f32], epsilon: f32, y: &mut [f32]) {
    let simd = Simd::detect();
    let rows = y.par_chunks_mut(weight.len()).zip(x.par_chunks(weight.len()));
    rows.with_min_len(TASK_ROWS).for_each(|(y, x)| normalize(simd, x, weight, epsilon, y));
}

/// `dx = r · (g − x · r² · mean(g · x))` with `g = dy · weight`, row by row; shapes as in [`forward`].
pub(crate) fn backward(x: &[f32], dy: &[f32], weight: &[f32], epsilon: f32, dx: &mut [f32]) {
    let simd = Simd::detect();
    let rows = dx.par_chunks_mut(weight.len()).zip(x.par_chunks(weight.len())).zip(dy.par_chunks(weight.len()));
    rows.with_min_len(TASK_ROWS).for_each(|((dx, x), dy)| differentiate(simd, x, dy, weight, epsilon, dx));
}

vectorized! {
    fn normalize(x: &[f32], weight: &[f32], epsilon: f32, y: &mut [f32]) = normalize_body
}

#[inline(always)]
fn normalize_body(x: &[f32], weight: &[f32], epsilon: f32, y: &mut [f32]) {
    let scale = 1.0 / (sum_of_products(x, x) / x.len() as f32 + epsilon).sqrt();
    for ((y, x), weight) in y.iter_mut().zip(x).zip(weight) {
        *y = x * scale * weight;
    }
}

vectorized! {
    fn differentiate(x: &[f32], dy: &[f32], weight: &[f32], epsilon: f32, dx: &mut [f32]) = differentiate_body
}

#[inline(always)]
fn differentiate_body(x: &[f32], dy: &[f32], weight: &[f32], epsilon: f32, dx: &mut [f32]) {
    let len = x.len() as f32;
    let scale = 1.0 / (sum_of_products(x, x) / len + epsilon).sqrt();
    for ((dx, dy), weight) in dx.iter_mut().zip(dy).zip(weight) {
        *dx = dy * weight;
    }
    let pull = scale * scale * sum_of_products(dx, x) / len;
    for (dx, x) in dx.iter_mut().zip(x) {
        *dx = scale * (*dx - x * pull);
    }
}

/// Sixteen sums side by side: a fixed order that vectorizes.
#[inline(always)]
fn sum_of_products(a: &[f32], b: &[f32]) -> f32 {
    let ((a_chunks, a_rest), (b_chunks, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    let mut lanes = [0.0f32; 16];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..16 {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    lanes.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_gradients_equal_f64_and_its_differences() {
        let (rows, width, epsilon) = (3, 50, 1e-5f32);
        let numbers = |seed: usize| -> Vec<f32> {
            (0..rows * width).map(|i| ((i * 7919 + seed * 31) % 1000) as f32 / 500.0 - 1.0).collect()
        };
        let (x, dy, weight) = (numbers(1), numbers(2), numbers(3)[..width].to_vec());
        let (mut y, mut dx) = (vec![0.0; rows * width], vec![0.0; rows * width]);
        forward(&x, &weight, epsilon, &mut y);
        backward(&x, &dy, &weight, epsilon, &mut dx);
        let norm = |x: &[f64]| -> Vec<f64> {
            let mean = x.iter().map(|v| v * v).sum::<f64>() / width as f64;
            x.iter().zip(&weight).map(|(v, w)| v / (mean + f64::from(epsilon)).sqrt() * f64::from(*w)).collect()
        };
        for row in 0..rows {
            let range = row * width..(row + 1) * width;
            let exact: Vec<f64> = x[range.clone()].iter().map(|v| f64::from(*v)).collect();
            let loss = |x: &[f64]| norm(x).iter().zip(&dy[range.clone()]).map(|(y, d)| y * f64::from(*d)).sum::<f64>();
            for (k, (expected, index)) in norm(&exact).iter().zip(range.clone()).enumerate() {
                assert!((f64::from(y[index]) - expected).abs() < 1e-5, "y[{index}]");
                let (mut above, mut below) = (exact.clone(), exact.clone());
                above[k] += 1e-6;
                below[k] -= 1e-6;
                let slope = (loss(&above) - loss(&below)) / 2e-6;
                assert!((f64::from(dx[index]) - slope).abs() < 1e-4, "dx[{index}] {} is not {slope}", dx[index]);
            }
        }
    }
}
