//! Opens the GPU through wgpu, again after it was lost, and paces the work that it is given.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use burn::tensor::Device;
use burn::tensor::wgpu::{WgpuSetup, wgpu};
use cubecl::client::Client;
use cubecl::future::block_on;
use cubecl_runtime::logging::{LaunchObservation, LaunchObserver};
use cubecl_runtime::memory_management::MemoryScope;

use crate::compute_error::ComputeError;
use crate::device::{Fault, GpuWork};
use crate::gpu_pace::Pace;

/// A wgpu device that burn computes on. All models of a process share one, until it is lost.
#[derive(Debug)]
pub(crate) struct Gpu {
    burn: Device,
    name: String,
    setup: WgpuSetup,
    /// Why nothing computes on it again.
    fault: Arc<OnceLock<Fault>>,
    memory: Arc<Memory>,
    pace: Pace,
    reads: AtomicU64,
}

/// What tensors may take, and what was asked for.
#[derive(Debug)]
struct Memory {
    limit_bytes: AtomicU64,
    /// Bytes of the newest tensor.
    newest_bytes: AtomicU64,
}

/// Counts the launches of the process.
#[derive(Debug, Default)]
struct Launches(AtomicU64);

impl LaunchObserver for Launches {
    fn launched(&self, _: &'static str) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The instance stays: Vulkan's loader is not safe to be shut down and started from several threads. The device is the one
/// that is in use.
#[derive(Debug, Default)]
struct Opened {
    instance: Option<wgpu::Instance>,
    gpu: Option<Arc<Gpu>>,
}

static OPENED: Mutex<Opened> = Mutex::new(Opened { instance: None, gpu: None });

/// The GPU that wgpu prefers; another one than before if that was lost.
///
/// # Errors
/// [`ComputeError::NoGpu`] if there is no adapter or its driver refuses.
pub(crate) fn open() -> Result<Arc<Gpu>, ComputeError> {
    let mut opened = opened();
    if let Some(gpu) = opened.gpu.as_ref().filter(|gpu| gpu.fault().is_none()) {
        return Ok(Arc::clone(gpu));
    }
    opened.open(None)
}

/// A GPU with these limits, without half precision and subgroups, in the place of the one that is in use.
///
/// # Errors
/// As [`open`].
pub(crate) fn open_within(limits: wgpu::Limits) -> Result<Arc<Gpu>, ComputeError> {
    opened().open(Some(limits))
}

impl Opened {
    fn open(&mut self, limits: Option<wgpu::Limits>) -> Result<Arc<Gpu>, ComputeError> {
        let instance = self.instance.get_or_insert_with(instance).clone();
        let gpu = Arc::new(Gpu::request(instance, limits)?);
        self.gpu = Some(Arc::clone(&gpu));
        Ok(gpu)
    }
}

/// The GPU that is in use, if there is one.
pub(crate) fn current() -> Option<Arc<Gpu>> {
    opened().gpu.clone()
}

fn opened() -> MutexGuard<'static, Opened> {
    OPENED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// OpenGL would be tried too otherwise, which few drivers run compute kernels on without faults.
const API: wgpu::Backend = if cfg!(target_vendor = "apple") { wgpu::Backend::Metal } else { wgpu::Backend::Vulkan };

fn instance() -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: API.into(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    })
}

