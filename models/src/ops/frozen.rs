//! A weight matrix that training never changes, with room for a device's copy of it.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::device_copy::DeviceCopy;
use crate::device::ComputeDevice;
use crate::kernels::cpu::Weights;
use crate::kernels::cpu::tiled::TileArena;
use crate::quant::{PackedMatrix, TensorType};

/// A frozen matrix shared by the model, its operations and their gradients; cloning copies a pointer.
///
/// On the host it is the model file's own bytes, or their copy in tiles. A GPU gets its copy at first use, in the order that its kernels
/// read.
#[derive(Clone)]
pub struct Frozen(Arc<Inner>);

struct Inner {
    weights: Weights,
    #[cfg_attr(not(feature = "gpu"), expect(dead_code))]
    on_device: DeviceCopy,
}

impl Frozen {
    /// A matrix by itself, in the form that models of `device` have it.
    ///
    /// # Errors
    /// The system's, if there is no memory to repack it in.
    pub fn for_device(matrix: &PackedMatrix, device: &ComputeDevice) -> io::Result<Self> {
        if !device.computes_with_tiles() {
            return Ok(Self::new(matrix.clone()));
        }
        let arena = TileArena::new(std::iter::once((matrix.tensor_type(), [matrix.rows(), matrix.cols()])))?;
        let tiles = arena.tile(matrix);
        arena.seal()?;
        Ok(Self::new(tiles))
    }

    /// Wraps a matrix.
    pub(crate) fn new(weights: impl Into<Weights>) -> Self {
        Self(Arc::new(Inner { weights: weights.into(), on_device: DeviceCopy::default() }))
    }

    /// The host's matrix, `[d_out, d_in]`.
    pub(crate) fn weights(&self) -> &Weights {
        &self.0.weights
    }

    /// Whether its values are those that a tensor of this type has in the model file.
    pub(crate) fn holds_exactly(&self, tensor_type: TensorType) -> bool {
        match self.weights() {
            Weights::Packed(_) => true,
            // Floats are rounded to bf16.
            Weights::Tiled(_) => !matches!(tensor_type, TensorType::F32 | TensorType::F16),
        }
    }

    /// The copy that `upload` made at the first call.
    ///
    /// # Panics
    /// If the matrix is in tiles: the loader makes those for the CPU only.
    #[cfg(feature = "gpu")]
    pub(crate) fn on_device<T: Send + Sync + 'static>(&self, upload: impl FnOnce(&PackedMatrix) -> T) -> &T {
        self.0.on_device.get(|| match self.weights() {
            Weights::Packed(matrix) => upload(matrix),
            Weights::Tiled(_) => panic!("tiles are for the CPU"),
        })
    }
}

impl fmt::Debug for Frozen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rows, cols) = (self.0.weights.rows(), self.0.weights.cols());
        match &self.0.weights {
            Weights::Packed(matrix) => write!(f, "Frozen({:?} [{rows}, {cols}])", matrix.tensor_type()),
            Weights::Tiled(_) => write!(f, "Frozen(tiles [{rows}, {cols}])"),
        }
    }
}
