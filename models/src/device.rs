//! Where a model computes, chosen at run time.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use burn::backend::ExecutionError;
use burn::tensor::{Device, Tensor, TensorData, Transaction};

use crate::compute_error::ComputeError;
use crate::gpu_device::{self, Gpu};
use crate::kernels::cpu::{buffer, parallel::in_pool, tiled};
use crate::nn::Stop;
use crate::precision::Precision;

/// The CPU, or a GPU through wgpu. Cloning copies a handle.
#[derive(Clone)]
pub struct ComputeDevice {
    burn: Device,
    gpu: Option<Arc<Gpu>>,
    precision: Precision,
}

/// What a GPU was asked to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GpuWork {
    /// Kernels launched, burn's own included.
    pub launches: u64,
    /// Reads of results, of several tensors at once too: the host waits for each.
    pub reads: u64,
    /// How long each submission took, from its begin to the host's notice of its end. What a read hands over is not among them.
    pub submissions: Vec<Duration>,
}

/// Why a GPU computes nothing any more.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "gpu"), expect(dead_code))]
pub(crate) enum Fault {
    /// It is gone, or an error belongs to no operation, so that no result can be trusted.
    Lost(String),
    /// There was no room for a tensor of so many bytes.
    OutOfMemory(u64),
}

impl ComputeDevice {
    /// The CPU, on burn's `flex` backend and our kernels, computing exactly.
    pub fn cpu() -> Self {
        Self { burn: Device::flex(), gpu: None, precision: Precision::Exact }
    }

    /// The GPU that wgpu prefers. Every call gives the same one, until it is lost: then the next call opens another.
    ///
    /// # Errors
    /// [`ComputeError::NoGpu`] if there is none, or this build has no GPU support.
    pub fn gpu() -> Result<Self, ComputeError> {
        let gpu = gpu_device::open()?;
        Ok(Self { burn: gpu.burn().clone(), gpu: Some(gpu), precision: Precision::Exact })
    }

    /// A GPU as [`Self::gpu`] gives it, opened with these limits, without half precision and subgroups, as the smallest GPUs
    /// are. It takes the place of the one that was open.
    ///
    /// # Errors
    /// As [`Self::gpu`].
    #[cfg(feature = "gpu")]
    pub fn gpu_within(limits: burn::tensor::wgpu::wgpu::Limits) -> Result<Self, ComputeError> {
        let gpu = gpu_device::open_within(limits)?;
        Ok(Self { burn: gpu.burn().clone(), gpu: Some(gpu), precision: Precision::Exact })
    }

    /// Lets tensors on a GPU take so many bytes, weights included; what would take more ends with
    /// [`ComputeError::OutOfMemory`]. Without effect on the CPU.
    pub fn limit_memory(&self, bytes: u64) {
        if let Some(gpu) = &self.gpu {
            gpu.limit_memory(bytes);
        }
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
        self.precision == Precision::Fast && !self.is_gpu() && tiled::is_available()
    }

    /// Does `work` where its operations begin without delay: on the CPU, on one of the threads that they are shared among. On a
    /// GPU, nothing is launched any more once `stop` is set.
    ///
    /// # Errors
    /// Those of `work`; [`ComputeError::Cancelled`] if a launch was left out.
    pub(crate) fn run<R: Send>(
        &self,
        stop: &Stop,
        work: impl FnOnce() -> Result<R, ComputeError> + Send,
    ) -> Result<R, ComputeError> {
        if self.is_gpu() {
            return stop.over_launches(work);
        }
        let result = in_pool(work);
        buffer::trim();
        result
    }

    /// Whether this is a GPU.
    pub fn is_gpu(&self) -> bool {
        self.gpu.is_some()
    }

    /// The device in words.
    pub fn name(&self) -> &str {
        self.gpu.as_ref().map_or("CPU", |gpu| gpu.name())
    }

    /// burn's handle, for tensors without gradients.
    pub fn burn(&self) -> &Device {
        &self.burn
    }

    /// wgpu's handles of a GPU, for an app that draws on the same device. Who destroys them makes the device a lost one.
    #[cfg(feature = "gpu")]
    pub fn wgpu(&self) -> Option<&burn::tensor::wgpu::WgpuSetup> {
        self.gpu.as_ref().map(|gpu| gpu.setup())
    }

