//! Tensors as kernels take them, and launches that are short enough.

use burn::backend::TensorMetadata;
use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;
use cubecl::prelude::BufferArg;

use crate::gpu_device;
use crate::gpu_pace::Kernel;
use crate::nn::launches_have_ended;

/// Names the backend once for the files beside this one.
pub(super) type Gpu = CubeBackend;

/// Workgroups of one launch that every GPU allows.
const MAX_CUBES: u32 = 65_535;

/// A new f32 tensor `[rows, cols]` on the device of `like`, its values not yet written.
pub(super) fn empty(like: &CubeTensor, rows: usize, cols: usize) -> CubeTensor {
    let (client, device) = (like.client.clone(), like.device.clone());
    let shape = Shape::new([rows, cols]);
    if let Some(gpu) = gpu_device::current() {
        gpu.before_tensor(&client, (size_of::<f32>() * rows * cols) as u64);
    }
    burn_cubecl::ops::numeric::empty_device_contiguous_dtype(client, device, shape, DType::F32)
}

/// The two sizes of a matrix, its values row-major from the start.
pub(super) fn contiguous(tensor: CubeTensor) -> (CubeTensor, [usize; 2]) {
    let tensor = burn_cubecl::kernel::into_contiguous(tensor);
    let shape = tensor.shape().dims::<2>();
    (tensor, shape)
}

/// A tensor that [`contiguous`] or [`empty`] gave.
pub(super) fn buffer(tensor: &CubeTensor) -> BufferArg {
    // SAFETY: the length is the tensor's own.
    unsafe { BufferArg::from_raw_parts(tensor.handle.clone(), tensor.shape().num_elements()) }
}

/// burn's tensor around a device's, for what is composed of burn's operations.
pub(super) fn tensor(primitive: CubeTensor) -> Tensor<2> {
    Tensor::from_primitive::<Gpu>(primitive)
}

/// The device's tensor inside burn's.
pub(super) fn primitive(tensor: Tensor<2>) -> CubeTensor {
    match tensor.try_into_primitive::<Gpu>() {
        Ok(primitive) => primitive,
        Err(error) => panic!("a GPU tensor left its backend: {error:?}"),
    }
}

/// Launches `cubes` workgroups of so many FLOP each, `launch(first, count)` at a time, so that no launch takes longer than a
/// submission may. Nothing is launched any more once the work in hand is to stop, or the device has a fault.
pub(super) fn in_launches(
    client: &Client,
    kernel: Kernel,
    cubes: u32,
    flop_per_cube: f64,
    mut launch: impl FnMut(u32, u32),
) {
    let at_once = (flop_per_launch(kernel) / flop_per_cube) as u32;
    let gpu = gpu_device::current();
    let has_fault = || gpu.as_ref().is_some_and(|gpu| gpu.fault().is_some());
    let mut first = 0;
    while first < cubes && !has_fault() && !launches_have_ended() {
        let count = at_once.clamp(1, MAX_CUBES.min(cubes - first));
        if let Some(gpu) = &gpu {
            gpu.pace().before_launch(client, kernel, flop_per_cube * f64::from(count));
        }
        launch(first, count);
        first += count;
    }
}

/// FLOP that one launch may have.
pub(super) fn flop_per_launch(kernel: Kernel) -> f64 {
    gpu_device::current().map_or(f64::INFINITY, |gpu| gpu.pace().flop_per_launch(kernel))
}
