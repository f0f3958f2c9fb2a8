//! `y = x · Wᵀ` with a packed, frozen `W`. Its gradient with respect to `x` is `dy · W`; `W` has none.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;

use super::{Frozen, contiguous, cpu_matrix};
use crate::kernels::cpu::buffer::Buffer;
use crate::kernels::cpu::lora_linear::{self, Projection, Returned};

/// Multiplies tokens with a packed matrix: `y = x · Wᵀ`.
///
/// # Shapes
/// `x` `[tokens, d_in]`, `weight` `[d_out, d_in]`, result `[tokens, d_out]`.
pub fn packed_linear(x: Tensor<2>, weight: &Frozen) -> Tensor<2> {
    let [_, d_in] = x.dims();
    assert_eq!(d_in, weight.weights().cols(), "x has {d_in} columns, {weight:?}");
    Tensor::from_dispatch(<Dispatch as PackedLinearOps>::packed_linear(x.into_dispatch(), weight.clone()))
}

/// The two products with a packed matrix; each is the other's gradient.
#[backend_extension(Flex, Cube: cfg(feature = "gpu"), Autodiff)]
pub(crate) trait PackedLinearOps: Backend {
    /// `y = x · Wᵀ`: `[tokens, d_in]` to `[tokens, d_out]`.
    fn packed_linear(x: FloatTensor<Self>, weight: Frozen) -> FloatTensor<Self>;
    /// `dx = dy · W`: `[tokens, d_out]` to `[tokens, d_in]`.
    fn packed_linear_transposed(dy: FloatTensor<Self>, weight: Frozen) -> FloatTensor<Self>;
}

impl PackedLinearOps for Flex {
    fn packed_linear(x: FloatTensor<Self>, weight: Frozen) -> FloatTensor<Self> {
        let (x, [tokens, _]) = cpu_matrix(&x);
        let rows = weight.weights().rows();
        let mut y = Buffer::new(tokens * rows);
        weight.weights().forward(contiguous(&x), &mut y);
        y.into_tensor([tokens, rows])
    }

    fn packed_linear_transposed(dy: FloatTensor<Self>, weight: Frozen) -> FloatTensor<Self> {
        let (dy, [tokens, _]) = cpu_matrix(&dy);
        let weight = weight.weights();
        let returned = Returned { projection: Projection { weight, branch: None }, thin: &[], dy: contiguous(&dy) };
        let (_, dx) = lora_linear::backward(&[], &[returned], true);
        dx.unwrap_or_else(|| Buffer::new(0)).into_tensor([tokens, weight.cols()])
    }
}

#[derive(Debug)]
struct Multiply;

#[derive(Debug)]
struct MultiplyTransposed;

impl<B: PackedLinearOps> Backward<B, 1> for Multiply {
    type State = Frozen;

    fn backward(self, ops: Ops<Frozen, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let weight = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |dy| B::packed_linear_transposed(dy, weight));
    }
}

impl<B: PackedLinearOps> Backward<B, 1> for MultiplyTransposed {
    type State = Frozen;

    fn backward(self, ops: Ops<Frozen, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let weight = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |dx| B::packed_linear(dx, weight));
    }
}

impl<B: PackedLinearOps, C: CheckpointStrategy> PackedLinearOps for Autodiff<B, C> {
    fn packed_linear(x: FloatTensor<Self>, weight: Frozen) -> FloatTensor<Self> {
        let (x, node) = x.into_parts();
        let y = B::packed_linear(x, weight.clone());
        match Backward::<B, 1>::prepare::<C>(Multiply, [node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(weight, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn packed_linear_transposed(dy: FloatTensor<Self>, weight: Frozen) -> FloatTensor<Self> {
        let (dy, node) = dy.into_parts();
        let dx = B::packed_linear_transposed(dy, weight.clone());
        match Backward::<B, 1>::prepare::<C>(MultiplyTransposed, [node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(weight, dx),
            OpsKind::UnTracked(prep) => prep.finish(dx),
        }
    }
}
