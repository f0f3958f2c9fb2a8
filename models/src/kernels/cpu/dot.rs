//! Dot products and what decoding needs beside them: one row at a time, no slab.

use super::simd::{Simd, vectorized};

/// `Σ a · b`, in an order that each instruction set fixes.
pub(crate) fn dot(simd: Simd, a: &[f32], b: &[f32]) -> f32 {
    match simd {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Simd` names a set only after it was detected.
        Simd::Avx512 => unsafe { dot_avx512(a, b) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Simd::Avx2 => unsafe { dot_avx2(a, b) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        Simd::Neon => unsafe { dot_neon(a, b) },
        Simd::Portable => dot_portable(a, b),
    }
}

/// Four chains of fused multiply-adds: as many as hide the latency of one.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn dot_avx512(a: &[f32], b: &[f32]) -> f32 {
    use std::arch::x86_64::*;
    let (a_chunks, a_rest) = a.as_chunks::<64>();
    let (b_chunks, b_rest) = b.as_chunks::<64>();
    let mut sums = [_mm512_setzero_ps(); 4];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for (chain, sum) in sums.iter_mut().enumerate() {
            // SAFETY: chain · 16 + 16 is at most 64; the loads are unaligned.
            let (a, b) =
                unsafe { (_mm512_loadu_ps(a.as_ptr().add(chain * 16)), _mm512_loadu_ps(b.as_ptr().add(chain * 16))) };
            *sum = _mm512_fmadd_ps(a, b, *sum);
        }
    }
    let sum = _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
    _mm512_reduce_add_ps(sum) + dot_portable(a_rest, b_rest)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn dot_avx2(a: &[f32], b: &[f32]) -> f32 {
    use std::arch::x86_64::*;
    let (a_chunks, a_rest) = a.as_chunks::<32>();
    let (b_chunks, b_rest) = b.as_chunks::<32>();
    let mut sums = [_mm256_setzero_ps(); 4];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for (chain, sum) in sums.iter_mut().enumerate() {
            // SAFETY: chain · 8 + 8 is at most 32; the loads are unaligned.
            let (a, b) =
                unsafe { (_mm256_loadu_ps(a.as_ptr().add(chain * 8)), _mm256_loadu_ps(b.as_ptr().add(chain * 8))) };
            *sum = _mm256_fmadd_ps(a, b, *sum);
        }
    }
    let sum = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
    let mut lanes = [0.0; 8];
    // SAFETY: eight floats are there; the store is unaligned.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
    lanes.iter().sum::<f32>() + dot_portable(a_rest, b_rest)
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn dot_neon(a: &[f32], b: &[f32]) -> f32 {
    use std::arch::aarch64::*;
    let (a_chunks, a_rest) = a.as_chunks::<16>();
    let (b_chunks, b_rest) = b.as_chunks::<16>();
    let mut sums = [vdupq_n_f32(0.0); 4];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for (chain, sum) in sums.iter_mut().enumerate() {
            // SAFETY: chain · 4 + 4 is at most 16.
            let (a, b) = unsafe { (vld1q_f32(a.as_ptr().add(chain * 4)), vld1q_f32(b.as_ptr().add(chain * 4))) };
            *sum = vfmaq_f32(*sum, a, b);
        }
    }
    vaddvq_f32(vaddq_f32(vaddq_f32(sums[0], sums[1]), vaddq_f32(sums[2], sums[3]))) + dot_portable(a_rest, b_rest)
}

/// Sixteen sums side by side, which a compiler turns into vectors.
fn dot_portable(a: &[f32], b: &[f32]) -> f32 {
    let (a_chunks, a_rest) = a.as_chunks::<16>();
    let (b_chunks, b_rest) = b.as_chunks::<16>();
    let mut lanes = [0.0f32; 16];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..16 {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    lanes.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

vectorized! {
    /// `y += factor · x`.
    pub(crate) fn add_scaled(y: &mut [f32], factor: f32, x: &[f32]) = add_scaled_body
}

#[inline(always)]
fn add_scaled_body(y: &mut [f32], factor: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += factor * x;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_agrees_with_f64_sums_for_every_length() {
        for len in [0, 1, 7, 16, 31, 64, 65, 200] {
            let a: Vec<f32> = (0..len).map(|i| ((i * 37 % 100) as f32 - 50.0) / 50.0).collect();
            let b: Vec<f32> = (0..len).map(|i| ((i * 53 % 90) as f32 - 45.0) / 45.0).collect();
            let expected: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            for simd in Simd::available() {
                // At most 200 products of at most 1.
                assert!((f64::from(dot(simd, &a, &b)) - expected).abs() < 1e-5, "{simd:?} of {len}");
                let mut y = a.clone();
                add_scaled(simd, &mut y, 0.5, &b);
                assert!(y.iter().zip(a.iter().zip(&b)).all(|(y, (a, b))| (y - (a + 0.5 * b)).abs() < 1e-6));
            }
        }
    }
}
