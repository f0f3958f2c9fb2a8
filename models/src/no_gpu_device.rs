//! Stands in for the GPU in builds without one.

use std::sync::Arc;

use burn::tensor::Device;

use crate::compute_error::ComputeError;
use crate::device::{Fault, GpuWork};

/// A device that cannot exist.
#[derive(Debug)]
pub(crate) enum Gpu {}

/// # Errors
/// Always [`ComputeError::NoGpu`].
pub(crate) fn open() -> Result<Arc<Gpu>, ComputeError> {
    Err(ComputeError::NoGpu { reason: "this build has no GPU support (cargo feature `gpu`)".to_owned() })
}

impl Gpu {
    pub(crate) fn burn(&self) -> &Device {
        match *self {}
    }

    pub(crate) fn name(&self) -> &str {
        match *self {}
    }

    pub(crate) fn max_buffer_bytes(&self) -> u64 {
        match *self {}
    }

    pub(crate) fn fault(&self) -> Option<&Fault> {
        match *self {}
    }

    pub(crate) fn count_read(&self) {
        match *self {}
    }

    pub(crate) fn observed<R>(&self, _: impl FnOnce() -> R) -> (R, GpuWork) {
        match *self {}
    }

    pub(crate) fn submitted(&self) -> u64 {
        match *self {}
    }

    pub(crate) fn settle(&self) {
        match *self {}
    }

    pub(crate) fn limit_memory(&self, _: u64) {
        match *self {}
    }

    pub(crate) fn give_up(&self, _: Fault) {
        match *self {}
    }
}
