//! The gated activation and its gradient, one unit an element.

use burn::backend::tensor::FloatTensor;
use cubecl::prelude::*;

use super::launch::{Gpu, buffer, contiguous, empty, in_launches};
use crate::gpu_pace::Kernel;
use crate::ops::swiglu::{SwigluKernel, SwigluOps};

/// Units of a workgroup.
const UNITS: u32 = 64;
/// FLOP of an element, forwards, an exponential counted as 8.
const FLOP: f64 = 12.0;

impl SwigluOps for Gpu {
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let ((gate, [rows, width]), (up, _)) = (contiguous(gate), contiguous(up));
        let (y, len) = (empty(&gate, rows, width), (rows * width) as u32);
        let flop = FLOP * f64::from(UNITS);
        in_launches(&gate.client, Kernel::Elementwise, len.div_ceil(UNITS), flop, |first, count| {
            // SAFETY: every buffer is passed with its own length, and a unit past the end does nothing.
            unsafe {
                forward_kernel::launch_unchecked(
                    &gate.client,
                    CubeCount::Static(count, 1, 1),
                    CubeDim::new_1d(UNITS),
                    buffer(&gate),
                    buffer(&up),
                    buffer(&y),
                    first * UNITS,
                    len,
                );
            }
        });
        y
    }
}

impl SwigluKernel for Gpu {
    fn swiglu_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        dy: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2] {
        let ((gate, [rows, width]), (up, _), (dy, _)) = (contiguous(gate), contiguous(up), contiguous(dy));
        let (d_gate, d_up, len) = (empty(&gate, rows, width), empty(&gate, rows, width), (rows * width) as u32);
        let flop = 1.5 * FLOP * f64::from(UNITS);
        in_launches(&gate.client, Kernel::Elementwise, len.div_ceil(UNITS), flop, |first, count| {
            // SAFETY: as above.
            unsafe {
                backward_kernel::launch_unchecked(
                    &gate.client,
                    CubeCount::Static(count, 1, 1),
                    CubeDim::new_1d(UNITS),
                    buffer(&gate),
                    buffer(&up),
                    buffer(&dy),
                    buffer(&d_gate),
                    buffer(&d_up),
                    first * UNITS,
                    len,
                );
            }
        });
        [d_gate, d_up]
    }
}

#[cube(launch_unchecked)]
fn forward_kernel(gate: &[f32], up: &[f32], y: &mut [f32], first: u32, len: u32) {
    let at = first + ABSOLUTE_POS as u32;
    if at < len {
        let g = gate[at as usize];
        y[at as usize] = g / (1.0 + (-g).exp()) * up[at as usize];
    }
}

#[cube(launch_unchecked)]
fn backward_kernel(gate: &[f32], up: &[f32], dy: &[f32], d_gate: &mut [f32], d_up: &mut [f32], first: u32, len: u32) {
    let at = first + ABSOLUTE_POS as u32;
    if at < len {
        let g = gate[at as usize];
        let d = dy[at as usize];
        let sigmoid = 1.0 / (1.0 + (-g).exp());
        d_up[at as usize] = d * g * sigmoid;
        d_gate[at as usize] = d * up[at as usize] * sigmoid * (1.0 + g * (1.0 - sigmoid));
    }
}
