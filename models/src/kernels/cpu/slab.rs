//! Columns of a matrix, laid out for the microkernel.

use super::microkernel::COLS;

/// Copies the first `count` values, at most [`COLS`], of rows `stride` floats apart into the rows of `slab`, as many as it has.
///
/// # Shapes
/// `from` begins at the first row's first value; `slab` `[rows, COLS]`. Columns of `slab` past `count` are left as they are.
pub(crate) fn fill(slab: &mut [f32], from: &[f32], stride: usize, count: usize) {
    for (slab, row) in slab.as_chunks_mut::<COLS>().0.iter_mut().zip(from.chunks(stride)) {
        match row.first_chunk::<COLS>() {
            // Of a known length: a few vector moves in place of a call.
            Some(row) if count == COLS => *slab = *row,
            _ => slab[..count].copy_from_slice(&row[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_and_partial_rows_arrive_and_the_rest_stays() {
        let values: Vec<f32> = (0..3 * 40).map(|i| i as f32).collect();
        for count in [COLS, 8] {
            let first = 40 - COLS;
            let mut slab = vec![-1.0; 3 * COLS];
            fill(&mut slab, &values[first..], 40, count);
            for (row, slab) in slab.chunks_exact(COLS).enumerate() {
                assert_eq!(slab[..count], values[row * 40 + first..][..count]);
                assert!(slab[count..].iter().all(|value| *value == -1.0));
            }
        }
    }
}
