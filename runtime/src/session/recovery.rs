//! From one device to another: asked for, or because one failed. What was learned lives on the host and stays as it is.

use std::sync::Arc;

use mynah_models::{ComputeDevice, ComputeError, Model};

use super::Session;
use super::error::SessionError;
use crate::device::{self, DeviceChoice};
use crate::generate::GenerateError;
use crate::learn::LearnError;

/// How many lost GPUs a session replaces before it stays on the CPU.
const REPLACED_GPUS: u32 = 3;

impl Session {
    /// Computes on another device from the next call on. A run that is in hand goes on there; the conversation is read anew.
    ///
    /// A GPU that is not there means the CPU and a [`Session::notice`].
    ///
    /// # Errors
    /// [`SessionError::Load`] if the model cannot be put together there; the device stays what it was.
    pub fn set_device(&mut self, choice: DeviceChoice) -> Result<(), SessionError> {
        let opened = device::open(choice, self.model.device().precision());
        self.compute_on(&opened.device)?;
        self.notice = opened.notice;
        Ok(())
    }

    /// Does `work`. If a GPU fails at it, does it again from the start: on a new GPU where the old one was lost, on the CPU
    /// where it was not, or was lost too often.
    pub(super) fn repeated_elsewhere<R>(
        &mut self,
        mut work: impl FnMut(&mut Self) -> Result<R, SessionError>,
    ) -> Result<R, SessionError> {
        loop {
            match work(self) {
                Err(error) if self.model.device().is_gpu() && device_failure(&error).is_some() => {
                    self.replace_device(&error)?;
                }
                result => return result,
            }
        }
    }

    /// Leaves the GPU that failed with `error`.
    pub(super) fn replace_device(&mut self, error: &SessionError) -> Result<(), SessionError> {
        let is_lost = matches!(device_failure(error), Some(ComputeError::DeviceLost { .. }));
        let fresh = match is_lost && self.gpus_lost < REPLACED_GPUS {
            true => ComputeDevice::gpu().ok(),
            false => None,
        };
        self.gpus_lost += u32::from(is_lost);
        let precision = self.model.device().precision();
        let device = fresh.unwrap_or_else(ComputeDevice::cpu).with_precision(precision);
        let place = if device.is_gpu() { "it was opened anew" } else { "going on on the CPU" };
        let notice = format!("{error}; {place}");
        log::warn!("{notice}");
        self.compute_on(&device)?;
        self.notice = Some(notice);
        Ok(())
    }

    fn compute_on(&mut self, device: &ComputeDevice) -> Result<(), SessionError> {
        let gguf = self.model.gguf();
        let model = self.threads.run(|| Model::load(gguf, device))?;
        self.model = Arc::new(model);
        self.serving = None;
        Ok(())
    }
}

/// What the device did, if it was that which failed.
pub(super) fn device_failure(error: &SessionError) -> Option<&ComputeError> {
    let compute = match error {
        SessionError::Learn(LearnError::Compute(error))
        | SessionError::Generate(GenerateError::Compute(error))
        | SessionError::Compute(error) => error,
        _ => return None,
    };
    compute.is_device_failure().then_some(compute)
}
