//! What burn lacks: operations over weights that are no tensors, differentiable, on every device.
//!
//! One operation a file, always in the same order: the public function on [`burn::Tensor`], the backend extension that burn
//! dispatches on, the CPU implementation, the rule for the gradient. The implementations for GPUs live in
//! `kernels/gpu/`. Each operation has a scalar reference that it is tested against.

pub(crate) mod attention;
mod device_copy;
pub(crate) mod embedding;
mod frozen;
pub(crate) mod head_loss;
pub(crate) mod lora_linear;
pub(crate) mod packed_linear;
pub(crate) mod pull_back;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod swiglu;

pub use attention::{Geometry, attention};
pub(crate) use embedding::embedding;
pub use frozen::Frozen;
pub use head_loss::token_nll;
pub use lora_linear::{LoraBranch, lora_linear};
pub use packed_linear::packed_linear;
pub(crate) use pull_back::pull_back;
pub use rms_norm::{NormWeight, rms_norm};
pub use rope::{RopeAngles, rope};
pub use swiglu::swiglu;

use burn::backend::Flex;
use burn::backend::tensor::FloatTensor;
use burn_flex::FlexTensor;

/// A CPU tensor whose values lie row-major from the start, and its two sizes.
///
/// # Panics
/// If the tensor has other than two dimensions: a mistake of ours.
fn cpu_matrix(tensor: &FloatTensor<Flex>) -> (FlexTensor, [usize; 2]) {
    let tensor = tensor.to_contiguous();
    let shape = tensor.layout().shape().dims::<2>();
    (tensor, shape)
}

/// The values of a tensor that [`cpu_matrix`] made contiguous.
fn contiguous(tensor: &FlexTensor) -> &[f32] {
    let layout = tensor.layout();
    &tensor.storage::<f32>()[layout.start_offset()..][..layout.num_elements()]
}
