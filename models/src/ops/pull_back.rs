//! The way into a graph from a gradient that is known already: a scalar whose gradient with respect to `y` is a given `dy`.
//!
//! A pass that is differentiated piece by piece ends each piece with it. `sum(y · dy)` would do the same with four more passes
//! over the values.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::{Device as BackendDevice, FloatTensor};
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{FloatDType, Shape, Tensor};

use crate::nn::constant;

/// A scalar to go backwards from: the gradient of `y` is then `dy`. Its value means nothing.
///
/// # Shapes
/// `y` and `dy` alike; result `[1, 1]`.
pub(crate) fn pull_back(y: Tensor<2>, dy: Tensor<2>) -> Tensor<2> {
    assert_eq!(y.dims(), dy.dims(), "values and their gradient");
    let dy = constant(dy);
    Tensor::from_dispatch(<Dispatch as PullBackOps>::pull_back(y.into_dispatch(), dy.into_dispatch()))
}

/// The scalar of [`pull_back()`].
#[backend_extension(Flex, Cube: cfg(feature = "gpu"), Autodiff)]
pub(crate) trait PullBackOps: Backend {
    /// A scalar `[1, 1]` whose gradient with respect to `y` is `dy`.
    fn pull_back(y: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl PullBackOps for Flex {
    fn pull_back(y: FloatTensor<Self>, _: FloatTensor<Self>) -> FloatTensor<Self> {
        scalar::<Self>(&y)
    }
}

/// Zero, where `like` is.
pub(crate) fn scalar<B: Backend>(like: &FloatTensor<B>) -> FloatTensor<B> {
    let device: BackendDevice<B> = like.device();
    B::float_zeros(Shape::new([1, 1]), &device, FloatDType::F32)
}

#[derive(Debug)]
struct Seed;

impl<B: Backend> Backward<B, 1> for Seed {
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [parent] = ops.parents;
        if let Some(parent) = parent {
            grads.register::<B>(parent.id, ops.state);
        }
    }
}

impl<B: PullBackOps, C: CheckpointStrategy> PullBackOps for Autodiff<B, C> {
    fn pull_back(y: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self> {
        let ((y, node), (dy, _constant)) = (y.into_parts(), dy.into_parts());
        let scalar = B::pull_back(y, dy.clone());
        match Backward::<B, 1>::prepare::<C>(Seed, [node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(dy, scalar),
            OpsKind::UnTracked(prep) => prep.finish(scalar),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};

    use super::pull_back;
    use crate::nn::tracked;

    #[test]
    fn the_gradient_handed_in_comes_out_times_the_slope() {
        let device = Device::flex();
        let x = tracked(Tensor::<2>::from_floats([[1.0, 2.0], [3.0, 4.0]], &device));
        let y = x.clone() * x.clone();
        let dy = Tensor::<2>::from_floats([[0.5, -1.0], [0.0, 2.0]], &device);
        let gradients = pull_back(y, dy).backward();
        let dx: Vec<f32> = x.grad(&gradients).expect("x is a leaf").into_data().try_to_vec().expect("f32 values");
        assert_eq!(dx, [1.0, -4.0, 0.0, 16.0]);
    }
}
