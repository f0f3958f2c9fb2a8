//! Packed rows to f32, with the processor's instructions where they help. The values equal [`crate::quant`]'s scalar reference bit for bit.

use super::simd::Simd;
use crate::quant::TensorType;

/// Dequantizes consecutive blocks of one row: `bytes` holds exactly the blocks of `out.len()` weights.
pub(crate) fn dequantize_row(simd: Simd, tensor_type: TensorType, bytes: &[u8], out: &mut [f32]) {
    debug_assert_eq!(Some(bytes.len()), tensor_type.packed_bytes(out.len()));
    match simd {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Simd` names a set only after it was detected.
        Simd::Avx512 => unsafe {
            match tensor_type {
                TensorType::Q4_1 => x86::q4_1(bytes, out),
                TensorType::Q4_0 => x86::q4_0(bytes, out),
                TensorType::Q8_0 => x86::q8_0(bytes, out),
                _ => tensor_type.dequantize(bytes, out),
            }
        },
        _ => tensor_type.dequantize(bytes, out),
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// An f16 at the head of `bytes`, in every lane.
    #[target_feature(enable = "avx512f,f16c")]
    #[inline]
    fn splat_f16(bytes: [u8; 2]) -> __m512 {
        let bits = _mm_cvtsi32_si128(i32::from(u16::from_le_bytes(bytes)));
        _mm512_broadcastss_ps(_mm_cvtph_ps(bits))
    }

    /// The 32 quants of a 4-bit block: low nibbles are weights 0 to 15, high nibbles 16 to 31.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn nibbles(quants: &[u8; 16]) -> [__m512; 2] {
        // SAFETY: 16 bytes are there; the load is unaligned.
        let packed = unsafe { _mm_loadu_si128(quants.as_ptr().cast()) };
        let mask = _mm_set1_epi8(0x0f);
        let low = _mm_and_si128(packed, mask);
        let high = _mm_and_si128(_mm_srli_epi16::<4>(packed), mask);
        [_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(low)), _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(high))]
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn store(out: &mut [f32; 32], low: __m512, high: __m512) {
        // SAFETY: 32 floats are there; the stores are unaligned.
        unsafe {
            _mm512_storeu_ps(out.as_mut_ptr(), low);
            _mm512_storeu_ps(out.as_mut_ptr().add(16), high);
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,f16c")]
    pub(super) fn q4_1(bytes: &[u8], out: &mut [f32]) {
        for (block, out) in bytes.as_chunks::<20>().0.iter().zip(out.as_chunks_mut::<32>().0) {
            let [d0, d1, m0, m1, quants @ ..] = block;
            let (scale, minimum) = (splat_f16([*d0, *d1]), splat_f16([*m0, *m1]));
            let [low, high] = nibbles(quants);
            // Multiply and add round apart, as the reference does.
            store(
                out,
                _mm512_add_ps(_mm512_mul_ps(low, scale), minimum),
                _mm512_add_ps(_mm512_mul_ps(high, scale), minimum),
            );
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,f16c")]
    pub(super) fn q4_0(bytes: &[u8], out: &mut [f32]) {
        let centre = _mm512_set1_ps(8.0);
        for (block, out) in bytes.as_chunks::<18>().0.iter().zip(out.as_chunks_mut::<32>().0) {
            let [d0, d1, quants @ ..] = block;
            let scale = splat_f16([*d0, *d1]);
            let [low, high] = nibbles(quants);
            store(
                out,
                _mm512_mul_ps(_mm512_sub_ps(low, centre), scale),
                _mm512_mul_ps(_mm512_sub_ps(high, centre), scale),
            );
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,f16c")]
    pub(super) fn q8_0(bytes: &[u8], out: &mut [f32]) {
        for (block, out) in bytes.as_chunks::<34>().0.iter().zip(out.as_chunks_mut::<32>().0) {
            let [d0, d1, quants @ ..] = block;
            let scale = splat_f16([*d0, *d1]);
            // SAFETY: a block has 32 quants; the loads are unaligned.
            let (low, high) =
                unsafe { (_mm_loadu_si128(quants.as_ptr().cast()), _mm_loadu_si128(quants.as_ptr().add(16).cast())) };
            let low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(low));
            let high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(high));
            store(out, _mm512_mul_ps(low, scale), _mm512_mul_ps(high, scale));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_equals_the_scalar_reference_bit_for_bit() {
        let weights: Vec<f32> = (0..96).map(|i| ((i * 7919 % 1013) as f32 - 500.0) / 333.0).collect();
        for &tensor_type in TensorType::ALL {
            let mut bytes = vec![0; tensor_type.packed_bytes(weights.len()).expect("whole blocks")];
            tensor_type.quantize(&weights, &mut bytes);
            let mut expected = vec![0.0; weights.len()];
            tensor_type.dequantize(&bytes, &mut expected);
            for simd in Simd::available() {
                let mut found = vec![0.0; weights.len()];
                dequantize_row(simd, tensor_type, &bytes, &mut found);
                assert_eq!(found, expected, "{simd:?} {tensor_type:?}");
            }
        }
    }
}
