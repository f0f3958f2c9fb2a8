//! `y = x · Wᵀ` and `dx = dy · W` on packed weights.
//!
//! A workgroup of [`UNITS`] computes [`UNITS`] outputs of [`tokens`](multiply) tokens: each unit owns one output, unpacks each of
//! its weights once and uses it for all tokens, whose inputs are staged in workgroup memory, [`DEPTH`] at a time.

use burn::backend::tensor::FloatTensor;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::device_matrix::{DeviceMatrix, Encoding, Gpu, Part, contiguous, empty, paced, per_word, row_words};
use crate::ops::Frozen;
use crate::ops::packed_linear::PackedLinearOps;

/// Units of a workgroup; every GPU allows 256.
const UNITS: u32 = 64;
/// Depth of the staged inputs: a block of weights.
const DEPTH: u32 = 32;
/// Tokens of a tile where there are many: 16 sums a unit, and 2 KiB of workgroup memory.
const MANY_TOKENS: u32 = 16;

impl PackedLinearOps for Gpu {
    fn packed_linear(x: FloatTensor<Self>, weight: Frozen) -> FloatTensor<Self> {
        multiply(x, &weight, false)
    }

    fn packed_linear_transposed(dy: FloatTensor<Self>, weight: Frozen) -> FloatTensor<Self> {
        multiply(dy, &weight, true)
    }
}

fn multiply(x: CubeTensor, weight: &Frozen, transposed: bool) -> CubeTensor {
    let (x, [tokens, _]) = contiguous(x);
    let matrix = weight.on_device(|matrix| DeviceMatrix::upload(matrix, &x.client));
    let width = if transposed { matrix.cols } else { matrix.rows };
    let y = empty(&x, tokens, width);
    for (index, part) in matrix.parts.iter().enumerate() {
        launch(&x, &y, tokens, matrix, part, transposed, index > 0);
    }
    y
}

fn launch(
    x: &CubeTensor,
    y: &CubeTensor,
    tokens: usize,
    matrix: &DeviceMatrix,
    part: &Part,
    transposed: bool,
    accumulate: bool,
) {
    let tile = if tokens == 1 { 1 } else { MANY_TOKENS };
    let outputs = if transposed { matrix.cols } else { part.rows };
    let count = CubeCount::Static((outputs as u32).div_ceil(UNITS), (tokens as u32).div_ceil(tile), 1);
    let args = Sizes {
        tokens: tokens as u32,
        rows: part.rows as u32,
        cols: matrix.cols as u32,
        first_row: part.first_row as u32,
        all_rows: matrix.rows as u32,
        row_words: row_words(matrix.encoding, matrix.cols) as u32,
    };
    // SAFETY: every buffer is passed with its own length; the kernels read and write inside the sizes given, which are those
    // of the buffers.
    unsafe {
        let buffer = |tensor: &CubeTensor, len: usize| BufferArg::from_raw_parts(tensor.handle.clone(), len);
        let x_len = tokens * if transposed { matrix.rows } else { matrix.cols };
        let y_len = tokens * if transposed { matrix.cols } else { matrix.rows };
        let run = if transposed { backward_kernel::launch_unchecked } else { forward_kernel::launch_unchecked };
        run(
            &x.client,
            count,
            CubeDim::new_1d(UNITS),
            buffer(x, x_len),
            BufferArg::from_raw_parts(part.words.clone(), part.len_words),
            BufferArg::from_raw_parts(part.scales.clone(), part.len_scales),
            buffer(y, y_len),
            args.tokens,
            args.rows,
            args.cols,
            args.first_row,
            args.all_rows,
            args.row_words,
            matrix.offset,
            u32::from(accumulate),
            matrix.encoding,
            per_word(matrix.encoding) as u32,
            tile,
        );
    }
    paced(&x.client, 2.0 * tokens as f64 * part.rows as f64 * matrix.cols as f64);
}

/// The sizes that both kernels are told.
struct Sizes {
    tokens: u32,
    rows: u32,
    cols: u32,
    first_row: u32,
    all_rows: u32,
    row_words: u32,
}

