//! Tiles of 16 rows by 32 columns, row of tiles after row of tiles.
//!
//! ```text
//! nibbles   16 f16 scales, 16 f16 minima, 4 words     weight = scale · q + minimum     320 bytes
//! bytes     16 f16 scales, 8 words                    weight = scale · (q - 128)       544 bytes
//! bf16      16 words                                                                  1024 bytes
//! ```
//!
//! A word is 16 dwords, one for each row. Dword j of a row holds bytes 4j to 4j+3 of the file's block: of nibbles columns 4j+i low and
//! 16+4j+i high, of bytes columns 4j+i, of bf16 columns 2j and 2j+1. Rows and columns that fill up the last tiles are zero.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use memmap2::{Mmap, MmapMut};
use rayon::prelude::*;

use crate::quant::{PackedMatrix, TensorType};

/// Rows of a tile: the dwords of a vector.
pub(crate) const TILE_ROWS: usize = 16;
/// Columns of a tile: the values of a quantized block.
pub(crate) const TILE_COLS: usize = 32;

/// How the weights of a tile are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TileFormat {
    /// 4 bits, a scale and a minimum for each row.
    Nibbles,
    /// 8 bits and a scale for each row.
    Bytes,
    /// bf16.
    Bf16,
}

impl TileFormat {
    /// The format that loses least of a tensor type.
    fn of(tensor_type: TensorType) -> Self {
        match tensor_type {
            TensorType::Q4_0 | TensorType::Q4_1 => Self::Nibbles,
            TensorType::Q8_0 => Self::Bytes,
            TensorType::F32 | TensorType::F16 | TensorType::BF16 => Self::Bf16,
        }
    }

    /// Bytes of scales and minima in front of a tile's words.
    const fn front_bytes(self) -> usize {
        match self {
            Self::Nibbles => 64,
            Self::Bytes => 32,
            Self::Bf16 => 0,
        }
    }

    /// Bytes of one tile.
    pub(crate) const fn tile_bytes(self) -> usize {
        match self {
            Self::Nibbles => 320,
            Self::Bytes => 544,
            Self::Bf16 => 1024,
        }
    }
}

/// A matrix `[rows, cols]` in tiles. Cloning copies a pointer.
#[derive(Clone)]
pub(crate) struct TiledMatrix {
    rows: usize,
    cols: usize,
    format: TileFormat,
    range: Range<usize>,
    bytes: Arc<OnceLock<Mmap>>,
}

impl TiledMatrix {
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    pub(crate) fn format(&self) -> TileFormat {
        self.format
    }

    /// Tiles above one another.
    pub(crate) fn tile_rows(&self) -> usize {
        self.rows.div_ceil(TILE_ROWS)
    }

    /// Tiles beside one another.
    pub(crate) fn tile_cols(&self) -> usize {
        self.cols.div_ceil(TILE_COLS)
    }

    /// The tiles, row of tiles after row of tiles.
    pub(crate) fn tiles(&self) -> &[u8] {
        let Some(bytes) = self.bytes.get() else { panic!("an arena is sealed before its matrices are used") };
        &bytes[self.range.clone()]
    }

    /// The tiles of one row of tiles.
    pub(crate) fn tile_row(&self, index: usize) -> &[u8] {
        let len = self.tile_cols() * self.format.tile_bytes();
        &self.tiles()[index * len..][..len]
    }

    /// Dequantizes one row: of quantized blocks, to the values that the file's own have.
    pub(crate) fn dequantize_row(&self, row: usize, values: &mut [f32]) {
        let (lane, front) = (row % TILE_ROWS, self.format.front_bytes());
        let tiles = self.tile_row(row / TILE_ROWS).chunks_exact(self.format.tile_bytes());
        for (tile, values) in tiles.zip(values.chunks_mut(TILE_COLS)) {
            let half = |index: usize| half::f16::from_le_bytes([tile[2 * index], tile[2 * index + 1]]).to_f32();
            let bytes =
                || tile[front..].chunks_exact(4 * TILE_ROWS).flat_map(|word| &word[4 * lane..][..4]).enumerate();
            let mut put = |column: usize, value: f32| {
                // A row may end within a tile.
                if let Some(place) = values.get_mut(column) {
                    *place = value;
                }
            };
            match self.format {
                TileFormat::Nibbles => {
                    let (scale, minimum) = (half(lane), half(TILE_ROWS + lane));
                    for (index, byte) in bytes() {
                        put(index, scale * f32::from(byte & 15) + minimum);
                        put(TILE_COLS / 2 + index, scale * f32::from(byte >> 4) + minimum);
                    }
                }
                TileFormat::Bytes => {
                    let scale = half(lane);
                    bytes().for_each(|(index, byte)| put(index, scale * (f32::from(*byte) - 128.0)));
                }
                TileFormat::Bf16 => {
                    for ((index, low), (_, high)) in bytes().step_by(2).zip(bytes().skip(1).step_by(2)) {
                        put(index / 2, half::bf16::from_le_bytes([*low, *high]).to_f32());
                    }
                }
            }
        }
    }

    fn bytes_needed(tensor_type: TensorType, [rows, cols]: [usize; 2]) -> usize {
        rows.div_ceil(TILE_ROWS) * cols.div_ceil(TILE_COLS) * TileFormat::of(tensor_type).tile_bytes()
    }
}

/// Memory for the tiles of a whole model, in huge pages where the system has them: a model is read from end to end for every
/// token, and the walk through tables of small pages would cost a third of the bandwidth.
pub(crate) struct TileArena {
    map: RefCell<MmapMut>,
    used: Cell<usize>,
    sealed: Arc<OnceLock<Mmap>>,
}

