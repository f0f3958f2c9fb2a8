//! A projection with its LoRA branch: `y = x · Wᵀ + scaling · (x · Aᵀ) · Bᵀ`, onto a residual where there is one.
//!
//! ```text
//! g  = scaling · dy · B          h = x · Aᵀ
//! dx = dy · W + g · A            dA = gᵀ · x            dB = scaling · dyᵀ · h            d residual = dy
//! ```
//!
//! One operation, so that full-sized sums and gradients are made once. `x` is not kept where it can be computed again from
//! what is kept anyway: it is asked for by its node.

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;

use super::{Frozen, contiguous, cpu_matrix, cpu_tensor};
use crate::kernels::cpu::lora;

/// The projection of `x`, added to `residual` where there is one.
///
/// # Shapes
/// `x` `[tokens, d_in]`, `weight` `[d_out, d_in]`, `a` `[rank, d_in]`, `b` `[d_out, rank]`, `residual` and the result
/// `[tokens, d_out]`.
pub fn lora_linear(
    x: Tensor<2>,
    weight: &Frozen,
    [a, b]: [Tensor<2>; 2],
    scaling: f32,
    residual: Option<Tensor<2>>,
) -> Tensor<2> {
    let ([_, d_in], [rank, a_in], [b_out, b_rank]) = (x.dims(), a.dims(), b.dims());
    let expected = (weight.weights().cols(), weight.weights().rows());
    assert_eq!((d_in, a_in, b_out, b_rank), (expected.0, expected.0, expected.1, rank), "x, A and B of {weight:?}");
    let (x, a, b, weight) = (x.into_dispatch(), a.into_dispatch(), b.into_dispatch(), weight.clone());
    Tensor::from_dispatch(match residual {
        Some(residual) => {
            <Dispatch as LoraLinearOps>::lora_linear_onto(residual.into_dispatch(), x, a, b, weight, scaling)
        }
        None => <Dispatch as LoraLinearOps>::lora_linear(x, a, b, weight, scaling),
    })
}

/// What a forward pass leaves for the backward pass, beside `x`.
#[derive(Clone, Debug)]
pub(crate) struct Branch<B: Backend> {
    /// `[rank, d_in]`.
    pub(crate) a: FloatTensor<B>,
    /// `[d_out, rank]`.
    pub(crate) b: FloatTensor<B>,
    /// `x · Aᵀ`, `[tokens, rank]`.
    pub(crate) thin: FloatTensor<B>,
    pub(crate) weight: Frozen,
    pub(crate) scaling: f32,
}

/// What a device must compute for [`LoraLinearOps`].
pub(crate) trait LoraLinearKernel: Backend {
    /// The result, and `x · Aᵀ`.
    fn lora_forward(
        x: &FloatTensor<Self>,
        a_and_b: [&FloatTensor<Self>; 2],
        weight: &Frozen,
        scaling: f32,
        residual: Option<FloatTensor<Self>>,
    ) -> [FloatTensor<Self>; 2];

    /// d loss / d A and d loss / d B, and where `with_dx`, d loss / d x.
    fn lora_backward(
        branch: Branch<Self>,
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        with_dx: bool,
    ) -> ([FloatTensor<Self>; 2], Option<FloatTensor<Self>>);
}

/// A projection with a branch.
#[backend_extension(Flex, Cube: cfg(feature = "gpu"), Autodiff)]
pub(crate) trait LoraLinearOps: Backend {
    /// `x · Wᵀ + scaling · (x · Aᵀ) · Bᵀ`.
    fn lora_linear(
        x: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        weight: Frozen,
        scaling: f32,
    ) -> FloatTensor<Self>;

    /// The same, added to `residual`.
    fn lora_linear_onto(
        residual: FloatTensor<Self>,
        x: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        weight: Frozen,
        scaling: f32,
    ) -> FloatTensor<Self>;
}

impl LoraLinearKernel for Flex {
    fn lora_forward(
        x: &FloatTensor<Self>,
        [a, b]: [&FloatTensor<Self>; 2],
        weight: &Frozen,
        scaling: f32,
        residual: Option<FloatTensor<Self>>,
    ) -> [FloatTensor<Self>; 2] {
        let ((x, [tokens, _]), (a, [rank, _]), (b, b_shape)) = (cpu_matrix(x), cpu_matrix(a), cpu_matrix(b));
        let d_out = weight.weights().rows();
        let mut y = vec![0.0; tokens * d_out];
        weight.weights().forward(contiguous(&x), &mut y);
        let thin = lora::reduce(contiguous(&x), contiguous(&a), rank, 1.0);
        let rows: Vec<f32> = lora::transposed(contiguous(&b), b_shape).into_iter().map(|b| scaling * b).collect();
        lora::expand(&mut y, &thin, &rows, rank);
        if let Some(residual) = residual {
            lora::add(&mut y, contiguous(&cpu_matrix(&residual).0));
        }
        [cpu_tensor(y, [tokens, d_out]), cpu_tensor(thin, [tokens, rank])]
    }

