//! Where gradients are wanted.

use burn::tensor::{GradientCheckpointingStrategy, Tensor};

/// The same values with autodiff, as a constant of a graph of ours.
///
/// Operations that are cheap next to their results are computed again on the way back: normalizations and activations cost
/// nearly nothing beside the products around them, and are nearly half of what a layer would keep.
pub(crate) fn constant(x: Tensor<2>) -> Tensor<2> {
    x.autodiff().with_gradient_checkpointing_strategy(GradientCheckpointingStrategy::Balanced)
}

/// The same values as a leaf of a graph of ours: its gradient is wanted.
pub(crate) fn tracked(x: Tensor<2>) -> Tensor<2> {
    constant(x).require_grad()
}
