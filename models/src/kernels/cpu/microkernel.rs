//! The inner product of every matrix multiplication here: `c[i][j] = Σ_k a[i][k] · b[k][j]` for a tile of [`ROWS`] × [`COLS`].
//!
//! `a` is read by broadcast from rows of any stride, `b` is a slab of `depth` rows of [`COLS`] floats. Sums run over `k` in
//! ascending order with one accumulator per element, so a result depends neither on tiling nor on threads.

use super::simd::Simd;

/// Rows of a tile.
pub(crate) const ROWS: usize = 8;
/// Columns of a tile, and of a slab.
pub(crate) const COLS: usize = 32;

/// One tile of results.
pub(crate) type Tile = [[f32; COLS]; ROWS];

/// Multiplies `rows` (at most [`ROWS`]) rows of `a`, `stride` floats apart, with the slab `b`, and adds onto `tile`.
///
/// The depth is `b.len() / COLS`. Rows of `tile` past `rows` are left as they are.
///
/// # Panics
/// If `a` is shorter than the last row's end.
pub(crate) fn multiply(simd: Simd, a: &[f32], stride: usize, rows: usize, b: &[f32], tile: &mut Tile) {
    let depth = b.len() / COLS;
    assert!((1..=ROWS).contains(&rows), "a tile has 1 to {ROWS} rows, asked for {rows}");
    assert!(a.len() >= (rows - 1) * stride + depth, "{} floats do not hold {rows} rows of stride {stride}", a.len());
    match simd {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Simd` names a set only after it was detected; the bounds were asserted above.
        Simd::Avx512 => unsafe {
            match rows {
                8 => avx512::<8>(a, stride, b, tile),
                4..8 => {
                    avx512::<4>(a, stride, b, tile);
                    for row in 4..rows {
                        avx512_row(&a[row * stride..], b, &mut tile[row]);
                    }
                }
                _ => {
                    for row in 0..rows {
                        avx512_row(&a[row * stride..], b, &mut tile[row]);
                    }
                }
            }
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Simd::Avx2 => unsafe { avx2(a, stride, rows, b, tile) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        Simd::Neon => unsafe {
            match rows {
                8 => neon_rows::<8>(a, 0, stride, b, tile),
                4..8 => {
                    neon_rows::<4>(a, 0, stride, b, tile);
                    (4..rows).for_each(|row| neon_rows::<1>(a, row, stride, b, tile));
                }
                _ => (0..rows).for_each(|row| neon_rows::<1>(a, row, stride, b, tile)),
            }
        },
        Simd::Portable => portable(a, stride, rows, b, tile),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512_row(a: &[f32], b: &[f32], out: &mut [f32; COLS]) {
    let tile: *mut Tile = out as *mut [f32; COLS] as *mut Tile;
    // SAFETY: with one row only the first row of the tile is touched.
    unsafe { avx512_at::<1>(a.as_ptr(), 0, b, tile) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512<const R: usize>(a: &[f32], stride: usize, b: &[f32], tile: &mut Tile) {
    // SAFETY: the caller asserted that `a` holds R rows.
    unsafe { avx512_at::<R>(a.as_ptr(), stride, b, tile) }
}

/// # Safety
/// `a` holds `R` rows of `b.len() / COLS` floats, `stride` apart; `tile` has `R` rows.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn avx512_at<const R: usize>(a: *const f32, stride: usize, b: &[f32], tile: *mut Tile) {
    use std::arch::x86_64::*;
    // SAFETY: pointers stay inside `a`, `b` and the first R rows of `tile`, as the caller promises.
    unsafe {
        let rows = tile.cast::<f32>();
        let mut low = [_mm512_setzero_ps(); R];
        let mut high = [_mm512_setzero_ps(); R];
        for i in 0..R {
            low[i] = _mm512_loadu_ps(rows.add(i * COLS));
            high[i] = _mm512_loadu_ps(rows.add(i * COLS + 16));
        }
        for k in 0..b.len() / COLS {
            let b_low = _mm512_loadu_ps(b.as_ptr().add(k * COLS));
            let b_high = _mm512_loadu_ps(b.as_ptr().add(k * COLS + 16));
            for i in 0..R {
                let a_ik = _mm512_set1_ps(*a.add(i * stride + k));
                low[i] = _mm512_fmadd_ps(a_ik, b_low, low[i]);
                high[i] = _mm512_fmadd_ps(a_ik, b_high, high[i]);
            }
        }
        for i in 0..R {
            _mm512_storeu_ps(rows.add(i * COLS), low[i]);
            _mm512_storeu_ps(rows.add(i * COLS + 16), high[i]);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(a: &[f32], stride: usize, rows: usize, b: &[f32], tile: &mut Tile) {
    let mut first = 0;
    while first < rows {
        let count = (rows - first).min(4);
        // SAFETY: rows first..first + count exist, as the caller asserted.
        unsafe {
            match count {
                4 => avx2_at::<4>(a, first, stride, b, tile),
                3 => avx2_at::<3>(a, first, stride, b, tile),
                2 => avx2_at::<2>(a, first, stride, b, tile),
                _ => avx2_at::<1>(a, first, stride, b, tile),
            }
        }
        first += count;
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn avx2_at<const R: usize>(a: &[f32], first: usize, stride: usize, b: &[f32], tile: &mut Tile) {
    use std::arch::x86_64::*;
    // Half a tile at a time: 4 rows x 16 columns are 8 accumulators, which leaves registers for the operands.
    for half in 0..2 {
        // SAFETY: pointers stay inside `a`, `b` and `tile`, as the caller promises.
        unsafe {
            let of_tile = |i: usize, j: usize| half * 16 + j * 8 + (first + i) * COLS;
            let rows = tile.as_mut_ptr().cast::<f32>();
            let mut sums = [[_mm256_setzero_ps(); 2]; R];
            for (i, sums) in sums.iter_mut().enumerate() {
                for (j, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm256_loadu_ps(rows.add(of_tile(i, j)));
                }
            }
            for k in 0..b.len() / COLS {
                let from = b.as_ptr().add(k * COLS + half * 16);
                let b_k = [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))];
                for (i, sums) in sums.iter_mut().enumerate() {
                    let a_ik = _mm256_set1_ps(*a.as_ptr().add((first + i) * stride + k));
                    sums[0] = _mm256_fmadd_ps(a_ik, b_k[0], sums[0]);
                    sums[1] = _mm256_fmadd_ps(a_ik, b_k[1], sums[1]);
                }
            }
            for (i, sums) in sums.iter().enumerate() {
                for (j, sum) in sums.iter().enumerate() {
                    _mm256_storeu_ps(rows.add(of_tile(i, j)), *sum);
                }
            }
        }
    }
}

/// Rows `first .. first + R` of a tile.
///
/// # Safety
/// `a` holds these rows of `b.len() / COLS` floats, `stride` apart.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
#[inline]
unsafe fn neon_rows<const R: usize>(a: &[f32], first: usize, stride: usize, b: &[f32], tile: &mut Tile) {
    use std::arch::aarch64::*;
    // A quarter of a tile at a time: 8 rows x 8 columns are 16 accumulators, which leaves registers for the operands.
    for column in (0..COLS).step_by(8) {
        // SAFETY: pointers stay inside `a`, `b` and `tile`, as the caller promises.
        unsafe {
            let rows = tile.as_mut_ptr().cast::<f32>().add(first * COLS + column);
            let (a, b, depth) = (a.as_ptr().add(first * stride), b.as_ptr().add(column), b.len() / COLS);
            let mut sums = [[vdupq_n_f32(0.0); 2]; R];
            for (i, sums) in sums.iter_mut().enumerate() {
                *sums = [vld1q_f32(rows.add(i * COLS)), vld1q_f32(rows.add(i * COLS + 4))];
            }
            let b_row = |k: usize| [vld1q_f32(b.add(k * COLS)), vld1q_f32(b.add(k * COLS + 4))];
            for k in (0..depth / 4 * 4).step_by(4) {
                let b_k = [b_row(k), b_row(k + 1), b_row(k + 2), b_row(k + 3)];
                for (i, sums) in sums.iter_mut().enumerate() {
                    let a_i = vld1q_f32(a.add(i * stride + k));
                    for (half, sum) in sums.iter_mut().enumerate() {
                        *sum = vfmaq_laneq_f32::<0>(*sum, b_k[0][half], a_i);
                        *sum = vfmaq_laneq_f32::<1>(*sum, b_k[1][half], a_i);
                        *sum = vfmaq_laneq_f32::<2>(*sum, b_k[2][half], a_i);
                        *sum = vfmaq_laneq_f32::<3>(*sum, b_k[3][half], a_i);
                    }
                }
            }
            for k in depth / 4 * 4..depth {
                let b_k = b_row(k);
                for (i, sums) in sums.iter_mut().enumerate() {
                    let a_ik = vdupq_n_f32(*a.add(i * stride + k));
                    *sums = [vfmaq_f32(sums[0], a_ik, b_k[0]), vfmaq_f32(sums[1], a_ik, b_k[1])];
                }
            }
            for (i, sums) in sums.iter().enumerate() {
                vst1q_f32(rows.add(i * COLS), sums[0]);
                vst1q_f32(rows.add(i * COLS + 4), sums[1]);
            }
        }
    }
}

fn portable(a: &[f32], stride: usize, rows: usize, b: &[f32], tile: &mut Tile) {
    for (row, sums) in tile.iter_mut().enumerate().take(rows) {
        for (a_k, b_k) in a[row * stride..].iter().zip(b.chunks_exact(COLS)) {
            for (sum, b_kj) in sums.iter_mut().zip(b_k) {
                *sum += a_k * b_kj;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_agrees_with_f64_sums_for_every_row_count() {
        let (depth, stride) = (37, 41);
        let a: Vec<f32> = (0..ROWS * stride).map(|i| ((i * 7919 % 101) as f32 - 50.0) / 50.0).collect();
        let b: Vec<f32> = (0..depth * COLS).map(|i| ((i * 104_729 % 97) as f32 - 48.0) / 48.0).collect();
        for simd in Simd::available() {
            for rows in 1..=ROWS {
                let mut tile = [[0.5; COLS]; ROWS];
                multiply(simd, &a, stride, rows, &b, &mut tile);
                for (i, row) in tile.iter().enumerate() {
                    for (j, &found) in row.iter().enumerate() {
                        let sum: f64 =
                            (0..depth).map(|k| f64::from(a[i * stride + k]) * f64::from(b[k * COLS + j])).sum();
                        let expected = if i < rows { 0.5 + sum } else { 0.5 };
                        // 37 products of at most 1: f32 rounding stays below 37 ulp of the largest partial sum.
                        assert!(
                            (f64::from(found) - expected).abs() < 1e-5,
                            "{simd:?} rows {rows} [{i}][{j}]: {found} is not {expected}"
                        );
                    }
                }
            }
        }
    }
}
