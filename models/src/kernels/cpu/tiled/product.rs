//! The inner product of many tokens: rows of pairs times a slab, in both directions.
//!
//! Sums are f32, in ascending order of pairs; a pair's two products are added first, as `vdpbf16ps` does.

use std::arch::x86_64::*;
use std::ops::Range;

use super::rounded::{Rows, first};
use super::slab::{WORDS, Word};

/// Most rows of a tile of a panel: 8 · 2 sums are more than the latency of an instruction needs, and leave registers for the operands.
const WIDE_ROWS: usize = 8;
/// The same where a row has one vector of results.
const THIN_ROWS: usize = 16;

/// Part of a reduction: words of a slab, and the pair that the first of them is multiplied with.
#[derive(Clone, Copy)]
pub(super) struct Segment<'a> {
    pub(super) pair: usize,
    pub(super) slab: &'a [Word],
}

/// Where results go, row-major.
#[derive(Clone, Copy)]
pub(super) struct Target {
    /// The first result of row 0.
    pub(super) start: *mut f32,
    /// Values from one row to the next.
    pub(super) stride: usize,
    /// Results of a row.
    pub(super) count: usize,
    /// What sums begin with, laid out as the results; zero if null.
    pub(super) base: *const f32,
}

/// `target[row] = base[row] + Σ over the segments of x[row][pair] · slab[pair]`, with [`WORDS`] words of the slab for each pair.
///
/// # Safety
/// The processor has AVX-512 with bf16. Rows and pairs are there, and so are their places in the target, which nobody else touches.
pub(super) unsafe fn wide<const S: usize>(x: &Rows, rows: Range<usize>, segments: &[Segment<'_>; S], target: Target) {
    // Evenly: 17 rows are 6, 6 and 5, not 8, 8 and 1.
    let tiles = rows.len().div_ceil(WIDE_ROWS);
    for tile in 0..tiles {
        let first = rows.start + tile * rows.len() / tiles;
        let end = rows.start + (tile + 1) * rows.len() / tiles;
        let multiply = match end - first {
            1 => multiply::<1, WORDS, S>,
            2 => multiply::<2, WORDS, S>,
            3 => multiply::<3, WORDS, S>,
            4 => multiply::<4, WORDS, S>,
            5 => multiply::<5, WORDS, S>,
            6 => multiply::<6, WORDS, S>,
            7 => multiply::<7, WORDS, S>,
            _ => multiply::<WIDE_ROWS, WORDS, S>,
        };
        // SAFETY: as the caller promises.
        unsafe { multiply(x, first, segments, target) };
    }
}

/// The same with one word of the slab for each pair, and one segment.
///
/// # Safety
/// As of [`wide`].
pub(super) unsafe fn thin(x: &Rows, mut rows: Range<usize>, segment: Segment<'_>, target: Target) {
    while !rows.is_empty() {
        // SAFETY: as the caller promises.
        rows.start += unsafe {
            match rows.len() {
                THIN_ROWS.. => multiply::<THIN_ROWS, 1, 1>(x, rows.start, &[segment], target),
                8.. => multiply::<8, 1, 1>(x, rows.start, &[segment], target),
                4.. => multiply::<4, 1, 1>(x, rows.start, &[segment], target),
                _ => multiply::<1, 1, 1>(x, rows.start, &[segment], target),
            }
        };
    }
}

/// `R` rows of `V` vectors of results; gives `R`.
///
/// # Safety
/// As of [`wide`].
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn multiply<const R: usize, const V: usize, const S: usize>(
    x: &Rows,
    first_row: usize,
    segments: &[Segment<'_>; S],
    target: Target,
) -> usize {
    let masks: [__mmask16; V] = std::array::from_fn(|vector| first(target.count.saturating_sub(vector * 16)));
    let place = |row: usize, vector: usize| (first_row + row) * target.stride + vector * 16;
    let mut sums = [[_mm512_setzero_ps(); V]; R];
    // SAFETY: as the caller promises; masks keep loads and stores inside the results.
    unsafe {
        if !target.base.is_null() {
            for (row, sums) in sums.iter_mut().enumerate() {
                for vector in 0..V {
                    let base = target.base.wrapping_add(place(row, vector));
                    sums[vector] = _mm512_maskz_loadu_ps(masks[vector], base);
                }
            }
        }
        for segment in segments {
            let x_first = x.at(first_row, segment.pair).cast_const();
            for (pair, words) in segment.slab.as_chunks::<V>().0.iter().enumerate() {
                let words = words.map(|word| std::mem::transmute::<__m512i, __m512bh>(word));
                for (row, sums) in sums.iter_mut().enumerate() {
                    let both = _mm512_set1_epi32(*x_first.add(row * x.stride + pair) as i32);
                    let both = std::mem::transmute::<__m512i, __m512bh>(both);
                    for vector in 0..V {
                        sums[vector] = _mm512_dpbf16_ps(sums[vector], both, words[vector]);
                    }
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for vector in 0..V {
                let out = target.start.wrapping_add(place(row, vector));
                _mm512_mask_storeu_ps(out, masks[vector], sums[vector]);
            }
        }
    }
    R
}
