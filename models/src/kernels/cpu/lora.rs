//! The thin products of a LoRA branch: one side of each has as many columns as the branch has ranks.
//!
//! Ranks are handled [`BLOCK`] at a time, which keeps a block's sums in registers.

use std::ops::Range;

use rayon::prelude::*;

use super::buffer::Buffer;
use super::dot::add_scaled;
use super::microkernel::{COLS, ROWS, Tile, multiply};
use super::simd::{Simd, vectorized};
use super::slab;
use super::tiled::TiledMatrix;

/// Ranks of a block.
const BLOCK: usize = 8;
/// Tokens that a task handles at least: below, one thread is faster than two.
const TASK_TOKENS: usize = 16;

/// The branch of one projection.
#[derive(Clone, Copy)]
pub(crate) struct Branch<'a> {
    /// `[rank, d_in]`.
    pub(crate) a: &'a [f32],
    /// `[d_out, rank]`.
    pub(crate) b: &'a [f32],
    pub(crate) rank: usize,
    pub(crate) scaling: f32,
}

/// A matrix in tiles, `[d_out, d_in]`, with its branch where it has one.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a> {
    pub(crate) weight: &'a TiledMatrix,
    pub(crate) branch: Option<Branch<'a>>,
}

/// The gradient of what a part gave, `[tokens, d_out]`.
#[derive(Clone, Copy)]
pub(crate) struct OutputGradient<'a> {
    pub(crate) part: Part<'a>,
    pub(crate) dy: &'a [f32],
}

/// What a projection makes of its input.
pub(crate) struct Projected {
    /// `[tokens, d_out]`.
    pub(crate) y: Buffer,
    /// `x · Aᵀ`, `[tokens, rank]`; empty without a branch.
    pub(crate) thin: Buffer,
}

/// `x · Aᵀ` of one token `[d_in]`, rank after rank.
pub(crate) fn reduce_one(x: &[f32], branch: Branch<'_>, mut put: impl FnMut(usize, f32)) {
    for (block, rows) in branch.a.chunks(BLOCK * x.len()).enumerate() {
        let mut thin = [0.0; BLOCK];
        let ranks = rows.len() / x.len();
        products(Simd::detect(), x, rows, 1.0, &mut thin[..ranks]);
        thin[..ranks].iter().enumerate().for_each(|(rank, value)| put(block * BLOCK + rank, *value));
    }
}

/// `y += scaling · thin · Bᵀ` of one token, for some of the outputs.
pub(crate) fn expand_some(y: &mut [f32], thin: &[f32], branch: Branch<'_>, outputs: Range<usize>) {
    for (y, b) in y.iter_mut().zip(branch.b[outputs.start * branch.rank..].chunks_exact(branch.rank)) {
        *y += branch.scaling * thin.iter().zip(b).map(|(thin, b)| thin * b).sum::<f32>();
    }
}

/// `thin = factor · x · rowsᵀ`: each token's products with every rank's row.
///
/// # Shapes
/// `x` `[tokens, width]`, `rows` `[rank, width]`, result `[tokens, rank]`.
pub(crate) fn reduce(x: &[f32], rows: &[f32], rank: usize, factor: f32) -> Buffer {
    let (simd, width) = (Simd::detect(), rows.len() / rank);
    let mut thin = Buffer::new(x.len() / width * rank);
    let tokens = thin.par_chunks_mut(rank).zip(x.par_chunks(width)).with_min_len(TASK_TOKENS);
    tokens.for_each(|(thin, x)| {
        for (thin, rows) in thin.chunks_mut(BLOCK).zip(rows.chunks(BLOCK * width)) {
            products(simd, x, rows, factor, thin);
        }
    });
    thin
}

/// `y += thin · rows`: each rank's row onto every token, as much as the token has of it.
///
/// # Shapes
/// `y` `[tokens, width]`, `thin` `[tokens, rank]`, `rows` `[rank, width]`.
pub(crate) fn expand(y: &mut [f32], thin: &[f32], rows: &[f32], rank: usize) {
    let (simd, width) = (Simd::detect(), rows.len() / rank);
    let tokens = y.par_chunks_mut(width).zip(thin.par_chunks(rank)).with_min_len(TASK_TOKENS);
    tokens.for_each(|(y, thin)| {
        for (thin, rows) in thin.chunks(BLOCK).zip(rows.chunks(BLOCK * width)) {
            add_rows(simd, y, thin, rows);
        }
    });
}

/// `thinᵀ · x`, sums over all tokens in their order.
///
/// # Shapes
/// `thin` `[tokens, rank]`, `x` `[tokens, width]`, result `[rank, width]`.
pub(crate) fn outer(thin: &[f32], x: &[f32], rank: usize, width: usize) -> Buffer {
    let (simd, tokens) = (Simd::detect(), thin.len() / rank);
    let by_rank = transposed(thin, [tokens, rank]);
    let panels: Vec<Vec<Tile>> = (0..width.div_ceil(COLS))
        .into_par_iter()
        .map(|panel| {
            let first = panel * COLS;
            let count = COLS.min(width - first);
            let mut slab = vec![0.0; tokens * COLS];
            slab::fill(&mut slab, &x[first..], width, count);
            let tiles = by_rank.chunks(ROWS * tokens).map(|thin| {
                let mut tile: Tile = [[0.0; COLS]; ROWS];
                multiply(simd, thin, tokens, thin.len() / tokens, &slab, &mut tile);
                tile
            });
            tiles.collect()
        })
        .collect();
    let mut out = Buffer::new(rank * width);
    for (row, out) in out.chunks_exact_mut(width).enumerate() {
        for (out, tiles) in out.chunks_mut(COLS).zip(&panels) {
            out.copy_from_slice(&tiles[row / ROWS][row % ROWS][..out.len()]);
        }
    }
    out
}

