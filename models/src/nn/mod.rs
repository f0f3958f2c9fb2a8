//! The layers of decoder models, one a file: config, forward, tests.
//!
//! Quantization and LoRA live in [`linear`] only. Layers work on `[tokens, features]` matrices, the rows of a batch one after
//! another, and take what changes between passes (positions, adapter, cache) from the [`Pass`].

mod attention;
mod decoder;
mod decoder_layer;
mod kv_cache;
mod linear;
mod mlp;
mod pass;
mod rms_norm;
mod tracked;

pub(crate) use attention::{Attention, AttentionShape};
pub(crate) use decoder::Decoder;
pub(crate) use decoder_layer::DecoderLayer;
pub use kv_cache::KvCache;
pub(crate) use linear::Linear;
pub(crate) use mlp::Mlp;
pub(crate) use pass::Pass;
pub use pass::Stop;
#[cfg(feature = "gpu")]
pub(crate) use pass::launches_have_ended;
pub(crate) use rms_norm::RmsNorm;
pub(crate) use tracked::{constant, tracked};
