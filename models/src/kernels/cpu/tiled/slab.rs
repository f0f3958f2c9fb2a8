//! Weights of one panel, dequantized to bf16 in the order that products read: words of 16 pairs, pair after pair.

use std::arch::x86_64::*;
use std::cell::RefCell;

use super::layout::{TILE_COLS, TILE_ROWS, TiledMatrix};
use super::rounded::{Rows, first};
use super::unpack;

/// A pair of weights for each of [`LANES`] outputs.
pub(super) type Word = __m512i;

/// Outputs of a word.
pub(super) const LANES: usize = 16;
/// Words of a panel for each pair.
pub(super) const WORDS: usize = 2;
/// Outputs of a panel.
pub(super) const PANEL: usize = WORDS * LANES;

/// No weight at all.
// SAFETY: all bits zero are a vector.
pub(super) const ZERO: Word = unsafe { std::mem::zeroed() };

/// Words of a thread, grown as they are needed.
struct Slab(Vec<Word>);

thread_local! {
    static SLAB: RefCell<Slab> = const { RefCell::new(Slab(Vec::new())) };
}

/// Lends `words` words of this thread, with anything in them.
pub(super) fn with_words<R>(words: usize, work: impl FnOnce(&mut [Word]) -> R) -> R {
    SLAB.with_borrow_mut(|Slab(all)| {
        if all.len() < words {
            all.resize(words, ZERO);
        }
        work(&mut all[..words])
    })
}

/// Dequantizes the two rows of tiles of a panel, two words for each pair of columns; where there is but one, the rest is zero.
///
/// # Safety
/// The processor has AVX-512 with bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn unpack_rows(weight: &TiledMatrix, panel: usize, slab: &mut [Word]) {
    let tile_bytes = weight.format().tile_bytes();
    for half in 0..PANEL / TILE_ROWS {
        let tile_row = panel * (PANEL / TILE_ROWS) + half;
        if tile_row == weight.tile_rows() {
            slab.iter_mut().skip(half).step_by(2).for_each(|word| *word = ZERO);
            return;
        }
        let next = if tile_row + 2 < weight.tile_rows() { weight.tile_row(tile_row + 2) } else { &[] };
        for (tile_col, (tile, words)) in
            weight.tile_row(tile_row).chunks_exact(tile_bytes).zip(slab.chunks_exact_mut(TILE_COLS)).enumerate()
        {
            prefetch(next, tile_col * tile_bytes, tile_bytes);
            // SAFETY: a tile is there, and 32 words of the slab, of which every second one is written.
            unsafe { unpack::by_columns(weight.format(), tile.as_ptr(), words.as_mut_ptr().add(half), 2) };
        }
    }
}

/// Dequantizes a column of tiles, from row of tiles `first` on, as far as the slab goes, two words for each pair of rows.
///
/// # Safety
/// The processor has AVX-512 with bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn unpack_cols(weight: &TiledMatrix, panel: usize, first: usize, slab: &mut [Word]) {
    /// Tiles ahead: as far as memory is away.
    const AHEAD: usize = 8;
    let tile_bytes = weight.format().tile_bytes();
    let (start, stride) = (panel * tile_bytes, weight.tile_cols() * tile_bytes);
    for (index, words) in slab.chunks_exact_mut(TILE_ROWS).enumerate() {
        let tile = &weight.tiles()[start + (first + index) * stride..][..tile_bytes];
        prefetch(weight.tiles(), start + (first + index + AHEAD) * stride, tile_bytes);
        // SAFETY: a tile is there, and 16 words of the slab.
        unsafe { unpack::by_rows(weight.format(), tile.as_ptr(), words.as_mut_ptr()) };
    }
}

/// Asks for the cache lines of `bytes[from..from + len]`, as far as they exist.
#[target_feature(enable = "avx512f")]
#[inline]
fn prefetch(bytes: &[u8], from: usize, len: usize) {
    for line in bytes.get(from..from + len).unwrap_or_default().chunks(64) {
        _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
    }
}

/// Some rows of a small matrix `[outputs, depth]` as outputs: pairs of neighbouring columns, `words` words for each.
///
/// # Safety
/// The processor has AVX-512 with bf16; `slab` has a pair's words for every two columns.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn round_rows<'a>(rows: impl Iterator<Item = &'a [f32]>, slab: &mut [Word], words: usize) {
    slab.fill(ZERO);
    let pairs = slab.len() / words;
    let dwords: *mut u32 = slab.as_mut_ptr().cast();
    let mut row_pairs = [0u32; LANES];
    for (output, row) in rows.enumerate().take(words * LANES) {
        for (block, values) in row.chunks(2 * LANES).enumerate() {
            let count = LANES.min(pairs - block * LANES);
            // SAFETY: there is one row of 16 pairs.
            unsafe { Rows::new(row_pairs.as_mut_ptr(), LANES).round(0, 0..LANES, values, 1.0) };
            for (pair, both) in row_pairs[..count].iter().enumerate() {
                // SAFETY: the pair has words · 16 dwords, of which `output` is one.
                unsafe { dwords.add((block * LANES + pair) * words * LANES + output).write(*both) };
            }
        }
    }
}

/// Columns from `from` on of the rows of a small matrix `[depth, width]` as outputs: pairs of neighbouring rows, `words` words for each. An
/// odd row is paired with zeros, and what lies beyond the last row or column is zero.
///
/// # Safety
/// The processor has AVX-512 with bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn round_columns(matrix: &[f32], width: usize, from: usize, slab: &mut [Word], words: usize) {
    let interleave = unpack::interleaved_halves();
    let mut pairs = slab.chunks_exact_mut(words);
    for (rows, slab) in matrix.chunks(2 * width).zip(&mut pairs) {
        for (vector, word) in slab.iter_mut().enumerate() {
            let column = from + vector * LANES;
            let load = |row: usize| {
                let is_there = rows.len() > row * width;
                let mask = if is_there { first(width.saturating_sub(column)) } else { 0 };
                // SAFETY: the mask keeps the load inside the row.
                unsafe { _mm512_maskz_loadu_ps(mask, rows.as_ptr().wrapping_add(row * width + column)) }
            };
            *word = _mm512_permutexvar_epi16(interleave, unpack::round(load(0), load(1)));
        }
    }
    pairs.for_each(|slab| slab.fill(ZERO));
}
