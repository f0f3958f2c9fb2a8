//! Where a model computes, chosen at run time.

use std::fmt;

use burn::tensor::{Device, Tensor};

use crate::compute_error::ComputeError;
use crate::kernels::cpu::tiled;
use crate::precision::Precision;

/// The CPU, or a GPU through wgpu. Cloning copies a handle.
#[derive(Clone)]
pub struct ComputeDevice {
    burn: Device,
    name: String,
    is_gpu: bool,
    precision: Precision,
}

impl ComputeDevice {
    /// The CPU, on burn's `flex` backend and our kernels, computing exactly.
    pub fn cpu() -> Self {
        Self { burn: Device::flex(), name: "CPU".to_owned(), is_gpu: false, precision: Precision::Exact }
    }

    /// The GPU that wgpu prefers.
    ///
    /// # Errors
    /// [`ComputeError::NoGpu`] if there is none, or this build has no GPU support.
    pub fn gpu() -> Result<Self, ComputeError> {
        let (burn, name) = crate::gpu_device::open()?;
        Ok(Self { burn, name, is_gpu: true, precision: Precision::Exact })
    }

    /// The same device, computing with another precision. A GPU's stays f32.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// How exactly models that are loaded for this device compute.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Whether models that are loaded for this device have their weights repacked.
    pub(crate) fn computes_with_tiles(&self) -> bool {
        self.precision == Precision::Fast && !self.is_gpu && tiled::is_available()
    }

    /// Whether this is a GPU.
    pub fn is_gpu(&self) -> bool {
        self.is_gpu
    }

    /// The device in words.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// burn's handle, for tensors without gradients.
    pub fn burn(&self) -> &Device {
        &self.burn
    }

    /// Waits for everything submitted, and reads a tensor of f32 in row-major order.
    ///
    /// # Errors
    /// [`ComputeError::Device`] if an operation that the tensor depends on failed.
    pub fn read<const D: usize>(&self, tensor: Tensor<D>) -> Result<Vec<f32>, ComputeError> {
        let failed = |message: String| ComputeError::Device { device: self.name.clone(), message };
        let data = tensor.try_into_data().map_err(|error| failed(error.to_string()))?;
        data.try_into_vec().map_err(|error| failed(format!("{error:?}")))
    }
}

impl fmt::Debug for ComputeDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ComputeDevice({})", self.name)
    }
}
