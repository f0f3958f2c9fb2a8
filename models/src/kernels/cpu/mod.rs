//! CPU kernels over weights that stay packed as the model file holds them.
//!
//! A panel of weights is dequantized into a slab of f32 that fits the second-level cache, and one microkernel multiplies it,
//! forward and backward. All arithmetic is f32 with a fixed order of summation, so the result does not depend on the number
//! of threads.
//!
//! This folder holds `unsafe` for two reasons only: calling functions compiled for a processor feature that was detected
//! beforehand, and letting threads write disjoint columns of one output.
#![allow(unsafe_code)]

pub(crate) mod attention;
mod columns;
mod dequantize;
mod dot;
mod exp;
pub(crate) mod head_loss;
pub(crate) mod lora;
mod microkernel;
pub(crate) mod packed_linear;
pub(crate) mod rms_norm;
pub(crate) mod simd;
mod slab;
pub(crate) mod swiglu;

pub(crate) use dequantize::dequantize_row;
