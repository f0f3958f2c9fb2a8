//! Stands in for the GPU in builds without one.

use burn::tensor::Device;

use crate::compute_error::ComputeError;

/// # Errors
/// Always [`ComputeError::NoGpu`].
pub(crate) fn open() -> Result<(Device, String), ComputeError> {
    Err(ComputeError::NoGpu { reason: "this build has no GPU support (cargo feature `gpu`)".to_owned() })
}
