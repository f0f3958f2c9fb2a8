//! CPU kernels over weights that stay packed.
//!
//! A panel of weights is dequantized into a slab that fits the second-level cache, and one microkernel multiplies it, forward and
//! backward: in f32 from the model file's own blocks ([`packed_linear`]), or in bf16 from tiles ([`tiled`]), which also have a product in
//! integers for decoding. Sums are f32 in a fixed order, so the result does not depend on the number of threads.
//!
//! This folder holds `unsafe` for three reasons only: calling functions compiled for a processor feature that was detected
//! beforehand, letting threads write disjoint columns of one output, and lending memory to tensors.
#![allow(unsafe_code)]

pub(crate) mod attention;
pub(crate) mod buffer;
mod columns;
mod dequantize;
mod dot;
mod exp;
pub(crate) mod head_loss;
pub(crate) mod lora;
pub(crate) mod lora_linear;
mod microkernel;
mod packed_linear;
pub(crate) mod parallel;
pub(crate) mod rms_norm;
pub(crate) mod simd;
mod slab;
pub(crate) mod swiglu;
#[cfg(target_arch = "x86_64")]
pub(crate) mod tiled;
#[cfg(not(target_arch = "x86_64"))]
#[path = "no_tiles.rs"]
pub(crate) mod tiled;
mod weights;

pub(crate) use weights::Weights;
