//! Products of many tokens: a panel of 32 outputs is dequantized to bf16 once, and one microkernel multiplies it in both directions.
//!
//! Sums are f32, in ascending order of pairs; a pair's two products are added first, as `vdpbf16ps` does.

use std::arch::x86_64::*;
use std::cell::RefCell;

use super::layout::{TILE_COLS, TILE_ROWS, TiledMatrix};
use super::unpack;
use crate::kernels::cpu::columns::Columns;
use crate::kernels::cpu::parallel;

/// Outputs of a panel: two vectors.
const PANEL: usize = 32;
/// Most tokens of a tile of results: 8 · 2 accumulators leave registers for the operands.
const TOKENS: usize = 8;
/// Pairs of rows that a slab of the backward direction holds: 1024 · 128 bytes are a share of the second-level cache.
const SLAB_PAIRS: usize = 1024;

/// Dequantized weights of a panel, two vectors for each pair.
struct Slab(Vec<__m512i>);

thread_local! {
    static SLAB: RefCell<Slab> = const { RefCell::new(Slab(Vec::new())) };
}

fn with_slab<R>(pairs: usize, work: impl FnOnce(&mut [__m512i]) -> R) -> R {
    SLAB.with_borrow_mut(|Slab(words)| {
        if words.len() < 2 * pairs {
            // SAFETY: all bits zero are a vector.
            words.resize(2 * pairs, unsafe { std::mem::zeroed() });
        }
        work(&mut words[..2 * pairs])
    })
}

/// `y = x · Wᵀ`; shapes as in [`super::forward`].
pub(super) fn forward(x: &[f32], weight: &TiledMatrix, y: &mut [f32]) {
    let (rows, pairs) = (weight.rows(), weight.tile_cols() * TILE_COLS / 2);
    let x = Pairs::new(x, weight.cols(), pairs);
    let y = Columns::new(y, rows);
    parallel::for_each(rows.div_ceil(PANEL), |panel| {
        with_slab(pairs, |slab| {
            // SAFETY: whoever made a tiled matrix has found the instructions.
            unsafe { unpack_rows(weight, panel, slab) };
            let first = panel * PANEL;
            x.times(0..pairs, slab, &y, first..rows.min(first + PANEL));
        });
    });
}

/// `dx = dy · W`; shapes as in [`super::backward`].
pub(super) fn backward(dy: &[f32], weight: &TiledMatrix, dx: &mut [f32]) {
    let (cols, pairs) = (weight.cols(), weight.tile_rows() * TILE_ROWS / 2);
    let dy = Pairs::new(dy, weight.rows(), pairs);
    let dx = Columns::new(dx, cols);
    parallel::for_each(cols.div_ceil(PANEL), |panel| {
        with_slab(pairs.min(SLAB_PAIRS), |slab| {
            for first_pair in (0..pairs).step_by(SLAB_PAIRS) {
                let reduced = first_pair..pairs.min(first_pair + SLAB_PAIRS);
                let slab = &mut slab[..2 * reduced.len()];
                // SAFETY: whoever made a tiled matrix has found the instructions.
                unsafe { unpack_cols(weight, panel, reduced.start * 2 / TILE_ROWS, slab) };
                let first = panel * PANEL;
                dy.times(reduced, slab, &dx, first..cols.min(first + PANEL));
            }
        });
    });
}