    fn lora_backward(
        branch: Branch<Self>,
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        with_dx: bool,
    ) -> ([FloatTensor<Self>; 2], Option<FloatTensor<Self>>) {
        let Branch { a, b, thin, weight, scaling } = branch;
        let ((x, x_shape), (dy, [_, d_out]), (thin, _)) = (cpu_matrix(&x), cpu_matrix(&dy), cpu_matrix(&thin));
        let ((a, a_shape), (b, b_shape)) = (cpu_matrix(&a), cpu_matrix(&b));
        let [rank, d_in] = a_shape;
        let g = lora::reduce(contiguous(&dy), &lora::transposed(contiguous(&b), b_shape), rank, scaling);
        let da = lora::outer(&g, contiguous(&x), rank, d_in);
        let db: Vec<f32> =
            lora::outer(contiguous(&thin), contiguous(&dy), rank, d_out).into_iter().map(|d| scaling * d).collect();
        let dx = with_dx.then(|| {
            let mut dx = vec![0.0; x_shape[0] * d_in];
            weight.weights().backward(contiguous(&dy), &mut dx);
            lora::expand(&mut dx, &g, contiguous(&a), rank);
            cpu_tensor(dx, x_shape)
        });
        ([cpu_tensor(da, a_shape), cpu_tensor(lora::transposed(&db, [rank, d_out]), b_shape)], dx)
    }
}

impl LoraLinearOps for Flex {
    fn lora_linear(
        x: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        weight: Frozen,
        scaling: f32,
    ) -> FloatTensor<Self> {
        let [y, _] = Self::lora_forward(&x, [&a, &b], &weight, scaling, None);
        y
    }

    fn lora_linear_onto(
        residual: FloatTensor<Self>,
        x: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        weight: Frozen,
        scaling: f32,
    ) -> FloatTensor<Self> {
        let [y, _] = Self::lora_forward(&x, [&a, &b], &weight, scaling, Some(residual));
        y
    }
}

#[derive(Debug)]
struct Project;

#[derive(Debug)]
struct ProjectOnto;

/// The node of `x`, and the rest.
type Saved<B> = (NodeId, Branch<B>);

/// Registers the gradients of `x`, A and B.
fn go_back<B: LoraLinearKernel>(
    (x, branch): Saved<B>,
    [to_x, to_a, to_b]: [Option<NodeId>; 3],
    dy: FloatTensor<B>,
    grads: &mut Gradients,
    checkpointer: &mut Checkpointer,
) {
    let x = checkpointer.retrieve_node_output::<FloatTensor<B>>(x);
    let ([da, db], dx) = B::lora_backward(branch, x, dy, to_x.is_some());
    for (parent, gradient) in [(to_x, dx), (to_a, Some(da)), (to_b, Some(db))] {
        if let (Some(parent), Some(gradient)) = (parent, gradient) {
            grads.register::<B>(parent, gradient);
        }
    }
}

impl<B: LoraLinearKernel> Backward<B, 3> for Project {
    type State = Saved<B>;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let parents = ops.parents.map(|parent| parent.map(|parent| parent.id));
        go_back(ops.state, parents, dy, grads, checkpointer);
    }
}

impl<B: LoraLinearKernel> Backward<B, 4> for ProjectOnto {
    type State = Saved<B>;

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let [to_residual, to_x, to_a, to_b] = ops.parents.map(|parent| parent.map(|parent| parent.id));
        go_back(ops.state, [to_x, to_a, to_b], dy.clone(), grads, checkpointer);
        if let Some(parent) = to_residual {
            grads.register::<B>(parent, dy);
        }
    }
}

impl<B: LoraLinearKernel + LoraLinearOps, C: CheckpointStrategy> LoraLinearOps for Autodiff<B, C> {
    fn lora_linear(
        x: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        weight: Frozen,
        scaling: f32,
    ) -> FloatTensor<Self> {
        let input = x.clone();
        let ((x, x_node), (a, a_node), (b, b_node)) = (x.into_parts(), a.into_parts(), b.into_parts());
        let [y, thin] = B::lora_forward(&x, [&a, &b], &weight, scaling, None);
        match Backward::<B, 3>::prepare::<C>(Project, [x_node, a_node, b_node]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let x = prep.checkpoint(&input);
                prep.finish((x, Branch { a, b, thin, weight, scaling }), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn lora_linear_onto(
        residual: FloatTensor<Self>,
        x: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        weight: Frozen,
        scaling: f32,
    ) -> FloatTensor<Self> {
        let input = x.clone();
        let ((x, x_node), (a, a_node), (b, b_node)) = (x.into_parts(), a.into_parts(), b.into_parts());
        let (residual, residual_node) = residual.into_parts();
        let [y, thin] = B::lora_forward(&x, [&a, &b], &weight, scaling, Some(residual));
        let nodes = [residual_node, x_node, a_node, b_node];
        match Backward::<B, 4>::prepare::<C>(ProjectOnto, nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let x = prep.checkpoint(&input);
                prep.finish((x, Branch { a, b, thin, weight, scaling }), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}
