//! Root-mean-square normalization of each row: `y = x · r · weight`, with `r = 1 / sqrt(mean(x²) + epsilon)`.
//!
//! ```text
//! dx = r · (g − x · r² · mean(g · x))        g = dy · weight
//! ```

use std::marker::PhantomData;
use std::sync::Arc;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::retro_forward::RetroForward;
use burn::backend::autodiff::checkpoint::state::BackwardStates;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;

use super::device_copy::DeviceCopy;
use super::{contiguous, cpu_matrix};
use crate::kernels::cpu::{buffer::Buffer, rms_norm as kernel};

/// The frozen weight of a norm and what is added to the mean square; cloning copies a pointer.
#[derive(Clone, Debug)]
pub struct NormWeight(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    weight: Vec<f32>,
    epsilon: f32,
    on_device: DeviceCopy,
}

impl NormWeight {
    /// `weight` has one value per feature.
    pub fn new(weight: Vec<f32>, epsilon: f32) -> Self {
        Self(Arc::new(Inner { weight, epsilon, on_device: DeviceCopy::default() }))
    }

    /// One value per feature.
    pub fn weight(&self) -> &[f32] {
        &self.0.weight
    }

    /// Added to the mean square.
    pub fn epsilon(&self) -> f32 {
        self.0.epsilon
    }

    /// The copy that `upload` made at the first call.
    #[cfg_attr(not(feature = "gpu"), expect(dead_code))]
    pub(crate) fn on_device<T: Send + Sync + 'static>(&self, upload: impl FnOnce(&[f32]) -> T) -> &T {
        self.0.on_device.get(|| upload(&self.0.weight))
    }
}

/// Normalizes each row.
///
/// # Shapes
/// `x` and the result `[rows, features]`, as many features as the weight has values.
pub fn rms_norm(x: Tensor<2>, weight: &NormWeight) -> Tensor<2> {
    let [_, features] = x.dims();
    assert_eq!(features, weight.weight().len(), "features of a row and values of the weight");
    Tensor::from_dispatch(<Dispatch as RmsNormOps>::rms_norm(x.into_dispatch(), weight.clone()))
}

/// What a device must compute for [`RmsNormOps`].
pub(crate) trait RmsNormKernel: Backend {
    /// d loss / d x.
    fn rms_norm_backward(x: FloatTensor<Self>, dy: FloatTensor<Self>, weight: &NormWeight) -> FloatTensor<Self>;
}

/// Normalization with a frozen weight.
#[backend_extension(Flex, Cube: cfg(feature = "gpu"), Autodiff)]
pub(crate) trait RmsNormOps: Backend {
    /// `x / sqrt(mean(x²) + epsilon) · weight`, row by row.
    fn rms_norm(x: FloatTensor<Self>, weight: NormWeight) -> FloatTensor<Self>;
}

impl RmsNormOps for Flex {
    fn rms_norm(x: FloatTensor<Self>, weight: NormWeight) -> FloatTensor<Self> {
        let (x, shape) = cpu_matrix(&x);
        let mut y = Buffer::new(shape[0] * shape[1]);
        kernel::forward(contiguous(&x), weight.weight(), weight.epsilon(), &mut y);
        y.into_tensor(shape)
    }
}

impl RmsNormKernel for Flex {
    fn rms_norm_backward(x: FloatTensor<Self>, dy: FloatTensor<Self>, weight: &NormWeight) -> FloatTensor<Self> {
        let ((x, shape), (dy, _)) = (cpu_matrix(&x), cpu_matrix(&dy));
        let mut dx = Buffer::new(shape[0] * shape[1]);
        kernel::backward(contiguous(&x), contiguous(&dy), weight.weight(), weight.epsilon(), &mut dx);
        dx.into_tensor(shape)
    }
}

#[derive(Debug)]
struct Normalize;

/// The normalized rows once more, where they were not kept.
#[derive(Debug)]
struct Again<B> {
    x: NodeId,
    weight: NormWeight,
    backend: PhantomData<B>,
}

impl<B: RmsNormOps> RetroForward for Again<B> {
    fn forward(&self, states: &mut BackwardStates, out: NodeId) {
        let x = states.get_state::<FloatTensor<B>>(&self.x);
        states.save(out, B::rms_norm(x, self.weight.clone()));
    }
}

impl<B: RmsNormKernel> Backward<B, 1> for Normalize {
    type State = (NodeId, NormWeight);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let (x, weight) = ops.state;
        let x = checkpointer.retrieve_node_output::<FloatTensor<B>>(x);
        unary::<B, _>(ops.parents, ops.node, grads, |dy| B::rms_norm_backward(x, dy, &weight));
    }
}

impl<B: RmsNormKernel + RmsNormOps, C: CheckpointStrategy> RmsNormOps for Autodiff<B, C> {
    fn rms_norm(x: FloatTensor<Self>, weight: NormWeight) -> FloatTensor<Self> {
        let input = x.clone();
        let (x, node) = x.into_parts();
        let again = Again::<B> { x: node.id(), weight: weight.clone(), backend: PhantomData };
        let y = B::rms_norm(x, weight.clone());
        let prep = Backward::<B, 1>::prepare::<C>(Normalize, [node]);
        match prep.memory_bound().retro_forward(again).parents([&input]).stateful() {
            OpsKind::Tracked(mut prep) => {
                let x = prep.checkpoint(&input);
                prep.finish((x, weight), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}
