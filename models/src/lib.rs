//! A quantized model file becomes logits.
//!
//! ```text
//! model file ─ weights ─► config ─► packed matrices (quant) ─► forward ─► logits
//! ```

pub mod error;
pub mod quant;
pub mod weights;
