//! A packed weight matrix that training never changes, with room for a device's copy of it.

use std::fmt;
use std::sync::Arc;

use super::device_copy::DeviceCopy;
use crate::quant::PackedMatrix;

/// A packed matrix shared by the model, its operations and their gradients; cloning copies a pointer.
///
/// The host's bytes are the model file's own. A GPU gets its copy at first use, in the order that its kernels read.
#[derive(Clone)]
pub struct Frozen(Arc<Inner>);

struct Inner {
    matrix: PackedMatrix,
    on_device: DeviceCopy,
}

impl Frozen {
    /// Wraps a packed matrix.
    pub fn new(matrix: PackedMatrix) -> Self {
        Self(Arc::new(Inner { matrix, on_device: DeviceCopy::default() }))
    }

    /// The host's packed matrix, `[d_out, d_in]`.
    pub fn matrix(&self) -> &PackedMatrix {
        &self.0.matrix
    }

    /// The copy that `upload` made at the first call.
    #[cfg_attr(not(feature = "gpu"), expect(dead_code))]
    pub(crate) fn on_device<T: Send + Sync + 'static>(&self, upload: impl FnOnce(&PackedMatrix) -> T) -> &T {
        self.0.on_device.get(|| upload(&self.0.matrix))
    }
}

impl fmt::Debug for Frozen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let matrix = &self.0.matrix;
        write!(f, "Frozen({:?} [{}, {}])", matrix.tensor_type(), matrix.rows(), matrix.cols())
    }
}
