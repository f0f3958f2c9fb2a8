//! The way into a branch's few dimensions: thin products of rows that were rounded already.

use std::ops::Range;

use super::product::{self, Segment, Target};
use super::rounded::{Rows, TASK_ROWS};
use super::slab::{self, LANES, Word};
use crate::kernels::cpu::columns::Columns;
use crate::kernels::cpu::lora::Branch;

/// Small matrices in bf16, their outputs side by side.
pub(super) struct WayIn {
    /// The pairs of a row that they reduce.
    pairs: Range<usize>,
    /// One after another for every [`LANES`] outputs: a word for each pair.
    slabs: Vec<Word>,
    /// Of every output, which branch and which of its ranks it is.
    outputs: Vec<(usize, usize)>,
}

impl WayIn {
    /// The A of every branch, `[rank, d_in]`, for rows that begin with the input in so many pairs.
    ///
    /// # Safety
    /// The processor has AVX-512 with bf16.
    pub(super) unsafe fn of_rows<'a>(pairs: usize, branches: impl Iterator<Item = Option<Branch<'a>>> + Clone) -> Self {
        let there = branches.enumerate().filter_map(|(index, branch)| Some((index, branch?)));
        let outputs = there.clone().flat_map(|(index, branch)| (0..branch.rank).map(move |rank| (index, rank)));
        let mut way_in = Self::empty(0..pairs, outputs.collect());
        let mut rows = there.flat_map(|(_, branch)| branch.a.chunks_exact(branch.a.len() / branch.rank));
        for slab in way_in.slabs.chunks_exact_mut(pairs) {
            // SAFETY: as the caller promises.
            unsafe { slab::round_rows(rows.by_ref().take(LANES), slab, 1) };
        }
        way_in
    }

    /// The B of a branch, `[d_out, rank]`, for rows whose `pairs` are the gradient of the output.
    ///
    /// # Safety
    /// The processor has AVX-512 with bf16.
    pub(super) unsafe fn of_columns(pairs: Range<usize>, branch: Option<Branch<'_>>) -> Self {
        let outputs = (0..branch.map_or(0, |branch| branch.rank)).map(|rank| (0, rank));
        let mut way_in = Self::empty(pairs.clone(), outputs.collect());
        if let Some(branch) = branch {
            for (index, slab) in way_in.slabs.chunks_exact_mut(pairs.len()).enumerate() {
                // SAFETY: as the caller promises.
                unsafe { slab::round_columns(branch.b, branch.rank, index * LANES, slab, 1) };
            }
        }
        way_in
    }

    fn empty(pairs: Range<usize>, outputs: Vec<(usize, usize)>) -> Self {
        Self { slabs: vec![slab::ZERO; outputs.len().div_ceil(LANES) * pairs.len()], pairs, outputs }
    }

    /// Writes what becomes of at most [`TASK_ROWS`] rows, times `factor`, into each branch's matrix `[tokens, rank]`.
    ///
    /// # Safety
    /// The processor has AVX-512 with bf16; the pairs of these rows were written, and nobody else touches the rows of `thins`.
    pub(super) unsafe fn apply(&self, rows: Range<usize>, x: &Rows, thins: &[Columns<'_>], factor: f32) {
        let mut values = [0.0; TASK_ROWS * LANES];
        let panels = self.slabs.chunks_exact(self.pairs.len().max(1)).zip(self.outputs.chunks(LANES));
        for (slab, outputs) in panels {
            let start = values.as_mut_ptr().wrapping_sub(rows.start * LANES);
            let target = Target { start, stride: LANES, count: LANES, base: std::ptr::null() };
            // SAFETY: as the caller promises; the values of the rows are the only ones that are touched.
            unsafe { product::thin(x, rows.clone(), Segment { pair: self.pairs.start, slab }, target) };
            for (row, values) in rows.clone().zip(values.chunks_exact(LANES)) {
                for (value, &(branch, rank)) in values.iter().zip(outputs) {
                    // SAFETY: as the caller promises.
                    unsafe { thins[branch].place(row, rank, 1).write(factor * value) };
                }
            }
        }
    }
}
