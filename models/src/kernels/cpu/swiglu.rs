//! The gated activation and its gradient.

use rayon::prelude::*;

use super::exp::exp;
use super::simd::{Simd, vectorized};

/// Elements that one task handles.
const TASK_LEN: usize = 8192;

/// `y = silu(gate) · up`; all of one length.
pub(crate) fn forward(gate: &[f32], up: &[f32], y: &mut [f32]) {
    let simd = Simd::detect();
    let parts = y.par_chunks_mut(TASK_LEN).zip(gate.par_chunks(TASK_LEN)).zip(up.par_chunks(TASK_LEN));
    parts.for_each(|((y, gate), up)| activate(simd, gate, up, y));
}

/// Gradients with respect to `gate` and `up`; all of one length.
pub(crate) fn backward(gate: &[f32], up: &[f32], dy: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
    let simd = Simd::detect();
    let inputs = gate.par_chunks(TASK_LEN).zip(up.par_chunks(TASK_LEN)).zip(dy.par_chunks(TASK_LEN));
    let outputs = d_gate.par_chunks_mut(TASK_LEN).zip(d_up.par_chunks_mut(TASK_LEN));
    inputs.zip(outputs).for_each(|(((gate, up), dy), (d_gate, d_up))| differentiate(simd, gate, up, dy, d_gate, d_up));
}

vectorized! {
    fn activate(gate: &[f32], up: &[f32], y: &mut [f32]) = activate_body
}

#[inline(always)]
fn activate_body(gate: &[f32], up: &[f32], y: &mut [f32]) {
    for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
        *y = gate / (1.0 + exp(-gate)) * up;
    }
}

vectorized! {
    fn differentiate(gate: &[f32], up: &[f32], dy: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) = differentiate_body
}

#[inline(always)]
fn differentiate_body(gate: &[f32], up: &[f32], dy: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
    let inputs = gate.iter().zip(up).zip(dy);
    for (((gate, up), dy), (d_gate, d_up)) in inputs.zip(d_gate.iter_mut().zip(d_up)) {
        let sigmoid = 1.0 / (1.0 + exp(-gate));
        *d_up = dy * gate * sigmoid;
        *d_gate = dy * up * sigmoid * (1.0 + gate * (1.0 - sigmoid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silu(gate: f64) -> f64 {
        gate / (1.0 + (-gate).exp())
    }

    #[test]
    fn values_and_gradients_equal_f64_and_its_differences() {
        let gate: Vec<f32> = (0..400).map(|i| (i as f32 - 200.0) / 10.0).collect();
        let up: Vec<f32> = (0..400).map(|i| ((i * 37 % 100) as f32 - 50.0) / 25.0).collect();
        let dy: Vec<f32> = (0..400).map(|i| ((i * 53 % 90) as f32 - 45.0) / 45.0).collect();
        let (mut y, mut d_gate, mut d_up) = (vec![0.0; 400], vec![0.0; 400], vec![0.0; 400]);
        forward(&gate, &up, &mut y);
        backward(&gate, &up, &dy, &mut d_gate, &mut d_up);
        // f32 rounding of values up to 40, and of the differences' step.
        let close = |found: f32, expected: f64| (f64::from(found) - expected).abs() < 1e-5 * expected.abs().max(1.0);
        for i in 0..400 {
            let (g, u, d) = (f64::from(gate[i]), f64::from(up[i]), f64::from(dy[i]));
            assert!(close(y[i], silu(g) * u), "y[{i}] {}", y[i]);
            assert!(close(d_up[i], d * silu(g)), "d up[{i}] {}", d_up[i]);
            let slope = (silu(g + 1e-5) - silu(g - 1e-5)) / 2e-5;
            assert!(close(d_gate[i], d * u * slope), "d gate[{i}] {}", d_gate[i]);
        }
    }
}
