//! The output matrix and cross-entropy in one operation, over the scored positions only.
//!
//! The gradient is made in the forward pass, while the logits of a chunk are at hand, and scaled in the backward pass: a loss
//! is linear in each position's term, so nothing is computed twice and no logits are kept.

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::Tensor;

use super::{Frozen, contiguous, cpu_matrix};
use crate::kernels::cpu::{buffer::Buffer, head_loss as kernel};
use crate::nn::Stop;

/// Negative log-likelihood of each position's target, in nats: `log Σ exp(W·h) − (W·h)[target]`.
///
/// # Shapes
/// `hidden` `[positions, hidden_size]`, `targets` `[positions]`, `weight` `[vocab_size, hidden_size]`, result `[positions]`.
///
/// Once `stop` is set it returns soon, with results that mean nothing.
///
/// # Panics
/// If a target is not below `vocab_size`; the caller checks its batch.
pub fn token_nll(hidden: Tensor<2>, targets: &[u32], weight: &Frozen, stop: &Stop) -> Tensor<1> {
    let [positions, _] = hidden.dims();
    assert_eq!(positions, targets.len(), "{positions} positions, {} targets", targets.len());
    let nll =
        <Dispatch as HeadLossOps>::token_nll(hidden.into_dispatch(), Arc::from(targets), weight.clone(), stop.clone());
    Tensor::<2>::from_dispatch(nll).reshape([positions])
}

/// What a device must compute for [`HeadLossOps`].
pub(crate) trait HeadLossKernel: Backend {
    /// Losses `[positions, 1]`, and d loss / d hidden `[positions, hidden_size]`.
    fn token_nll_and_gradient(
        hidden: FloatTensor<Self>,
        targets: &[u32],
        weight: &Frozen,
        stop: &Stop,
    ) -> [FloatTensor<Self>; 2];
}

/// Cross-entropy through a packed output matrix.
#[backend_extension(Flex, Cube: cfg(feature = "gpu"), Autodiff)]
pub(crate) trait HeadLossOps: Backend {
    /// Losses `[positions, 1]` of `targets`.
    fn token_nll(hidden: FloatTensor<Self>, targets: Arc<[u32]>, weight: Frozen, stop: Stop) -> FloatTensor<Self>;
}

impl HeadLossOps for Flex {
    fn token_nll(hidden: FloatTensor<Self>, targets: Arc<[u32]>, weight: Frozen, stop: Stop) -> FloatTensor<Self> {
        let (hidden, [positions, _]) = cpu_matrix(&hidden);
        let mut nll = Buffer::new(positions);
        kernel::token_nll(contiguous(&hidden), &targets, weight.weights(), &mut nll, None, &stop);
        nll.into_tensor([positions, 1])
    }
}

impl HeadLossKernel for Flex {
    fn token_nll_and_gradient(
        hidden: FloatTensor<Self>,
        targets: &[u32],
        weight: &Frozen,
        stop: &Stop,
    ) -> [FloatTensor<Self>; 2] {
        let (hidden, [positions, width]) = cpu_matrix(&hidden);
        let (mut nll, mut gradient) = (Buffer::new(positions), Buffer::new(positions * width));
        kernel::token_nll(contiguous(&hidden), targets, weight.weights(), &mut nll, Some(&mut gradient), stop);
        [nll.into_tensor([positions, 1]), gradient.into_tensor([positions, width])]
    }
}

#[derive(Debug)]
struct Scale;

impl<B: HeadLossKernel> Backward<B, 1> for Scale {
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |of_loss| {
            let shape = gradient.shape();
            B::float_mul(gradient, B::float_expand(of_loss, shape))
        });
    }
}

impl<B: HeadLossKernel + HeadLossOps, C: CheckpointStrategy> HeadLossOps for Autodiff<B, C> {
    fn token_nll(hidden: FloatTensor<Self>, targets: Arc<[u32]>, weight: Frozen, stop: Stop) -> FloatTensor<Self> {
        let (hidden, node) = hidden.into_parts();
        match Backward::<B, 1>::prepare::<C>(Scale, [node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let [nll, gradient] = B::token_nll_and_gradient(hidden, &targets, &weight, &stop);
                prep.finish(gradient, nll)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::token_nll(hidden, targets, weight, stop)),
        }
    }
}
