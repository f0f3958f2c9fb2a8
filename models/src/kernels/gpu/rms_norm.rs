//! Normalization of rows and its gradient, one workgroup a row. Sums run in a fixed order.

use burn::backend::tensor::FloatTensor;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::launch::{Gpu, buffer, contiguous, empty, in_launches};
use crate::gpu_pace::Kernel;
use crate::ops::rms_norm::{NormWeight, RmsNormKernel, RmsNormOps};

/// Units of a workgroup.
const UNITS: u32 = 64;
/// FLOP of a value of a row, forwards.
const FLOP: f64 = 4.0;

impl RmsNormOps for Gpu {
    fn rms_norm(x: FloatTensor<Self>, weight: NormWeight) -> FloatTensor<Self> {
        let (x, [rows, width]) = contiguous(x);
        let y = empty(&x, rows, width);
        let on_device: &Handle = weight.on_device(|values| x.client.create_from_slice(bytemuck::cast_slice(values)));
        in_launches(&x.client, Kernel::Norm, rows as u32, FLOP * width as f64, |first, count| {
            // SAFETY: every buffer is passed with its own length, and there are as many workgroups as rows.
            unsafe {
                forward_kernel::launch_unchecked(
                    &x.client,
                    CubeCount::Static(count, 1, 1),
                    CubeDim::new_1d(UNITS),
                    buffer(&x),
                    BufferArg::from_raw_parts(on_device.clone(), width),
                    buffer(&y),
                    first,
                    width as u32,
                    weight.epsilon(),
                );
            }
        });
        y
    }
}

impl RmsNormKernel for Gpu {
    fn rms_norm_backward(x: FloatTensor<Self>, dy: FloatTensor<Self>, weight: &NormWeight) -> FloatTensor<Self> {
        let ((x, [rows, width]), (dy, _)) = (contiguous(x), contiguous(dy));
        let dx = empty(&x, rows, width);
        let on_device: &Handle = weight.on_device(|values| x.client.create_from_slice(bytemuck::cast_slice(values)));
        in_launches(&x.client, Kernel::Norm, rows as u32, 3.0 * FLOP * width as f64, |first, count| {
            // SAFETY: as above.
            unsafe {
                backward_kernel::launch_unchecked(
                    &x.client,
                    CubeCount::Static(count, 1, 1),
                    CubeDim::new_1d(UNITS),
                    buffer(&x),
                    buffer(&dy),
                    BufferArg::from_raw_parts(on_device.clone(), width),
                    buffer(&dx),
                    first,
                    width as u32,
                    weight.epsilon(),
                );
            }
        });
        dx
    }
}

/// The sum of every unit's `own`, for all units. `partial` has room for one value a unit.
#[cube]
fn sum_of_units(own: f32, partial: &mut Shared<[f32]>) -> f32 {
    partial[UNIT_POS_X as usize] = own;
    sync_cube();
    let mut total = 0.0f32;
    for unit in 0..UNITS {
        total += partial[unit as usize];
    }
    sync_cube();
    total
}

#[cube(launch_unchecked)]
fn forward_kernel(x: &[f32], weight: &[f32], y: &mut [f32], first_row: u32, width: u32, epsilon: f32) {
    let start = (first_row + CUBE_POS_X) * width;
    let mut partial = Shared::<[f32]>::new_slice(comptime!(UNITS as usize));
    let mut squares = 0.0f32;
    let mut k = UNIT_POS_X;
    while k < width {
        let value = x[(start + k) as usize];
        squares += value * value;
        k += UNITS;
    }
    let total = sum_of_units(squares, &mut partial);
    let scale = 1.0 / (total / f32::cast_from(width) + epsilon).sqrt();
    let mut k = UNIT_POS_X;
    while k < width {
        y[(start + k) as usize] = x[(start + k) as usize] * scale * weight[k as usize];
        k += UNITS;
    }
}

#[cube(launch_unchecked)]
fn backward_kernel(x: &[f32], dy: &[f32], weight: &[f32], dx: &mut [f32], first_row: u32, width: u32, epsilon: f32) {
    let start = (first_row + CUBE_POS_X) * width;
    let mut partial = Shared::<[f32]>::new_slice(comptime!(UNITS as usize));
    let mut squares = 0.0f32;
    let mut products = 0.0f32;
    let mut k = UNIT_POS_X;
    while k < width {
        let value = x[(start + k) as usize];
        squares += value * value;
        products += value * dy[(start + k) as usize] * weight[k as usize];
        k += UNITS;
    }
    let len = f32::cast_from(width);
    let scale = 1.0 / (sum_of_units(squares, &mut partial) / len + epsilon).sqrt();
    let pull = scale * scale * sum_of_units(products, &mut partial) / len;
    let mut k = UNIT_POS_X;
    while k < width {
        let index = (start + k) as usize;
        dx[index] = scale * (dy[index] * weight[k as usize] - x[index] * pull);
        k += UNITS;
    }
}
