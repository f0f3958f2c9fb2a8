//! What can go wrong while computing with a model that was loaded.

use thiserror::Error;

/// A pass over a model did not give a result. The model itself stays usable unless the device was lost.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ComputeError {
    /// The caller asked for the end.
    #[error("cancelled")]
    Cancelled,
    /// A token id that the vocabulary does not have.
    #[error("token id {id} is outside the vocabulary of {vocab_size}")]
    TokenOutOfRange {
        /// The id.
        id: u32,
        /// Pieces in the vocabulary.
        vocab_size: usize,
    },
    /// More tokens than the context holds.
    #[error("{needed} tokens do not fit a context of {capacity}")]
    ContextFull {
        /// Tokens that there would be.
        needed: usize,
        /// Tokens that there may be.
        capacity: usize,
    },
    /// A batch without tokens, or whose parts have different lengths.
    #[error("a batch of {rows} rows and {cols} columns has {ids} token ids")]
    BatchShape {
        /// Rows declared.
        rows: usize,
        /// Columns declared.
        cols: usize,
        /// Ids given.
        ids: usize,
    },
    /// A hidden state that the model does not have.
    #[error("hidden state {depth} of a model with {layers} layers")]
    NoSuchLayer {
        /// The depth asked for; 0 is the embedding.
        depth: usize,
        /// Layers of the model.
        layers: usize,
    },
    /// An adapter for another model.
    #[error(
        "the adapter's {projection} of layer {layer} is [{found_out}, {found_in}], the model's [{expected_out}, {expected_in}]"
    )]
    AdapterShape {
        /// Decoder layer, from 0.
        layer: usize,
        /// Name of the projection.
        projection: &'static str,
        /// Outputs in the adapter.
        found_out: usize,
        /// Inputs in the adapter.
        found_in: usize,
        /// Outputs in the model.
        expected_out: usize,
        /// Inputs in the model.
        expected_in: usize,
    },
    /// A tensor that the device has no buffer for.
    #[error(
        "{what} of {rows} x {cols} values take {bytes} bytes, the {device} binds at most {limit} at once: \
         compute fewer tokens at a time, or on the CPU"
    )]
    TensorTooLarge {
        /// The device in words.
        device: String,
        /// What the tensor holds.
        what: &'static str,
        /// Its rows.
        rows: usize,
        /// Its columns.
        cols: usize,
        /// Bytes that it takes.
        bytes: u64,
        /// Bytes of the largest buffer.
        limit: u64,
    },
    /// The device is gone: reset by its driver, unplugged, or destroyed. Nothing computes on it again; the host's state is
    /// whole, and the work can be repeated on another device.
    #[error("the {device} was lost: {message}")]
    DeviceLost {
        /// The device in words.
        device: String,
        /// What its driver said.
        message: String,
    },
    /// The device's memory, or what it may use of that, is exhausted. Work on it since the last result is gone.
    #[error(
        "the {device} has no memory left for a tensor of {bytes} bytes: compute fewer tokens at a time, or on the CPU"
    )]
    OutOfMemory {
        /// The device in words.
        device: String,
        /// Bytes of the tensor that did not fit; of the newest one, where the driver said so later.
        bytes: u64,
    },
    /// The device failed: a fault in its driver. Work on it since the last result is gone.
    #[error("the {device} failed: {message}")]
    Device {
        /// The device in words.
        device: String,
        /// What its driver said.
        message: String,
    },
    /// There is no GPU that this build can use.
    #[error("no usable GPU: {reason}")]
    NoGpu {
        /// Why not.
        reason: String,
    },
}

impl ComputeError {
    /// Whether the device failed, so that the same work can succeed on another.
    pub fn is_device_failure(&self) -> bool {
        matches!(self, Self::Device { .. } | Self::DeviceLost { .. } | Self::OutOfMemory { .. })
    }
}
