//! The gated activation of the feed-forward layer: `y = silu(gate) · up`, with `silu(g) = g · σ(g)`.
//!
//! ```text
//! d gate = dy · up · σ · (1 + gate · (1 − σ))        d up = dy · gate · σ        σ = 1 / (1 + exp(−gate))
//! ```

use std::marker::PhantomData;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::retro_forward::RetroForward;
use burn::backend::autodiff::checkpoint::state::BackwardStates;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;

use super::{contiguous, cpu_matrix};
use crate::kernels::cpu::{buffer::Buffer, swiglu as kernel};

/// `silu(gate) · up`, element by element.
///
/// # Shapes
/// `gate`, `up` and the result `[tokens, intermediate_size]`.
pub fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    assert_eq!(gate.dims(), up.dims(), "gate and up");
    Tensor::from_dispatch(<Dispatch as SwigluOps>::swiglu(gate.into_dispatch(), up.into_dispatch()))
}

/// What a device must compute for [`SwigluOps`].
pub(crate) trait SwigluKernel: Backend {
    /// d loss / d gate and d loss / d up.
    fn swiglu_backward(gate: FloatTensor<Self>, up: FloatTensor<Self>, dy: FloatTensor<Self>)
    -> [FloatTensor<Self>; 2];
}

/// The gated activation.
#[backend_extension(Flex, Cube: cfg(feature = "gpu"), Autodiff)]
pub(crate) trait SwigluOps: Backend {
    /// `silu(gate) · up`.
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl SwigluOps for Flex {
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let ((gate, shape), (up, _)) = (cpu_matrix(&gate), cpu_matrix(&up));
        let mut y = Buffer::new(shape[0] * shape[1]);
        kernel::forward(contiguous(&gate), contiguous(&up), &mut y);
        y.into_tensor(shape)
    }
}

impl SwigluKernel for Flex {
    fn swiglu_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        dy: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2] {
        let ((gate, shape), (up, _), (dy, _)) = (cpu_matrix(&gate), cpu_matrix(&up), cpu_matrix(&dy));
        let (mut d_gate, mut d_up) = (Buffer::new(shape[0] * shape[1]), Buffer::new(shape[0] * shape[1]));
        kernel::backward(contiguous(&gate), contiguous(&up), contiguous(&dy), &mut d_gate, &mut d_up);
        [d_gate.into_tensor(shape), d_up.into_tensor(shape)]
    }
}

#[derive(Debug)]
struct Gate;

/// The activation once more, where it was not kept.
#[derive(Debug)]
struct Again<B> {
    inputs: [NodeId; 2],
    backend: PhantomData<B>,
}

impl<B: SwigluOps> RetroForward for Again<B> {
    fn forward(&self, states: &mut BackwardStates, out: NodeId) {
        let [gate, up] = self.inputs.map(|input| states.get_state::<FloatTensor<B>>(&input));
        states.save(out, B::swiglu(gate, up));
    }
}

impl<B: SwigluKernel> Backward<B, 2> for Gate {
    type State = [NodeId; 2];

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let [gate, up] = ops.state.map(|node| checkpointer.retrieve_node_output::<FloatTensor<B>>(node));
        let gradients = B::swiglu_backward(gate, up, dy);
        for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

impl<B: SwigluKernel + SwigluOps, C: CheckpointStrategy> SwigluOps for Autodiff<B, C> {
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let inputs = [gate.clone(), up.clone()];
        let ((gate, gate_node), (up, up_node)) = (gate.into_parts(), up.into_parts());
        let again = Again::<B> { inputs: [gate_node.id(), up_node.id()], backend: PhantomData };
        let y = B::swiglu(gate, up);
        let prep = Backward::<B, 2>::prepare::<C>(Gate, [gate_node, up_node]);
        match prep.memory_bound().retro_forward(again).parents(&inputs).stateful() {
            OpsKind::Tracked(mut prep) => {
                let nodes = inputs.each_ref().map(|input| prep.checkpoint(input));
                prep.finish(nodes, y)
            }
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}
