//! The operations on GPUs, in CubeCL, compiled to WGSL.
//!
//! Loops are rolled and sizes are run-time values, so that a kernel is compiled once per kind of weight and not once per
//! shape. No f16, no subgroups, no binding above [`device_matrix::MAX_BINDING_BYTES`].
#![allow(unsafe_code)]

mod attention;
mod device_matrix;
mod head_loss;
mod launch;
mod lora_linear;
mod packed_linear;
mod pull_back;
mod rms_norm;
mod rope;
mod swiglu;
#[cfg(test)]
mod tests;
