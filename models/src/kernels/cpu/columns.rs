//! One output matrix, written by several threads in disjoint blocks of columns.

use std::marker::PhantomData;

/// A row-major matrix `[rows, width]` that threads may write at once, each its own columns.
pub(crate) struct Columns<'a> {
    start: *mut f32,
    len: usize,
    width: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: there is no access but through `place` and `slice`, whose users promise disjoint columns.
unsafe impl Sync for Columns<'_> {}
// SAFETY: the pointer comes from an exclusive borrow of `f32`s, which may move between threads.
unsafe impl Send for Columns<'_> {}

impl<'a> Columns<'a> {
    pub(crate) fn new(values: &'a mut [f32], width: usize) -> Self {
        Self { start: values.as_mut_ptr(), len: values.len(), width, lifetime: PhantomData }
    }

    /// Where the `count` values of `row` from column `first` on are.
    pub(crate) fn place(&self, row: usize, first: usize, count: usize) -> *mut f32 {
        let from = row * self.width + first;
        assert!(
            first + count <= self.width && from + count <= self.len,
            "columns {first}+{count} of row {row} are outside"
        );
        self.start.wrapping_add(from)
    }

    /// The `count` values of `row` from column `first` on.
    ///
    /// # Safety
    /// No other thread reads or writes these columns of this row while the slice lives.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, row: usize, first: usize, count: usize) -> &mut [f32] {
        // SAFETY: in bounds as asserted; exclusive as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.place(row, first, count), count) }
    }
}