/// `y += x`, element by element.
pub(crate) fn add(y: &mut [f32], x: &[f32]) {
    const TASK_LEN: usize = 8192;
    let simd = Simd::detect();
    y.par_chunks_mut(TASK_LEN).zip(x.par_chunks(TASK_LEN)).for_each(|(y, x)| add_scaled(simd, y, 1.0, x));
}

/// The transpose of a `[rows, cols]` matrix.
pub(crate) fn transposed(values: &[f32], [rows, cols]: [usize; 2]) -> Buffer {
    let mut out = Buffer::new(values.len());
    for (row, values) in values.chunks_exact(cols).enumerate() {
        for (col, value) in values.iter().enumerate() {
            out[col * rows + row] = *value;
        }
    }
    out
}

vectorized! {
    /// `thin = factor · rows · x`, at most [`BLOCK`] rows.
    fn products(x: &[f32], rows: &[f32], factor: f32, thin: &mut [f32]) = products_body
}

#[inline(always)]
fn products_body(x: &[f32], rows: &[f32], factor: f32, thin: &mut [f32]) {
    // A block that is not full computes its first row again for those that are missing.
    let rows: [&[f32]; BLOCK] = block_rows(rows, x.len(), thin.len());
    let mut lanes = [[0.0f32; 16]; BLOCK];
    let whole = x.len() - x.len() % 16;
    for first in (0..whole).step_by(16) {
        let x = &x[first..first + 16];
        for (lanes, row) in lanes.iter_mut().zip(rows) {
            let row = &row[first..first + 16];
            for lane in 0..16 {
                lanes[lane] += x[lane] * row[lane];
            }
        }
    }
    for ((thin, lanes), row) in thin.iter_mut().zip(&lanes).zip(rows) {
        let rest: f32 = x[whole..].iter().zip(&row[whole..]).map(|(x, row)| x * row).sum();
        *thin = factor * (total(*lanes) + rest);
    }
}

/// The sum of all lanes, halves onto halves: four steps where one after another would be sixteen.
#[inline(always)]
fn total(mut lanes: [f32; 16]) -> f32 {
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

vectorized! {
    /// `y += thin · rows`, at most [`BLOCK`] rows.
    fn add_rows(y: &mut [f32], thin: &[f32], rows: &[f32]) = add_rows_body
}

#[inline(always)]
fn add_rows_body(y: &mut [f32], thin: &[f32], rows: &[f32]) {
    let rows: [&[f32]; BLOCK] = block_rows(rows, y.len(), thin.len());
    let thin = block_of(thin);
    for (i, y) in y.iter_mut().enumerate() {
        let mut sum = 0.0;
        for rank in 0..BLOCK {
            sum += thin[rank] * rows[rank][i];
        }
        *y += sum;
    }
}

/// The rows of a block; the first in place of those that are missing.
#[inline(always)]
fn block_rows(rows: &[f32], width: usize, count: usize) -> [&[f32]; BLOCK] {
    std::array::from_fn(|row| &rows[if row < count { row * width } else { 0 }..][..width])
}

/// At most [`BLOCK`] values, and zeros for those that are missing.
#[inline(always)]
fn block_of(values: &[f32]) -> [f32; BLOCK] {
    let mut block = [0.0; BLOCK];
    block[..values.len()].copy_from_slice(values);
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| (((i + seed) * 7919 % 2003) as f32 - 1001.0) / 1001.0).collect()
    }

    #[test]
    fn thin_products_equal_f64_sums_for_every_rank_and_odd_widths() {
        // Up to 50 products of at most 1.
        const ROUNDING: f64 = 1e-5;
        for rank in [1, 3, 8, 11, 16] {
            for width in [5, 32, 50] {
                let tokens = 21;
                let (x, rows, thin) = (numbers(tokens * width, 1), numbers(rank * width, 2), numbers(tokens * rank, 3));
                let at = |values: &[f32], i: usize| f64::from(values[i]);
                let reduced = reduce(&x, &rows, rank, 0.5);
                let mut expanded = x.clone();
                expand(&mut expanded, &thin, &rows, rank);
                let sums = outer(&thin, &x, rank, width);
                for t in 0..tokens {
                    for r in 0..rank {
                        let sum: f64 = (0..width).map(|k| at(&x, t * width + k) * at(&rows, r * width + k)).sum();
                        assert!((at(&reduced, t * rank + r) - 0.5 * sum).abs() < ROUNDING, "reduce {rank} {width}");
                    }
                    for k in 0..width {
                        let sum: f64 = (0..rank).map(|r| at(&thin, t * rank + r) * at(&rows, r * width + k)).sum();
                        let expected = at(&x, t * width + k) + sum;
                        assert!((at(&expanded, t * width + k) - expected).abs() < ROUNDING, "expand {rank} {width}");
                    }
                }
                for r in 0..rank {
                    for k in 0..width {
                        let sum: f64 = (0..tokens).map(|t| at(&thin, t * rank + r) * at(&x, t * width + k)).sum();
                        assert!((at(&sums, r * width + k) - sum).abs() < ROUNDING, "outer {rank} {width}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_transpose_swaps_places() {
        assert_eq!(transposed(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3])[..], [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }
}
