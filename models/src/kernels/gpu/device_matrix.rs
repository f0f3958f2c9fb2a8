//! A packed matrix in device memory.

use std::ops::Range;

use cubecl::client::Client;
use cubecl::server::Handle;

use crate::quant::{PackedMatrix, TensorType};

/// Largest buffer that a kernel binds: the storage-buffer limit of Pixel 7 and Galaxy S23.
pub(crate) const MAX_BINDING_BYTES: usize = 128 << 20;

/// How the kernels read a weight; one compiled variant each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Encoding {
    /// 4 bits: `(q - offset) · scale + minimum`.
    Bits4,
    /// 8 bits, sign flipped: `(q - 128) · scale + minimum`.
    Bits8,
    /// The upper half of a float.
    Bf16,
    /// A half-precision float.
    F16,
    /// A float.
    F32,
}

/// Rows of a block.
pub(super) const BLOCK_ROWS: u32 = 64;
/// Columns of a block: one scale for each row of it.
pub(super) const BLOCK_COLS: u32 = 32;

/// A packed matrix in words of 32 bits, split so that no buffer exceeds the binding limit.
///
/// It lies in blocks of [`BLOCK_ROWS`] × [`BLOCK_COLS`], all blocks of the same rows one after another: what a workgroup
/// stages at a time is one piece of memory in both directions, multiplied by the matrix or by its transpose. The last block of
/// rows and of columns is filled up with zeros.
pub(super) struct DeviceMatrix {
    pub(super) encoding: Encoding,
    /// Subtracted from a quant before scaling.
    pub(super) offset: f32,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) parts: Vec<Part>,
}

/// Consecutive rows.
pub(super) struct Part {
    pub(super) first_row: usize,
    pub(super) rows: usize,
    /// `[blocks of rows, blocks of columns, BLOCK_ROWS, words]`, the first weight in the low bits of a word.
    pub(super) words: Handle,
    pub(super) len_words: usize,
    /// Scale and minimum of each row of a block, in the same order; one unused pair for floats.
    pub(super) scales: Handle,
    pub(super) len_scales: usize,
}

impl DeviceMatrix {
    /// Copies a matrix to the device, still packed: quants keep their bits, scales become f32.
    pub(super) fn upload(matrix: &PackedMatrix, client: &Client) -> Self {
        let (encoding, offset) = match matrix.tensor_type() {
            TensorType::Q4_0 => (Encoding::Bits4, 8.0),
            TensorType::Q4_1 => (Encoding::Bits4, 0.0),
            TensorType::Q8_0 => (Encoding::Bits8, 128.0),
            TensorType::BF16 => (Encoding::Bf16, 0.0),
            TensorType::F16 => (Encoding::F16, 0.0),
            TensorType::F32 => (Encoding::F32, 0.0),
        };
        let (rows, cols) = (matrix.rows(), matrix.cols());
        let row_bytes = 4 * row_words(encoding, cols);
        let rows_per_part = (MAX_BINDING_BYTES / row_bytes / BLOCK_ROWS as usize).max(1) * BLOCK_ROWS as usize;
        let part = |first_row: usize| {
            let rows = rows_per_part.min(rows - first_row);
            let (words, scales) = pack_part(matrix, encoding, first_row..first_row + rows);
            Part {
                first_row,
                rows,
                words: client.create_from_slice(bytemuck::cast_slice(&words)),
                len_words: words.len(),
                scales: client.create_from_slice(bytemuck::cast_slice(&scales)),
                len_scales: scales.len(),
            }
        };
        let parts = (0..rows).step_by(rows_per_part).map(part).collect();
        Self { encoding, offset, rows, cols, parts }
    }
}

/// Words that a row takes, whole blocks.
fn row_words(encoding: Encoding, cols: usize) -> usize {
    cols.div_ceil(BLOCK_COLS as usize) * block_words(encoding)
}