/// The weight at `row`, `col` of a part.
#[cube]
fn weight_at(
    words: &[u32],
    scales: &[f32],
    row: u32,
    col: u32,
    cols: u32,
    row_words: u32,
    offset: f32,
    #[comptime] encoding: Encoding,
    #[comptime] per_word: u32,
) -> f32 {
    let word = words[(row * row_words + col / per_word) as usize];
    let place = col % per_word;
    if comptime!(matches!(encoding, Encoding::F32)) {
        f32::reinterpret(word)
    } else if comptime!(matches!(encoding, Encoding::Bf16)) {
        f32::reinterpret((word >> (place * 16)) << 16)
    } else if comptime!(matches!(encoding, Encoding::F16)) {
        let bits = (word >> (place * 16)) & 0xffff;
        let exponent = (bits >> 10) & 31;
        let mantissa = bits & 1023;
        let sign = (bits & 0x8000) << 16;
        // Below 2^-14 the mantissa counts steps of 2^-24; above, the exponent moves from bias 15 to 127.
        let small = f32::cast_from(mantissa) * 5.960_464_5e-8;
        let normal = f32::reinterpret(((exponent + 112) << 23) | (mantissa << 13));
        let magnitude = select(exponent == 0, small, normal);
        f32::reinterpret(u32::reinterpret(magnitude) | sign)
    } else {
        let bits = comptime!(32 / per_word);
        let mask = comptime!((1u32 << (32 / per_word)) - 1);
        let quant = (word >> (place * bits)) & mask;
        let block = (row * (cols / 32) + col / 32) * 2;
        (f32::cast_from(quant) - offset) * scales[block as usize] + scales[(block + 1) as usize]
    }
}

#[cube(launch_unchecked)]
fn forward_kernel(
    x: &[f32],
    words: &[u32],
    scales: &[f32],
    y: &mut [f32],
    tokens: u32,
    rows: u32,
    cols: u32,
    first_row: u32,
    all_rows: u32,
    row_words: u32,
    offset: f32,
    _accumulate: u32,
    #[comptime] encoding: Encoding,
    #[comptime] per_word: u32,
    #[comptime] tile: u32,
) {
    let row = CUBE_POS_X * UNITS + UNIT_POS_X;
    let first_token = CUBE_POS_Y * tile;
    let mut staged = Shared::<[f32]>::new_slice(comptime!((tile * DEPTH) as usize));
    let mut sums = Array::<f32>::new(comptime!(tile as usize));
    #[unroll]
    for token in 0..tile {
        sums[token as usize] = 0.0;
    }
    let mut depth = 0u32;
    while depth < cols {
        let mut index = UNIT_POS_X;
        while index < tile * DEPTH {
            let token = first_token + index / DEPTH;
            let col = depth + index % DEPTH;
            let inside = token < tokens && col < cols;
            let from = select(inside, token * cols + col, 0);
            staged[index as usize] = select(inside, x[from as usize], 0.0);
            index += UNITS;
        }
        sync_cube();
        if row < rows {
            let end = select(cols - depth < DEPTH, cols - depth, DEPTH);
            for step in 0..end {
                let weight = weight_at(words, scales, row, depth + step, cols, row_words, offset, encoding, per_word);
                #[unroll]
                for token in 0..tile {
                    sums[token as usize] += weight * staged[(token * DEPTH + step) as usize];
                }
            }
        }
        sync_cube();
        depth += DEPTH;
    }
    if row < rows {
        #[unroll]
        for token in 0..tile {
            if first_token + token < tokens {
                y[((first_token + token) * all_rows + first_row + row) as usize] = sums[token as usize];
            }
        }
    }
}

#[cube(launch_unchecked)]
fn backward_kernel(
    dy: &[f32],
    words: &[u32],
    scales: &[f32],
    dx: &mut [f32],
    tokens: u32,
    rows: u32,
    cols: u32,
    first_row: u32,
    all_rows: u32,
    row_words: u32,
    offset: f32,
    accumulate: u32,
    #[comptime] encoding: Encoding,
    #[comptime] per_word: u32,
    #[comptime] tile: u32,
) {
    let col = CUBE_POS_X * UNITS + UNIT_POS_X;
    let first_token = CUBE_POS_Y * tile;
    let mut staged = Shared::<[f32]>::new_slice(comptime!((tile * DEPTH) as usize));
    let mut sums = Array::<f32>::new(comptime!(tile as usize));
    #[unroll]
    for token in 0..tile {
        sums[token as usize] = 0.0;
    }
    let mut depth = 0u32;
    while depth < rows {
        let mut index = UNIT_POS_X;
        while index < tile * DEPTH {
            let token = first_token + index / DEPTH;
            let row = depth + index % DEPTH;
            let inside = token < tokens && row < rows;
            let from = select(inside, token * all_rows + first_row + row, 0);
            staged[index as usize] = select(inside, dy[from as usize], 0.0);
            index += UNITS;
        }
        sync_cube();
        if col < cols {
            let end = select(rows - depth < DEPTH, rows - depth, DEPTH);
            for step in 0..end {
                let weight = weight_at(words, scales, depth + step, col, cols, row_words, offset, encoding, per_word);
                #[unroll]
                for token in 0..tile {
                    sums[token as usize] += weight * staged[(token * DEPTH + step) as usize];
                }
            }
        }
        sync_cube();
        depth += DEPTH;
    }
    if col < cols {
        #[unroll]
        for token in 0..tile {
            if first_token + token < tokens {
                let to = ((first_token + token) * cols + col) as usize;
                let before = select(accumulate == 1, dx[to], 0.0);
                dx[to] = before + sums[token as usize];
            }
        }
    }
}
