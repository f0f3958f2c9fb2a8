//! Loops over packed weights, one folder for each kind of processor. They know bytes and numbers, no tensor type and no model.

pub(crate) mod cpu;
#[cfg(feature = "gpu")]
pub(crate) mod gpu;
