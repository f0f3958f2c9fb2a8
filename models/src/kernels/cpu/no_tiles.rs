//! Stands in for tiles on processors that nothing is written for: there are none, and `Precision::Fast` is `Precision::Exact`.

use std::convert::Infallible;

use super::buffer::Buffer;
use super::lora::{OutputGradient, Part, Projected};
use crate::quant::{PackedMatrix, TensorType};

/// A matrix that cannot be made.
pub(crate) struct TiledMatrix(Infallible);

/// An arena that cannot be made.
pub(crate) struct TileArena(Infallible);

pub(crate) fn is_available() -> bool {
    false
}

pub(crate) fn forward(_x: &[f32], weight: &TiledMatrix, _y: &mut [f32]) {
    match weight.0 {}
}

pub(crate) fn backward(_dy: &mut [f32], weight: &TiledMatrix, _dx: &mut [f32]) {
    match weight.0 {}
}

pub(crate) fn project(_x: &[f32], parts: &[Part<'_>], _residual: Option<&[f32]>) -> Vec<Projected> {
    match parts[0].weight.0 {}
}

pub(crate) fn pull_back(outputs: &[OutputGradient<'_>], _with_dx: bool) -> (Vec<Buffer>, Option<Buffer>) {
    match outputs[0].part.weight.0 {}
}

impl TiledMatrix {
    pub(crate) fn rows(&self) -> usize {
        match self.0 {}
    }

    pub(crate) fn cols(&self) -> usize {
        match self.0 {}
    }
}

impl TiledMatrix {
    pub(crate) fn dequantize_row(&self, _row: usize, _values: &mut [f32]) {
        match self.0 {}
    }
}

impl TileArena {
    /// # Errors
    /// Always that it is not supported.
    pub(crate) fn new(_matrices: impl Iterator<Item = (TensorType, [usize; 2])>) -> std::io::Result<Self> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn tile(&self, _matrix: &PackedMatrix) -> TiledMatrix {
        match self.0 {}
    }

    pub(crate) fn seal(self) -> std::io::Result<()> {
        match self.0 {}
    }
}