impl Gpu {
    /// With all that the adapter offers where `limits` are not given.
    fn request(instance: wgpu::Instance, limits: Option<wgpu::Limits>) -> Result<Self, ComputeError> {
        let refused = |reason: String| ComputeError::NoGpu { reason };
        let preferred = wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..wgpu::RequestAdapterOptions::default()
        };
        let adapter = block_on(instance.request_adapter(&preferred)).map_err(|error| refused(error.to_string()))?;
        // What burn's kernels look for is what the adapter has, so the device gets it: all but what is experimental, and but
        // memory that the host maps, which wgpu advises against.
        let mut left_out = wgpu::Features::MAPPABLE_PRIMARY_BUFFERS | wgpu::Features::all_experimental_mask();
        if limits.is_some() {
            left_out |= wgpu::Features::SHADER_F16 | wgpu::Features::SUBGROUP | wgpu::Features::SUBGROUP_BARRIER;
        }
        let descriptor = wgpu::DeviceDescriptor {
            required_features: adapter.features().difference(left_out),
            required_limits: limits.unwrap_or_else(|| adapter.limits()),
            // burn allocates in large blocks itself.
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..wgpu::DeviceDescriptor::default()
        };
        let (device, queue) =
            block_on(adapter.request_device(&descriptor)).map_err(|error| refused(error.to_string()))?;
        let info = adapter.get_info();
        let setup = WgpuSetup { instance, adapter, device, queue, backend: API };
        let burn = Device::wgpu_options().setup(setup.clone()).init().map_err(|error| refused(error.to_string()))?;
        let fault = Arc::new(OnceLock::new());
        let memory = Arc::new(Memory { limit_bytes: AtomicU64::new(u64::MAX), newest_bytes: AtomicU64::new(0) });
        let (of_driver, asked) = (Arc::clone(&fault), Arc::clone(&memory));
        // In the place of burn's, which ends the process for what a device reports between its loss and the notice of it.
        setup.device.on_uncaptured_error(Arc::new(move |error| {
            log::error!("the GPU reports: {error}");
            let _ = of_driver.set(match error {
                wgpu::Error::OutOfMemory { .. } => Fault::OutOfMemory(asked.newest_bytes.load(Ordering::Relaxed)),
                error => Fault::Lost(error.to_string()),
            });
        }));
        let name = format!("GPU {} ({:?})", info.name, info.backend);
        let pace = Pace::new(setup.device.clone(), setup.queue.clone());
        Ok(Self { burn, name, setup, fault, memory, pace, reads: AtomicU64::new(0) })
    }

    /// burn's handle.
    pub(crate) fn burn(&self) -> &Device {
        &self.burn
    }

    /// The GPU and its interface in words.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// wgpu's handles, the very ones that burn uses.
    pub(crate) fn setup(&self) -> &WgpuSetup {
        &self.setup
    }

    /// Most bytes that a kernel can bind as one buffer.
    pub(crate) fn max_buffer_bytes(&self) -> u64 {
        let limits = self.setup.device.limits();
        limits.max_storage_buffer_binding_size.min(limits.max_buffer_size)
    }

    /// Why nothing is computed here any more, if so.
    pub(crate) fn fault(&self) -> Option<&Fault> {
        self.fault.get()
    }

    /// Lets tensors take so many bytes.
    pub(crate) fn limit_memory(&self, bytes: u64) {
        self.memory.limit_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Notes that a tensor is about to be made. One that has no room is a fault.
    pub(crate) fn before_tensor(&self, client: &Client, bytes: u64) {
        self.memory.newest_bytes.store(bytes, Ordering::Relaxed);
        let limit = self.memory.limit_bytes.load(Ordering::Relaxed);
        // What is in use is known on the device's own thread only: it is asked where it matters.
        if limit < u64::MAX && client.memory_report(MemoryScope::Device).usage().bytes_in_use + bytes > limit {
            self.give_up(Fault::OutOfMemory(bytes));
        }
    }

    /// Waits until nothing is under way; a loss is told no later than then.
    pub(crate) fn settle(&self) {
        if let Err(error) = self.setup.device.poll(wgpu::PollType::wait_indefinitely()) {
            log::debug!("waiting for the GPU: {error}");
        }
    }

    /// Notes that nothing computes here any more: the next [`open`] asks for another device.
    pub(crate) fn give_up(&self, fault: Fault) {
        // The first one stays.
        let _ = self.fault.set(fault);
    }

    /// Counts that results were read, once for all that were waited for together.
    pub(crate) fn count_read(&self) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.pace.all_done();
    }

    /// Does `work`, and counts what it asks for.
    pub(crate) fn observed<R>(&self, work: impl FnOnce() -> R) -> (R, GpuWork) {
        self.pace.take_times();
        let reads_before = self.reads.load(Ordering::Relaxed);
        let launches = Arc::new(Launches::default());
        let observation = LaunchObservation::new(Arc::clone(&launches) as Arc<dyn LaunchObserver>);
        let result = work();
        drop(observation);
        let reads = self.reads.load(Ordering::Relaxed) - reads_before;
        let launches = launches.0.load(Ordering::Relaxed);
        (result, GpuWork { launches, reads, submissions: self.pace.take_times() })
    }

    /// Submissions so far.
    pub(crate) fn submitted(&self) -> u64 {
        self.pace.submitted()
    }

    /// Cuts the work into submissions.
    pub(crate) fn pace(&self) -> &Pace {
        &self.pace
    }
}
