//! A quantized model file becomes logits.
//!
//! ```text
//! model file ─ weights ─► config ─► packed matrices (quant) ─► forward ─► logits
//! ```

pub mod adapter;
mod batch;
mod compute_error;
pub mod config;
mod device;
mod device_adapter;
pub mod error;
mod families;
#[cfg(feature = "gpu")]
mod gpu_device;
#[cfg(not(feature = "gpu"))]
#[path = "no_gpu_device.rs"]
mod gpu_device;
mod kernels;
mod load;
mod model;
mod nn;
mod ops;
pub mod projection;
pub mod quant;
pub mod weights;

pub use batch::TokenBatch;
pub use compute_error::ComputeError;
pub use device::ComputeDevice;
pub use device_adapter::DeviceAdapter;
pub use model::Model;
pub use nn::{KvCache, Stop};
pub use projection::Projection;