    /// Most bytes that one tensor may have; none where only memory sets a limit.
    pub fn max_tensor_bytes(&self) -> Option<u64> {
        self.gpu.as_ref().map(|gpu| gpu.max_buffer_bytes())
    }

    /// Refuses a tensor of `rows` × `cols` f32 that the device cannot bind: the driver would only say so when its values are
    /// read.
    ///
    /// # Errors
    /// [`ComputeError::TensorTooLarge`].
    pub(crate) fn check_tensor(&self, what: &'static str, rows: usize, cols: usize) -> Result<(), ComputeError> {
        let bytes = (rows as u64).saturating_mul(cols as u64).saturating_mul(size_of::<f32>() as u64);
        match self.max_tensor_bytes() {
            Some(limit) if bytes > limit => {
                Err(ComputeError::TensorTooLarge { device: self.name().to_owned(), what, rows, cols, bytes, limit })
            }
            _ => Ok(()),
        }
    }

    /// Does `work`, and counts what it asks of the GPU; nothing is counted on the CPU. Launches of the whole process count.
    pub fn observed<R>(&self, work: impl FnOnce() -> R) -> (R, Option<GpuWork>) {
        match &self.gpu {
            Some(gpu) => {
                let (result, observed) = gpu.observed(work);
                (result, Some(observed))
            }
            None => (work(), None),
        }
    }

    /// How often work was handed to a GPU so far; nothing on the CPU.
    pub fn submissions(&self) -> Option<u64> {
        self.gpu.as_ref().map(|gpu| gpu.submitted())
    }

    /// Waits for everything submitted, and reads a tensor of f32 in row-major order.
    ///
    /// # Errors
    /// [`ComputeError::DeviceLost`] if the device is gone, [`ComputeError::OutOfMemory`] if it had no room for a tensor,
    /// [`ComputeError::Device`] if an operation that this one depends on failed.
    pub fn read<const D: usize>(&self, tensor: Tensor<D>) -> Result<Vec<f32>, ComputeError> {
        let data = tensor.try_into_data();
        self.count_read();
        self.values(data.map_err(|error| self.failed(error.to_string()))?)
    }

    /// Reads several tensors as [`Self::read`] does one, and waits for the device once. They come in their order.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_all<const D: usize>(&self, tensors: Vec<Tensor<D>>) -> Result<Vec<Vec<f32>>, ComputeError> {
        if tensors.is_empty() {
            return Ok(Vec::new());
        }
        let all = tensors.into_iter().fold(Transaction::default(), Transaction::register);
        let data = all.try_execute();
        self.count_read();
        let data = data.map_err(|error| self.failed(error.to_string()))?;
        data.into_iter().map(|data| self.values(data)).collect()
    }

    fn count_read(&self) {
        if let Some(gpu) = &self.gpu {
            gpu.count_read();
        }
    }

    /// What was read from the device, if nothing went wrong there.
    fn values(&self, data: TensorData) -> Result<Vec<f32>, ComputeError> {
        // Storage is read as late as here.
        let values = data.try_into_vec().map_err(|error| self.failed(format!("{error:?}")))?;
        match self.gpu.as_ref().and_then(|gpu| gpu.fault()) {
            Some(fault) => Err(self.error_of(fault)),
            None => Ok(values),
        }
    }

    /// The error of a read that failed: whatever it says, a lost device is found by asking it.
    fn failed(&self, message: String) -> ComputeError {
        if let Some(gpu) = &self.gpu {
            gpu.settle();
        }
        if let (Err(ExecutionError::DevicePoisoned { reason }), Some(gpu)) = (self.burn.sync(), &self.gpu) {
            gpu.give_up(Fault::Lost(reason));
        }
        match self.gpu.as_ref().and_then(|gpu| gpu.fault()) {
            Some(fault) => self.error_of(fault),
            None => ComputeError::Device { device: self.name().to_owned(), message },
        }
    }

    fn error_of(&self, fault: &Fault) -> ComputeError {
        let device = self.name().to_owned();
        match fault {
            Fault::Lost(message) => ComputeError::DeviceLost { device, message: message.clone() },
            Fault::OutOfMemory(bytes) => ComputeError::OutOfMemory { device, bytes: *bytes },
        }
    }
}

impl fmt::Debug for ComputeDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ComputeDevice({})", self.name())
    }
}
