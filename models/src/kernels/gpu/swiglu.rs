//! The gated activation and its gradient, one unit an element.

use burn::backend::tensor::FloatTensor;
use cubecl::prelude::*;

use super::device_matrix::{Gpu, contiguous, empty};
use crate::ops::swiglu::{SwigluKernel, SwigluOps};

/// Units of a workgroup.
const UNITS: u32 = 64;

impl SwigluOps for Gpu {
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let ((gate, [rows, width]), (up, _)) = (contiguous(gate), contiguous(up));
        let (y, len) = (empty(&gate, rows, width), rows * width);
        // SAFETY: every buffer is passed with its own length, and a unit past the end does nothing.
        unsafe {
            forward_kernel::launch_unchecked(
                &gate.client,
                CubeCount::Static((len as u32).div_ceil(UNITS), 1, 1),
                CubeDim::new_1d(UNITS),
                BufferArg::from_raw_parts(gate.handle.clone(), len),
                BufferArg::from_raw_parts(up.handle.clone(), len),
                BufferArg::from_raw_parts(y.handle.clone(), len),
                len as u32,
            );
        }
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
        let (d_gate, d_up, len) = (empty(&gate, rows, width), empty(&gate, rows, width), rows * width);
        // SAFETY: as above.
        unsafe {
            backward_kernel::launch_unchecked(
                &gate.client,
                CubeCount::Static((len as u32).div_ceil(UNITS), 1, 1),
                CubeDim::new_1d(UNITS),
                BufferArg::from_raw_parts(gate.handle.clone(), len),
                BufferArg::from_raw_parts(up.handle.clone(), len),
                BufferArg::from_raw_parts(dy.handle.clone(), len),
                BufferArg::from_raw_parts(d_gate.handle.clone(), len),
                BufferArg::from_raw_parts(d_up.handle.clone(), len),
                len as u32,
            );
        }
        [d_gate, d_up]
    }
}

#[cube(launch_unchecked)]
fn forward_kernel(gate: &[f32], up: &[f32], y: &mut [f32], len: u32) {
    if (ABSOLUTE_POS as u32) < len {
        let g = gate[ABSOLUTE_POS];
        y[ABSOLUTE_POS] = g / (1.0 + (-g).exp()) * up[ABSOLUTE_POS];
    }
}

#[cube(launch_unchecked)]
fn backward_kernel(gate: &[f32], up: &[f32], dy: &[f32], d_gate: &mut [f32], d_up: &mut [f32], len: u32) {
    if (ABSOLUTE_POS as u32) < len {
        let g = gate[ABSOLUTE_POS];
        let d = dy[ABSOLUTE_POS];
        let sigmoid = 1.0 / (1.0 + (-g).exp());
        d_up[ABSOLUTE_POS] = d * g * sigmoid;
        d_gate[ABSOLUTE_POS] = d * up[ABSOLUTE_POS] * sigmoid * (1.0 + g * (1.0 - sigmoid));
    }
}