/// Dequantizes the two rows of tiles of a panel; where there is but one, the rest is zero.
///
/// # Safety
/// The processor has AVX-512 with bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn unpack_rows(weight: &TiledMatrix, panel: usize, slab: &mut [__m512i]) {
    let tile_bytes = weight.format().tile_bytes();
    for half in 0..PANEL / TILE_ROWS {
        let tile_row = panel * (PANEL / TILE_ROWS) + half;
        if tile_row == weight.tile_rows() {
            slab.iter_mut().skip(half).step_by(2).for_each(|word| *word = _mm512_setzero_si512());
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

/// Dequantizes a column of tiles, from row of tiles `first` on, as far as the slab goes.
///
/// # Safety
/// The processor has AVX-512 with bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn unpack_cols(weight: &TiledMatrix, panel: usize, first: usize, slab: &mut [__m512i]) {
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

/// A matrix rounded to bf16, row-major; each row is a whole number of pairs, what is missing is zero.
struct Pairs {
    values: Vec<u32>,
    pairs: usize,
    rows: usize,
}

impl Pairs {
    /// Rounds `x` `[rows, cols]` to nearest, ties to even.
    fn new(x: &[f32], cols: usize, pairs: usize) -> Self {
        let rows = x.len() / cols;
        let mut values = vec![0u32; rows * pairs];
        let out = Rows(values.as_mut_ptr(), pairs);
        const TASK_ROWS: usize = 16;
        parallel::for_each(rows.div_ceil(TASK_ROWS), |task| {
            for row in task * TASK_ROWS..rows.min((task + 1) * TASK_ROWS) {
                // SAFETY: whoever made a tiled matrix has found the instructions; this task alone writes the row.
                unsafe { round_row(&x[row * cols..(row + 1) * cols], out.row(row)) };
            }
        });
        Self { values, pairs, rows }
    }

    /// `out[row][outputs] (+)= Σ over the pairs `reduced` of self[row][pair] · slab[pair][outputs]`; added where the reduction
    /// does not begin at 0.
    fn times(
        &self,
        reduced: std::ops::Range<usize>,
        slab: &[__m512i],
        out: &Columns<'_>,
        outputs: std::ops::Range<usize>,
    ) {
        // Evenly: 17 rows are 6, 6 and 5, not 8, 8 and 1.
        let tiles = self.rows.div_ceil(TOKENS);
        for tile in 0..tiles {
            let (first, end) = (tile * self.rows / tiles, (tile + 1) * self.rows / tiles);
            let multiply = match end - first {
                1 => multiply::<1>,
                2 => multiply::<2>,
                3 => multiply::<3>,
                4 => multiply::<4>,
                5 => multiply::<5>,
                6 => multiply::<6>,
                7 => multiply::<7>,
                _ => multiply::<TOKENS>,
            };
            let x = &self.values[first * self.pairs..end * self.pairs][reduced.start..];
            // SAFETY: the instructions are there; `x` holds the rows; this task alone touches these columns of `out`.
            unsafe { multiply(x, self.pairs, slab, out, first, outputs.clone(), reduced.start > 0) };
        }
    }
}

/// Rows that tasks write, each its own.
struct Rows(*mut u32, usize);

// SAFETY: tasks write different rows.
unsafe impl Sync for Rows {}

impl Rows {
    /// # Safety
    /// The row exists, and nobody else holds it.
    #[allow(clippy::mut_from_ref)]
    unsafe fn row(&self, row: usize) -> &mut [u32] {
        // SAFETY: as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(row * self.1), self.1) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn round_row(x: &[f32], out: &mut [u32]) {
    for (x, out) in x.chunks(32).zip(out.chunks_mut(16)) {
        let load = |from: usize| {
            let count = x.len().saturating_sub(from).min(16);
            let mask = ((1u32 << count) - 1) as u16;
            // SAFETY: the mask keeps the load inside `x`.
            unsafe { _mm512_maskz_loadu_ps(mask, x.as_ptr().wrapping_add(from)) }
        };
        // SAFETY: both types are 512 bits.
        let pairs = unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(load(16), load(0))) };
        let mask = ((1u32 << out.len()) - 1) as u16;
        // SAFETY: the mask keeps the store inside `out`.
        unsafe { _mm512_mask_storeu_epi32(out.as_mut_ptr().cast(), mask, pairs) };
    }
}

/// `R` rows of results.
///
/// # Safety
/// The processor has AVX-512 with bf16; `x` holds R rows, `stride` pairs apart, of as many pairs as the slab has; nobody else touches
/// these columns of these rows of `out`.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn multiply<const R: usize>(
    x: &[u32],
    stride: usize,
    slab: &[__m512i],
    out: &Columns<'_>,
    first_row: usize,
    outputs: std::ops::Range<usize>,
    add: bool,
) {
    let masks: [__mmask16; 2] =
        std::array::from_fn(|half| ((1u32 << outputs.len().saturating_sub(half * 16).min(16)) - 1) as u16);
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    // SAFETY: as the caller promises; masks keep loads and stores inside the outputs.
    unsafe {
        if add {
            for (row, sums) in sums.iter_mut().enumerate() {
                let out = out.slice(first_row + row, outputs.start, outputs.len());
                for half in 0..2 {
                    sums[half] = _mm512_maskz_loadu_ps(masks[half], out.as_ptr().wrapping_add(half * 16));
                }
            }
        }
        let x = x.as_ptr();
        for (pair, words) in slab.as_chunks::<2>().0.iter().enumerate() {
            let [low, high] = words.map(|word| std::mem::transmute::<__m512i, __m512bh>(word));
            for (row, sums) in sums.iter_mut().enumerate() {
                let both = _mm512_set1_epi32(*x.add(row * stride + pair) as i32);
                let both = std::mem::transmute::<__m512i, __m512bh>(both);
                sums[0] = _mm512_dpbf16_ps(sums[0], both, low);
                sums[1] = _mm512_dpbf16_ps(sums[1], both, high);
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            let out = out.slice(first_row + row, outputs.start, outputs.len());
            for half in 0..2 {
                _mm512_mask_storeu_ps(out.as_mut_ptr().wrapping_add(half * 16), masks[half], sums[half]);
            }
        }
    }
}