/// Matrices begin at cache lines.
const ALIGNMENT: usize = 64;

impl TileArena {
    /// Room for matrices of these types and shapes.
    ///
    /// # Errors
    /// The system's, if it has no such memory.
    pub(crate) fn new(matrices: impl Iterator<Item = (TensorType, [usize; 2])>) -> std::io::Result<Self> {
        let bytes: usize = matrices
            .map(|(tensor_type, shape)| TiledMatrix::bytes_needed(tensor_type, shape).next_multiple_of(ALIGNMENT))
            .sum();
        let map = MmapMut::map_anon(bytes.max(1))?;
        #[cfg(target_os = "linux")]
        if let Err(error) = map.advise(memmap2::Advice::HugePage) {
            log::debug!("no huge pages: {error}");
        }
        Ok(Self { map: RefCell::new(map), used: Cell::new(0), sealed: Arc::default() })
    }

    /// A copy of a matrix in tiles. It can be used once the arena is sealed.
    ///
    /// # Panics
    /// If there is no room left: a mistake of ours.
    pub(crate) fn tile(&self, matrix: &PackedMatrix) -> TiledMatrix {
        let shape = [matrix.rows(), matrix.cols()];
        let start = self.used.get().next_multiple_of(ALIGNMENT);
        let range = start..start + TiledMatrix::bytes_needed(matrix.tensor_type(), shape);
        self.used.set(range.end);
        pack(matrix, &mut self.map.borrow_mut()[range.clone()]);
        let format = TileFormat::of(matrix.tensor_type());
        TiledMatrix { rows: shape[0], cols: shape[1], format, range, bytes: Arc::clone(&self.sealed) }
    }

    /// Ends the writing.
    ///
    /// # Errors
    /// The system's, if it cannot protect the memory.
    pub(crate) fn seal(self) -> std::io::Result<()> {
        let map = self.map.into_inner().make_read_only()?;
        assert!(self.sealed.set(map).is_ok(), "an arena is sealed once");
        Ok(())
    }
}

/// Fills `tiles`, which is zero.
fn pack(matrix: &PackedMatrix, tiles: &mut [u8]) {
    let format = TileFormat::of(matrix.tensor_type());
    let row_len = matrix.cols().div_ceil(TILE_COLS) * format.tile_bytes();
    tiles.par_chunks_mut(row_len).enumerate().for_each(|(tile_row, tiles)| {
        let first = tile_row * TILE_ROWS;
        for row in first..(first + TILE_ROWS).min(matrix.rows()) {
            pack_row(matrix, row, row - first, tiles);
        }
    });
}

/// Puts one row into its lane of a row of tiles.
fn pack_row(matrix: &PackedMatrix, row: usize, lane: usize, tiles: &mut [u8]) {
    let bytes = matrix.row_bytes(row);
    let tiles = tiles.chunks_exact_mut(TileFormat::of(matrix.tensor_type()).tile_bytes());
    match matrix.tensor_type() {
        TensorType::Q4_0 => {
            for (tile, [d0, d1, quants @ ..]) in tiles.zip(bytes.as_chunks::<18>().0) {
                let scale = half::f16::from_le_bytes([*d0, *d1]);
                // The centre goes into the minimum, without loss: eight times an f16 is one, too, up to a scale of 8188.
                let minimum = half::f16::from_f32(-8.0 * scale.to_f32());
                put(tile, lane, [scale.to_le_bytes(), minimum.to_le_bytes()], quants.as_chunks().0);
            }
        }
        TensorType::Q4_1 => {
            for (tile, [d0, d1, m0, m1, quants @ ..]) in tiles.zip(bytes.as_chunks::<20>().0) {
                put(tile, lane, [[*d0, *d1], [*m0, *m1]], quants.as_chunks().0);
            }
        }
        TensorType::Q8_0 => {
            for (tile, [d0, d1, quants @ ..]) in tiles.zip(bytes.as_chunks::<34>().0) {
                put(tile, lane, [[*d0, *d1]], quants.map(|quant| quant ^ 0x80).as_chunks().0);
            }
        }
        TensorType::F32 | TensorType::F16 | TensorType::BF16 => {
            let mut values = vec![0.0; matrix.cols()];
            matrix.tensor_type().dequantize(bytes, &mut values);
            values.resize(values.len().next_multiple_of(TILE_COLS), 0.0);
            for (tile, values) in tiles.zip(values.as_chunks::<TILE_COLS>().0) {
                let packed: [[u8; 2]; TILE_COLS] = values.map(|value| half::bf16::from_f32(value).to_le_bytes());
                put(tile, lane, [], packed.as_flattened().as_chunks().0);
            }
        }
    }
}

/// Writes one lane of a tile: what stands in front of its words, and its dwords.
fn put<const HALVES: usize>(tile: &mut [u8], lane: usize, halves: [[u8; 2]; HALVES], dwords: &[[u8; 4]]) {
    let (front, words) = tile.split_at_mut(HALVES * 2 * TILE_ROWS);
    for (half, place) in halves.iter().zip(front.chunks_exact_mut(2 * TILE_ROWS)) {
        place[2 * lane..][..2].copy_from_slice(half);
    }
    for (dword, word) in dwords.iter().zip(words.chunks_exact_mut(4 * TILE_ROWS)) {
        word[4 * lane..][..4].copy_from_slice(dword);
    }
}
