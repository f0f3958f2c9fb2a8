//! Chooses the device at run time: the CPU, or a GPU where there is one.

use mynah_models::{ComputeDevice, Precision};

/// Where a session is to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The CPU: the default, and what is reproducible byte for byte.
    #[default]
    Cpu,
    /// The GPU that wgpu prefers, or the CPU if there is none.
    Gpu,
}

/// A device, and what there is to say about how it was chosen.
#[derive(Debug, Clone)]
pub struct Opened {
    /// The device.
    pub device: ComputeDevice,
    /// One line, where the device is not the one that was asked for.
    pub notice: Option<String>,
}

/// Opens the device of `choice`. A missing GPU is no error: it means the CPU, a warning in the log and a notice.
pub fn open(choice: DeviceChoice, precision: Precision) -> Opened {
    let cpu = || ComputeDevice::cpu().with_precision(precision);
    match choice {
        DeviceChoice::Cpu => Opened { device: cpu(), notice: None },
        DeviceChoice::Gpu => match ComputeDevice::gpu() {
            Ok(device) => Opened { device: device.with_precision(precision), notice: None },
            Err(error) => {
                let notice = format!("{error}; computing on the CPU");
                log::warn!("{notice}");
                Opened { device: cpu(), notice: Some(notice) }
            }
        },
    }
}
