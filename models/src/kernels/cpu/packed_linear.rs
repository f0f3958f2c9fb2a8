//! `y = x · Wᵀ` and its gradient `dx = dy · W` over a packed `W`.

use std::cell::RefCell;

use rayon::prelude::*;

use super::columns::Columns;
use super::dequantize::dequantize_row;
use super::dot::dot;
use super::microkernel::{COLS, ROWS, Tile, multiply};
use super::parallel;
use super::simd::Simd;
use crate::quant::PackedMatrix;

/// Most tokens that are multiplied row by row, without a slab: decoding.
const FEW_TOKENS: usize = 4;
/// Rows of W that one task handles: enough to outweigh its cost, few enough to share among eight cores.
const TASK_ROWS: usize = 64;
/// Longest reduction of a backward slab: 1024 x 32 floats are 128 KiB, a share of the second-level cache.
const SLAB_DEPTH: usize = 1024;

thread_local! {
    /// Dequantized weights of the panel that this thread works on.
    static SLAB: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

fn with_slab<R>(len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    SLAB.with_borrow_mut(|slab| {
        if slab.len() < len {
            slab.resize(len, 0.0);
        }
        work(&mut slab[..len])
    })
}

/// `y = x · Wᵀ` with `x` `[tokens, cols]`, `W` `[rows, cols]`, `y` `[tokens, rows]`, all row-major.
pub(crate) fn forward(x: &[f32], weight: &PackedMatrix, y: &mut [f32]) {
    let (rows, cols) = (weight.rows(), weight.cols());
    let tokens = x.len() / cols;
    assert_eq!(
        (x.len(), y.len()),
        (tokens * cols, tokens * rows),
        "x [{tokens}, {cols}] and y [{tokens}, {rows}] do not fit W"
    );
    let simd = Simd::detect();
    let y = Columns::new(y, rows);
    let tasks = rows.div_ceil(TASK_ROWS);
    if tokens <= FEW_TOKENS {
        parallel::for_each(tasks, |task| few_tokens(simd, x, tokens, weight, task * TASK_ROWS, &y));
    } else {
        let x = transposed_tiles(x, cols, tokens);
        parallel::for_each(tasks, |task| many_tokens(simd, &x, tokens, weight, task * TASK_ROWS, &y));
    }
}

/// Tokens as columns: tiles of [`COLS`] tokens, each `[cols, COLS]`, the last one padded with zeros.
fn transposed_tiles(x: &[f32], cols: usize, tokens: usize) -> Vec<f32> {
    let mut tiles = vec![0.0; tokens.div_ceil(COLS) * COLS * cols];
    tiles.par_chunks_mut(COLS * cols).enumerate().for_each(|(tile, out)| {
        let first = tile * COLS;
        // Blocks of 16 columns: a cache line of each token is read once.
        for block in (0..cols).step_by(16) {
            let end = (block + 16).min(cols);
            for token in first..(first + COLS).min(tokens) {
                for (k, &value) in (block..end).zip(&x[token * cols + block..token * cols + end]) {
                    out[k * COLS + token - first] = value;
                }
            }
        }
    });
    tiles
}

fn many_tokens(simd: Simd, x: &[f32], tokens: usize, weight: &PackedMatrix, first: usize, y: &Columns<'_>) {
    let cols = weight.cols();
    let end = (first + TASK_ROWS).min(weight.rows());
    with_slab(ROWS * cols, |slab| {
        for panel in (first..end).step_by(ROWS) {
            let count = ROWS.min(end - panel);
            for (row, out) in (panel..panel + count).zip(slab.chunks_exact_mut(cols)) {
                dequantize_row(simd, weight.tensor_type(), weight.row_bytes(row), out);
            }
            for (tile_index, tile_x) in x.chunks_exact(COLS * cols).enumerate() {
                let mut tile: Tile = [[0.0; COLS]; ROWS];
                multiply(simd, slab, cols, count, tile_x, &mut tile);
                let first_token = tile_index * COLS;
                for token in first_token..(first_token + COLS).min(tokens) {
                    // SAFETY: this task alone writes columns first..end.
                    let out = unsafe { y.slice(token, panel, count) };
                    for (out, row) in out.iter_mut().zip(&tile) {
                        *out = row[token - first_token];
                    }
                }
            }
        }
    });
}

fn few_tokens(simd: Simd, x: &[f32], tokens: usize, weight: &PackedMatrix, first: usize, y: &Columns<'_>) {
    let cols = weight.cols();
    let end = (first + TASK_ROWS).min(weight.rows());
    with_slab(cols, |slab| {
        for row in first..end {
            dequantize_row(simd, weight.tensor_type(), weight.row_bytes(row), slab);
            for token in 0..tokens {
                // SAFETY: this task alone writes columns first..end.
                let out = unsafe { y.slice(token, row, 1) };
                out[0] = dot(simd, &x[token * cols..(token + 1) * cols], slab);
            }
        }
    });
}

/// `dx = dy · W` with `dy` `[tokens, rows]`, `W` `[rows, cols]`, `dx` `[tokens, cols]`, all row-major.
pub(crate) fn backward(dy: &[f32], weight: &PackedMatrix, dx: &mut [f32]) {
    let (rows, cols) = (weight.rows(), weight.cols());
    let tokens = dy.len() / rows;
    assert_eq!(
        (dy.len(), dx.len()),
        (tokens * rows, tokens * cols),
        "dy [{tokens}, {rows}] and dx [{tokens}, {cols}] do not fit W"
    );
    let simd = Simd::detect();
    let dx = Columns::new(dx, cols);
    parallel::for_each(cols.div_ceil(COLS), |panel| backward_panel(simd, dy, tokens, weight, panel * COLS, &dx));
}

/// Columns `first .. first + COLS` of dx. A block of every quantization lies in one panel: 32 weights of a row, or one.
fn backward_panel(simd: Simd, dy: &[f32], tokens: usize, weight: &PackedMatrix, first: usize, dx: &Columns<'_>) {
    let (rows, cols) = (weight.rows(), weight.cols());
    let count = COLS.min(cols - first);
    let row_bytes = weight.row_len_bytes();
    let (first_byte, panel_bytes) = (row_bytes * first / cols, row_bytes * count / cols);
    with_slab(SLAB_DEPTH * COLS, |slab| {
        for chunk in (0..rows).step_by(SLAB_DEPTH) {
            let depth = SLAB_DEPTH.min(rows - chunk);
            let slab = &mut slab[..depth * COLS];
            for (row, out) in (chunk..chunk + depth).zip(slab.chunks_exact_mut(COLS)) {
                out[count..].fill(0.0);
                let packed = &weight.row_bytes(row)[first_byte..][..panel_bytes];
                dequantize_row(simd, weight.tensor_type(), packed, &mut out[..count]);
            }
            for token in (0..tokens).step_by(ROWS) {
                let tile_rows = ROWS.min(tokens - token);
                let mut tile: Tile = [[0.0; COLS]; ROWS];
                if chunk > 0 {
                    for (row, sums) in tile.iter_mut().enumerate().take(tile_rows) {
                        // SAFETY: this task alone touches columns first .. first + count.
                        sums[..count].copy_from_slice(unsafe { dx.slice(token + row, first, count) });
                    }
                }
                multiply(simd, &dy[token * rows + chunk..], rows, tile_rows, slab, &mut tile);
                for (row, sums) in tile.iter().enumerate().take(tile_rows) {
                    // SAFETY: as above.
                    unsafe { dx.slice(token + row, first, count) }.copy_from_slice(&sums[..count]);
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::TensorType;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| (((i + seed) * 7919 % 2003) as f32 - 1001.0) / 1001.0).collect()
    }

    /// Both directions against f64 sums over the scalar reference's weights.
    fn check(tensor_type: TensorType, tokens: usize, rows: usize, cols: usize) {
        let weight = PackedMatrix::quantize(tensor_type, [rows, cols], &numbers(rows * cols, 1));
        let mut dense = vec![0.0; rows * cols];
        weight.dequantize_rows(0..rows, &mut dense);
        let (x, dy) = (numbers(tokens * cols, 5), numbers(tokens * rows, 9));
        let (mut y, mut dx) = (vec![f32::NAN; tokens * rows], vec![f32::NAN; tokens * cols]);
        forward(&x, &weight, &mut y);
        backward(&dy, &weight, &mut dx);
        // Products of at most 1 each: the error of f32 sums grows with their count.
        let tolerance = |terms: usize| terms as f64 * 2e-6;
        for token in 0..tokens {
            for row in 0..rows {
                let sum: f64 =
                    (0..cols).map(|k| f64::from(x[token * cols + k]) * f64::from(dense[row * cols + k])).sum();
                let found = f64::from(y[token * rows + row]);
                assert!(
                    (found - sum).abs() < tolerance(cols),
                    "{tensor_type:?} y[{token}][{row}] of [{tokens}, {rows}, {cols}]: {found}, not {sum}"
                );
            }
            for k in 0..cols {
                let sum: f64 =
                    (0..rows).map(|row| f64::from(dy[token * rows + row]) * f64::from(dense[row * cols + k])).sum();
                let found = f64::from(dx[token * cols + k]);
                assert!(
                    (found - sum).abs() < tolerance(rows),
                    "{tensor_type:?} dx[{token}][{k}] of [{tokens}, {rows}, {cols}]: {found}, not {sum}"
                );
            }
        }
    }

    #[test]
    fn both_directions_equal_dense_sums_for_every_type_and_odd_shapes() {
        for &tensor_type in TensorType::ALL {
            for tokens in [1, 3, 5, 8, 33] {
                check(tensor_type, tokens, 70, 96);
            }
        }
        check(TensorType::F32, 7, 9, 50);
        check(TensorType::Q8_0, 2, 2100, 32);
    }

    #[test]
    fn the_number_of_threads_does_not_change_a_bit() {
        let weight = PackedMatrix::quantize(TensorType::Q4_1, [300, 128], &numbers(300 * 128, 3));
        let x = numbers(40 * 128, 2);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            let mut y = vec![0.0; 40 * 300];
            pool.install(|| forward(&x, &weight, &mut y));
            y
        };
        assert_eq!(run(1), run(3));
    }
}
