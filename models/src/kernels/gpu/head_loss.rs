//! Cross-entropy through the output matrix, a few positions at a time. A second launch turns the logits of a chunk into its
//! losses and, in their place, into their own gradient: a workgroup a position, whose units go over its logits side by side,
//! three times.

use std::ops::Range;
use std::sync::Arc;

use burn::backend::tensor::FloatTensor;
use burn::tensor::Tensor;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::launch::{Gpu, buffer, empty, in_launches, primitive, tensor};
use crate::gpu_pace::Kernel;
use crate::nn::Stop;
use crate::ops::Frozen;
use crate::ops::head_loss::{HeadLossKernel, HeadLossOps};
use crate::ops::packed_linear::PackedLinearOps;

/// Most bytes of logits at a time: far below the binding limit.
const LOGITS_BYTES: usize = 16 << 20;
/// Units of a workgroup.
const UNITS: u32 = 256;
/// FLOP of one logit, an exponential counted as 8.
const FLOP_PER_LOGIT: f64 = 20.0;

impl HeadLossOps for Gpu {
    fn token_nll(hidden: FloatTensor<Self>, targets: Arc<[u32]>, weight: Frozen, stop: Stop) -> FloatTensor<Self> {
        let [nll, _] = in_chunks(hidden, &targets, &weight, false, &stop);
        nll
    }
}

impl HeadLossKernel for Gpu {
    fn token_nll_and_gradient(
        hidden: FloatTensor<Self>,
        targets: &[u32],
        weight: &Frozen,
        stop: &Stop,
    ) -> [FloatTensor<Self>; 2] {
        in_chunks(hidden, targets, weight, true, stop)
    }
}

/// Losses `[positions, 1]`, and where `with_gradient`, d loss / d hidden; the losses again otherwise. After a stop both are
/// of the right shape and mean nothing.
fn in_chunks(
    hidden: CubeTensor,
    targets: &[u32],
    weight: &Frozen,
    with_gradient: bool,
    stop: &Stop,
) -> [CubeTensor; 2] {
    let targets_on_device = hidden.client.create_from_slice(bytemuck::cast_slice(targets));
    let hidden = tensor(hidden);
    let device = hidden.device();
    let [positions, width] = hidden.dims();
    let vocab = weight.weights().rows();
    let at_once = (LOGITS_BYTES / (4 * vocab)).clamp(8, 512);
    let (mut losses, mut gradients) = (Vec::new(), Vec::new());
    for first in (0..positions).step_by(at_once) {
        if stop.is_set() {
            let rest = positions - first;
            losses.push(Tensor::zeros([rest, 1], &device));
            gradients.push(Tensor::zeros([rest, width], &device));
            break;
        }
        let end = (first + at_once).min(positions);
        let chunk = hidden.clone().slice([first..end, 0..width]);
        let logits = Gpu::packed_linear(primitive(chunk), weight.clone());
        losses.push(tensor(logits_to_losses(&logits, &targets_on_device, targets.len(), first..end, with_gradient)));
        if with_gradient {
            gradients.push(tensor(Gpu::packed_linear_transposed(logits, weight.clone())));
        }
    }
    let losses = Tensor::cat(losses, 0);
    let gradients = if with_gradient { Tensor::cat(gradients, 0) } else { losses.clone() };
    [primitive(losses), primitive(gradients)]
}

/// The losses `[positions, 1]` of a chunk; where `with_gradient`, its logits become d loss / d logits.
fn logits_to_losses(
    logits: &CubeTensor,
    targets: &Handle,
    len_targets: usize,
    positions: Range<usize>,
    with_gradient: bool,
) -> CubeTensor {
    let vocab = burn::backend::TensorMetadata::shape(logits).dims::<2>()[1];
    let losses = empty(logits, positions.len(), 1);
    let flop = FLOP_PER_LOGIT * vocab as f64;
    in_launches(&logits.client, Kernel::Loss, positions.len() as u32, flop, |first, count| {
        // SAFETY: every buffer is passed with its own length; there are as many workgroups as positions, each with its own
        // logits, and targets are below the vocabulary's size.
        unsafe {
            loss_kernel::launch_unchecked(
                &logits.client,
                CubeCount::Static(count, 1, 1),
                CubeDim::new_1d(UNITS),
                buffer(logits),
                BufferArg::from_raw_parts(targets.clone(), len_targets),
                buffer(&losses),
                first,
                positions.start as u32,
                vocab as u32,
                u32::from(with_gradient),
            );
        }
    });
    losses
}

#[cube(launch_unchecked)]
fn loss_kernel(
    logits: &mut [f32],
    targets: &[u32],
    losses: &mut [f32],
    first_task: u32,
    first_target: u32,
    vocab: u32,
    with_gradient: u32,
) {
    let position = first_task + CUBE_POS_X;
    let start = position * vocab;
    let target = targets[(first_target + position) as usize];
    let of_target = logits[(start + target) as usize];
    let mut parts = Shared::<[f32]>::new_slice(comptime!(UNITS as usize));
    let mut own_top = logits[start as usize];
    let mut id = UNIT_POS_X;
    while id < vocab {
        let logit = logits[(start + id) as usize];
        own_top = select(logit > own_top, logit, own_top);
        id += UNITS;
    }
    parts[UNIT_POS_X as usize] = own_top;
    sync_cube();
    let mut top = own_top;
    for unit in 0..UNITS {
        let part = parts[unit as usize];
        top = select(part > top, part, top);
    }
    sync_cube();
    let mut own_total = 0.0f32;
    let mut id = UNIT_POS_X;
    while id < vocab {
        own_total += (logits[(start + id) as usize] - top).exp();
        id += UNITS;
    }
    parts[UNIT_POS_X as usize] = own_total;
    sync_cube();
    let mut total = 0.0f32;
    for unit in 0..UNITS {
        total += parts[unit as usize];
    }
    if UNIT_POS_X == 0 {
        losses[position as usize] = total.ln() + top - of_target;
    }
    if with_gradient == 1 {
        let mut id = UNIT_POS_X;
        while id < vocab {
            let at = (start + id) as usize;
            let probability = (logits[at] - top).exp() / total;
            logits[at] = select(id == target, probability - 1.0, probability);
            id += UNITS;
        }
    }
}
