//! What can be wrong with an adapter or its files.

use std::io;

use safetensors::SafeTensorError;
use thiserror::Error;

/// An adapter could not be made, read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// A setting out of range.
    #[error("{name} is {found}, expected {expected}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        found: String,
        /// What is accepted.
        expected: &'static str,
    },
    /// Two adapters that do not fit each other.
    #[error("adapters differ: one has {expected}, the other {found}")]
    Layout {
        /// The first pair that differs, in this adapter.
        expected: String,
        /// The pair at its place in the other.
        found: String,
    },
    /// Stored values that are not those of the layout.
    #[error("an adapter of {expected} values, but {found} were given")]
    ValueCount {
        /// Values of the layout.
        expected: usize,
        /// Values given.
        found: usize,
    },
    /// The operating system refused.
    #[error("{file}: {source}")]
    Io {
        /// The file.
        file: String,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// A folder, a pipe or a device where a file should be.
    #[error("{file}: not a regular file")]
    NotARegularFile {
        /// The file.
        file: String,
    },
    /// The file is longer than any adapter of this model could be.
    #[error("{file}: {len_bytes} bytes, the limit is {limit_bytes}")]
    TooLarge {
        /// The file.
        file: String,
        /// Its length, or that of its header.
        len_bytes: u64,
        /// The largest length accepted.
        limit_bytes: u64,
    },
    /// `adapter_config.json` is not the JSON that PEFT writes.
    #[error("{file}: {source}")]
    Json {
        /// The file.
        file: String,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// `adapter_model.safetensors` is not a safetensors file.
    #[error("{file}: {source}")]
    Safetensors {
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: SafeTensorError,
    },
    /// The adapter uses a feature of PEFT that would change the result and is not computed here.
    #[error("{file}: `{feature}` is {found}, which is not supported")]
    Unsupported {
        /// The file.
        file: String,
        /// The setting in `adapter_config.json`.
        feature: String,
        /// Its value.
        found: String,
    },
    /// The adapter lacks a tensor that the model needs.
    #[error("{file}: tensor `{name}` is missing")]
    MissingTensor {
        /// The file.
        file: String,
        /// The tensor.
        name: String,
    },
    /// The adapter has a tensor that the model has no place for.
    #[error("{file}: tensor `{name}` has no place in this model")]
    UnexpectedTensor {
        /// The file.
        file: String,
        /// The tensor.
        name: String,
    },
    /// A tensor has another shape than the model needs.
    #[error("{file}: tensor `{name}`: expected shape {expected:?}, file has {found:?}")]
    Shape {
        /// The file.
        file: String,
        /// The tensor.
        name: String,
        /// What the model needs.
        expected: Vec<usize>,
        /// What the file has.
        found: Vec<usize>,
    },
    /// A tensor is not F32, F16 or BF16.
    #[error("{file}: tensor `{name}` is {found}, expected F32, F16 or BF16")]
    TensorType {
        /// The file.
        file: String,
        /// The tensor.
        name: String,
        /// The type in the file.
        found: String,
    },
    /// A value is infinite or not a number.
    #[error("{file}: tensor `{name}` has a value that is not finite")]
    NotFinite {
        /// The file.
        file: String,
        /// The tensor.
        name: String,
    },
    /// The adapter was trained on another base model.
    #[error("{file}: trained on the model with SHA-256 {found}, this model has {expected}")]
    Base {
        /// The file that says so.
        file: String,
        /// Digest of the model at hand, in hex.
        expected: String,
        /// Digest stored with the adapter.
        found: String,
    },
}
