//! Opens the GPU through wgpu.

use std::sync::OnceLock;

use burn::tensor::Device;
use burn::tensor::wgpu::WgpuBackend;

use crate::compute_error::ComputeError;

/// The GPU that wgpu prefers, and its name.
///
/// burn registers a device once per process and refuses a second registration, so all models of a process share it.
///
/// # Errors
/// [`ComputeError::NoGpu`] if there is no adapter or its driver refuses.
pub(crate) fn open() -> Result<(Device, String), ComputeError> {
    static OPENED: OnceLock<Result<(Device, String), String>> = OnceLock::new();
    let opened = OPENED.get_or_init(|| {
        // OpenGL would be tried too, which few drivers run compute kernels on without faults.
        let api = if cfg!(target_vendor = "apple") { WgpuBackend::Metal } else { WgpuBackend::Vulkan };
        let options = Device::wgpu_options().graphics_api(api);
        let (device, setup) = options.init_with_setup().map_err(|error| error.to_string())?;
        let info = setup.adapter.get_info();
        Ok((device, format!("GPU {} ({:?})", info.name, info.backend)))
    });
    opened.clone().map_err(|reason| ComputeError::NoGpu { reason })
}
