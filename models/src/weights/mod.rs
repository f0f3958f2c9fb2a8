//! A model file becomes a checked plan: typed metadata, and tensors with name, shape, type and byte range.
//!
//! Nothing here knows what a tensor is for; that is [`crate::config`]. Every byte is hostile until it is in the plan.

mod gguf;
mod metadata;
mod mmap;

pub use gguf::{Gguf, TensorInfo};
pub use metadata::{Metadata, StrArray};

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
