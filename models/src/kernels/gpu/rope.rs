//! Rotary position embedding.

use burn::backend::tensor::FloatTensor;
use cubecl::prelude::*;

use super::launch::{Gpu, buffer, contiguous, empty, in_launches};
use crate::gpu_pace::Kernel;
use crate::ops::rope::{RopeAngles, RopeOps};

/// Units of a workgroup.
const UNITS: u32 = 64;
/// FLOP of a pair.
const FLOP: f64 = 6.0;

impl RopeOps for Gpu {
    fn rope(x: FloatTensor<Self>, angles: RopeAngles) -> FloatTensor<Self> {
        let (x, [rows, width]) = contiguous(x);
        let y = empty(&x, rows, width);
        let half = angles.half();
        let [cos, sin] = angles.on_device(|values| x.client.create_from_slice(bytemuck::cast_slice(values)));
        let pairs = (rows * width / 2) as u32;
        in_launches(&x.client, Kernel::Elementwise, pairs.div_ceil(UNITS), FLOP * f64::from(UNITS), |first, count| {
            // SAFETY: every buffer is passed with its own length, and a unit past the last pair does nothing.
            unsafe {
                rope_kernel::launch_unchecked(
                    &x.client,
                    CubeCount::Static(count, 1, 1),
                    CubeDim::new_1d(UNITS),
                    buffer(&x),
                    BufferArg::from_raw_parts(cos.clone(), rows * half),
                    BufferArg::from_raw_parts(sin.clone(), rows * half),
                    buffer(&y),
                    first * UNITS,
                    pairs,
                    (width / 2) as u32,
                    half as u32,
                    angles.direction(),
                );
            }
        });
        y
    }
}

/// One unit turns one pair of dimensions.
#[cube(launch_unchecked)]
fn rope_kernel(
    x: &[f32],
    cos: &[f32],
    sin: &[f32],
    y: &mut [f32],
    first_pair: u32,
    pairs: u32,
    row_pairs: u32,
    half: u32,
    direction: f32,
) {
    let pair = first_pair + ABSOLUTE_POS as u32;
    if pair < pairs {
        let row = pair / row_pairs;
        let head = pair % row_pairs / half;
        let dim = pair % half;
        let first = (row * 2 * row_pairs + head * 2 * half + dim) as usize;
        let second = first + half as usize;
        let angle = (row * half + dim) as usize;
        let turn = sin[angle] * direction;
        y[first] = x[first] * cos[angle] - x[second] * turn;
        y[second] = x[second] * cos[angle] + x[first] * turn;
    }
}
