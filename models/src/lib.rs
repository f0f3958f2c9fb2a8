//! A quantized model file becomes logits.
//!
//! ```text
//! model file ─ weights ─► config ─► packed matrices (quant) ─► forward ─► logits
//! ```

pub mod adapter;
pub mod config;
pub mod error;
pub mod projection;
pub mod quant;
pub mod tokenizer;
pub mod weights;

pub use projection::Projection;
