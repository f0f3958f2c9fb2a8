//! A frozen matrix in the form that its precision computes with.

use super::dequantize::dequantize_row;
use super::packed_linear;
use super::simd::Simd;
use super::tiled::{self, TiledMatrix};
use crate::quant::PackedMatrix;

/// A matrix `[rows, cols]`, stored `[out, in]`.
pub(crate) enum Weights {
    /// Blocks as the model file has them, computed with in f32.
    Packed(PackedMatrix),
    /// Tiles, computed with in bf16 and 8 bits.
    Tiled(TiledMatrix),
}

impl Weights {
    /// Outputs.
    pub(crate) fn rows(&self) -> usize {
        match self {
            Self::Packed(matrix) => matrix.rows(),
            Self::Tiled(matrix) => matrix.rows(),
        }
    }

    /// Inputs.
    pub(crate) fn cols(&self) -> usize {
        match self {
            Self::Packed(matrix) => matrix.cols(),
            Self::Tiled(matrix) => matrix.cols(),
        }
    }

    /// `y = x · Wᵀ` with `x` `[tokens, cols]` and `y` `[tokens, rows]`, row-major.
    pub(crate) fn forward(&self, x: &[f32], y: &mut [f32]) {
        match self {
            Self::Packed(matrix) => packed_linear::forward(x, matrix, y),
            Self::Tiled(matrix) => tiled::forward(x, matrix, y),
        }
    }

    /// One row, `[cols]`.
    pub(crate) fn dequantize_row(&self, row: usize, values: &mut [f32]) {
        match self {
            Self::Packed(matrix) => {
                dequantize_row(Simd::detect(), matrix.tensor_type(), matrix.row_bytes(row), values);
            }
            Self::Tiled(matrix) => matrix.dequantize_row(row, values),
        }
    }

    /// `dx = dy · W` with `dy` `[tokens, rows]`, which is used up, and `dx` `[tokens, cols]`, row-major.
    pub(crate) fn backward(&self, dy: &mut [f32], dx: &mut [f32]) {
        match self {
            Self::Packed(matrix) => packed_linear::backward(dy, matrix, dx),
            Self::Tiled(matrix) => tiled::backward(dy, matrix, dx),
        }
    }
}

impl From<PackedMatrix> for Weights {
    fn from(matrix: PackedMatrix) -> Self {
        Self::Packed(matrix)
    }
}

impl From<TiledMatrix> for Weights {
    fn from(matrix: TiledMatrix) -> Self {
        Self::Tiled(matrix)
    }
}
