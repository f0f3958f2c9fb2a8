//! The left side of a product of many tokens: rows rounded to bf16, as pairs that one instruction multiplies.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::kernels::cpu::buffer::Buffer;
use crate::kernels::cpu::parallel;

/// Most rows that one task makes.
pub(super) const TASK_ROWS: usize = 16;

/// A matrix of pairs, row-major: what one row reduces over, two bf16 in the place of a float.
pub(super) struct Rounded {
    pairs: Buffer,
    stride: usize,
}

impl Rounded {
    /// `rows` rows of `stride` pairs, which `fill` writes: it is called for some rows at a time, on several threads.
    pub(super) fn new(rows: usize, stride: usize, fill: impl Fn(Range<usize>, &Rows) + Sync) -> Self {
        let mut pairs = Buffer::new(rows * stride);
        for_rows(rows, &Rows::new(pairs.as_mut_ptr().cast(), stride), fill);
        Self { pairs, stride }
    }

    /// The rows.
    pub(super) fn rows(&self) -> Rows {
        Rows::new(self.pairs.as_ptr().cast_mut().cast(), self.stride)
    }
}

/// Calls `fill` for all rows, some at a time, on several threads.
pub(super) fn for_rows(rows: usize, out: &Rows, fill: impl Fn(Range<usize>, &Rows) + Sync) {
    parallel::for_each(rows.div_ceil(TASK_ROWS), |task| {
        fill(task * TASK_ROWS..rows.min((task + 1) * TASK_ROWS), out);
    });
}

/// Where the rows of a [`Rounded`] are while it is made, and afterwards.
pub(super) struct Rows {
    start: *mut u32,
    /// Pairs from one row to the next.
    pub(super) stride: usize,
}

// SAFETY: tasks write different rows, and read only what was written.
unsafe impl Sync for Rows {}

impl Rows {
    /// Rows of `stride` pairs, from `start` on.
    pub(super) fn new(start: *mut u32, stride: usize) -> Self {
        Self { start, stride }
    }

    /// Where a pair is.
    ///
    /// # Safety
    /// There are such a row and such a pair, or the place is the end.
    pub(super) unsafe fn at(&self, row: usize, pair: usize) -> *mut u32 {
        // SAFETY: inside the matrix, as the caller promises.
        unsafe { self.start.add(row * self.stride + pair) }
    }

    /// Writes `values` times `factor`, rounded to nearest, ties to even, to `pairs`, of which 16 are written for every 32 values begun:
    /// what is missing is zero.
    ///
    /// # Safety
    /// The processor has AVX-512 with bf16; the pairs are there, and nobody else touches them.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) unsafe fn round(&self, row: usize, pairs: Range<usize>, values: &[f32], factor: f32) {
        // SAFETY: as the caller promises.
        unsafe { self.round_from(row, pairs, values.as_ptr(), values.len(), factor) };
    }

    /// The same for `count` values from `values` on, which may be where the pairs are: what is written was read before.
    ///
    /// # Safety
    /// As of [`Self::round`], and the values are there.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) unsafe fn round_from(
        &self,
        row: usize,
        pairs: Range<usize>,
        values: *const f32,
        count: usize,
        factor: f32,
    ) {
        let factor = _mm512_set1_ps(factor);
        for done in (0..count).step_by(32) {
            let load = |from: usize| {
                // SAFETY: the mask keeps the load inside the values.
                _mm512_mul_ps(factor, unsafe {
                    _mm512_maskz_loadu_ps(first(count.saturating_sub(from)), values.wrapping_add(from))
                })
            };
            // SAFETY: both types are 512 bits.
            let rounded =
                unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(load(done + 16), load(done))) };
            let (start, left) = (pairs.start + done / 2, pairs.len() - done / 2);
            // SAFETY: the mask keeps the store inside the pairs.
            unsafe { _mm512_mask_storeu_epi32(self.at(row, start).cast(), first(left), rounded) };
        }
    }
}

/// A mask of the first `count` lanes of sixteen.
pub(super) fn first(count: usize) -> __mmask16 {
    ((1u32 << count.min(16)) - 1) as __mmask16
}
