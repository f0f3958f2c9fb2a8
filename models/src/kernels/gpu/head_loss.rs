//! Cross-entropy through the output matrix, a few positions at a time, composed of burn's operations on the logits of a chunk.

use std::sync::Arc;

use burn::backend::tensor::FloatTensor;
use burn::tensor::{Int, Tensor, TensorData};
use burn_cubecl::tensor::CubeTensor;

use super::device_matrix::{Gpu, primitive, tensor};
use crate::nn::Stop;
use crate::ops::Frozen;
use crate::ops::head_loss::{HeadLossKernel, HeadLossOps};
use crate::ops::packed_linear::PackedLinearOps;

/// Most bytes of logits at a time: far below the binding limit, and a submission stays short.
const LOGITS_BYTES: usize = 16 << 20;

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
        let count = end - first;
        let chunk = hidden.clone().slice([first..end, 0..width]);
        let logits = tensor(Gpu::packed_linear(primitive(chunk), weight.clone()));
        let ids: Vec<i32> = targets[first..end].iter().map(|&id| id as i32).collect();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [count, 1]), &device);
        let shifted = logits.clone() - logits.max_dim(1);
        let of_target = shifted.clone().gather(1, ids.clone());
        let exponentials = shifted.exp();
        let total = exponentials.clone().sum_dim(1);
        losses.push(total.clone().log() - of_target);
        if with_gradient {
            let minus_one = Tensor::<2>::full([count, 1], -1.0, &device);
            let d_logits = exponentials.div(total).scatter(1, ids, minus_one, burn::tensor::IndexingUpdateOp::Add);
            gradients.push(tensor(Gpu::packed_linear_transposed(primitive(d_logits), weight.clone())));
        }
    }
    let losses = Tensor::cat(losses, 0);
    let gradients = if with_gradient { Tensor::cat(gradients, 0) } else { losses.clone() };
    [primitive(losses), primitive(gradients)]
}