/// Words of a row of a block.
pub(super) fn block_words(encoding: Encoding) -> usize {
    BLOCK_COLS as usize / per_word(encoding)
}

/// Words and scales of some rows, in blocks.
fn pack_part(matrix: &PackedMatrix, encoding: Encoding, rows: Range<usize>) -> (Vec<u32>, Vec<f32>) {
    let (block_rows, block_words) = (BLOCK_ROWS as usize, block_words(encoding));
    let col_blocks = matrix.cols().div_ceil(BLOCK_COLS as usize);
    let lines = rows.len().next_multiple_of(block_rows) * col_blocks;
    let is_quantized = matches!(encoding, Encoding::Bits4 | Encoding::Bits8);
    let (mut words, mut scales) = (vec![0; lines * block_words], vec![0.0; if is_quantized { 2 * lines } else { 2 }]);
    let (mut of_row, mut scales_of_row) = (Vec::new(), Vec::new());
    for (index, row) in rows.enumerate() {
        of_row.clear();
        scales_of_row.clear();
        pack_row(matrix.tensor_type(), matrix.row_bytes(row), &mut of_row, &mut scales_of_row);
        let first_line = index / block_rows * col_blocks * block_rows + index % block_rows;
        for (block, packed) in of_row.chunks(block_words).enumerate() {
            words[(first_line + block * block_rows) * block_words..][..packed.len()].copy_from_slice(packed);
        }
        for (block, pair) in scales_of_row.chunks_exact(2).enumerate() {
            scales[2 * (first_line + block * block_rows)..][..2].copy_from_slice(pair);
        }
    }
    (words, scales)
}

/// Weights in a word.
fn per_word(encoding: Encoding) -> usize {
    match encoding {
        Encoding::Bits4 => 8,
        Encoding::Bits8 => 4,
        Encoding::Bf16 | Encoding::F16 => 2,
        Encoding::F32 => 1,
    }
}

/// The words of a row, its blocks one after another, and where it is quantized their scales and minima.
fn pack_row(tensor_type: TensorType, bytes: &[u8], words: &mut Vec<u32>, scales: &mut Vec<f32>) {
    let f16 = |low: u8, high: u8| half::f16::from_le_bytes([low, high]).to_f32();
    // GGUF's 4-bit blocks hold weight i in the low half of byte i, weight i + 16 in the high half.
    let nibble = |quants: &[u8], i: usize| u32::from(if i < 16 { quants[i] & 0x0f } else { quants[i - 16] >> 4 });
    let nibbles = |quants: &[u8], words: &mut Vec<u32>| {
        words.extend((0..4).map(|word| (0..8).map(|i| nibble(quants, word * 8 + i) << (4 * i)).sum::<u32>()));
    };
    match tensor_type {
        TensorType::Q4_0 => {
            for block in bytes.chunks_exact(18) {
                scales.extend([f16(block[0], block[1]), 0.0]);
                nibbles(&block[2..], words);
            }
        }
        TensorType::Q4_1 => {
            for block in bytes.chunks_exact(20) {
                scales.extend([f16(block[0], block[1]), f16(block[2], block[3])]);
                nibbles(&block[4..], words);
            }
        }
        TensorType::Q8_0 => {
            for block in bytes.chunks_exact(34) {
                scales.extend([f16(block[0], block[1]), 0.0]);
                words.extend(
                    block[2..].chunks_exact(4).map(|q| u32::from_le_bytes([q[0], q[1], q[2], q[3]]) ^ 0x8080_8080),
                );
            }
        }
        TensorType::BF16 | TensorType::F16 => {
            words.extend(bytes.chunks(4).map(|pair| {
                u32::from_le_bytes([pair[0], pair[1], *pair.get(2).unwrap_or(&0), *pair.get(3).unwrap_or(&0)])
            }));
        }
        TensorType::F32 => words.extend(bytes.chunks_exact(4).map(|v| u32::from_le_bytes([v[0], v[1], v[2], v[3]]))),
    }
}
