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
                TensorType::Q4_1 => avx512::q4_1(bytes, out),
                TensorType::Q4_0 => avx512::q4_0(bytes, out),
                TensorType::Q8_0 => avx512::q8_0(bytes, out),
                _ => tensor_type.dequantize(bytes, out),
            }
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Simd::Avx2 => unsafe {
            match tensor_type {
                TensorType::Q4_1 => avx2::q4_1(bytes, out),
                TensorType::Q4_0 => avx2::q4_0(bytes, out),
                TensorType::Q8_0 => avx2::q8_0(bytes, out),
                _ => tensor_type.dequantize(bytes, out),
            }
        },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        Simd::Neon => unsafe {
            match tensor_type {
                TensorType::Q4_1 => aarch64::q4_1(bytes, out),
                TensorType::Q4_0 => aarch64::q4_0(bytes, out),
                TensorType::Q8_0 => aarch64::q8_0(bytes, out),
                _ => tensor_type.dequantize(bytes, out),
            }
        },
        _ => tensor_type.dequantize(bytes, out),
    }
}

#[cfg(target_arch = "aarch64")]
mod aarch64 {
    use std::arch::aarch64::*;

    use half::f16;

    /// The 32 quants of a 4-bit block: low nibbles are weights 0 to 15, high nibbles 16 to 31.
    #[target_feature(enable = "neon")]
    #[inline]
    fn nibbles(quants: &[u8; 16]) -> [int8x16_t; 2] {
        // SAFETY: 16 bytes are there.
        let packed = unsafe { vld1q_u8(quants.as_ptr()) };
        [vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(0x0f))), vreinterpretq_s8_u8(vshrq_n_u8::<4>(packed))]
    }

    /// Sixteen signed bytes as floats.
    #[target_feature(enable = "neon")]
    #[inline]
    fn floats(bytes: int8x16_t) -> [float32x4_t; 4] {
        let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
        [vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)]
            .map(|quants| vcvtq_f32_s32(quants))
    }

    /// Multiply and add round apart, as the reference does.
    #[target_feature(enable = "neon")]
    #[inline]
    fn store(out: &mut [f32; 32], quants: [int8x16_t; 2], scale: f32, minimum: f32) {
        for (out, quants) in out.as_chunks_mut::<4>().0.iter_mut().zip(quants.into_iter().flat_map(|half| floats(half)))
        {
            let value = vaddq_f32(vmulq_n_f32(quants, scale), vdupq_n_f32(minimum));
            // SAFETY: four floats are there.
            unsafe { vst1q_f32(out.as_mut_ptr(), value) };
        }
    }

    #[target_feature(enable = "neon")]
    pub(super) fn q4_1(bytes: &[u8], out: &mut [f32]) {
        for (block, out) in bytes.as_chunks::<20>().0.iter().zip(out.as_chunks_mut::<32>().0) {
            let [d0, d1, m0, m1, quants @ ..] = block;
            let (scale, minimum) = (f16::from_le_bytes([*d0, *d1]), f16::from_le_bytes([*m0, *m1]));
            store(out, nibbles(quants), scale.to_f32(), minimum.to_f32());
        }
    }

    #[target_feature(enable = "neon")]
    pub(super) fn q4_0(bytes: &[u8], out: &mut [f32]) {
        for (block, out) in bytes.as_chunks::<18>().0.iter().zip(out.as_chunks_mut::<32>().0) {
            let [d0, d1, quants @ ..] = block;
            let centred = nibbles(quants).map(|quants| vsubq_s8(quants, vdupq_n_s8(8)));
            // Adding -0 changes no product, not even one of -0.
            store(out, centred, f16::from_le_bytes([*d0, *d1]).to_f32(), -0.0);
        }
    }

    #[target_feature(enable = "neon")]
    pub(super) fn q8_0(bytes: &[u8], out: &mut [f32]) {
        for (block, out) in bytes.as_chunks::<34>().0.iter().zip(out.as_chunks_mut::<32>().0) {
            let [d0, d1, quants @ ..] = block;
            // SAFETY: a block has 32 quants.
            let quants = unsafe { [vld1q_s8(quants.as_ptr().cast()), vld1q_s8(quants.as_ptr().add(16).cast())] };
            store(out, quants, f16::from_le_bytes([*d0, *d1]).to_f32(), -0.0);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    /// An f16 at the head of `bytes`, in every lane.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn splat_f16(bytes: [u8; 2]) -> __m256 {
        let bits = _mm_cvtsi32_si128(i32::from(u16::from_le_bytes(bytes)));
        _mm256_broadcastss_ps(_mm_cvtph_ps(bits))
    }

    /// Writes the values of 32 signed quants, 16 in each vector. Multiply and add round apart, as the reference does.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn store(out: &mut [f32; 32], quants: [__m128i; 2], scale: __m256, minimum: Option<__m256>) {
        for (out, quants) in out.as_chunks_mut::<16>().0.iter_mut().zip(quants) {
            let halves = [quants, _mm_unpackhi_epi64(quants, quants)];
            for (out, half) in out.as_chunks_mut::<8>().0.iter_mut().zip(halves) {
                let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(half)), scale);
                let value = minimum.map_or(scaled, |minimum| _mm256_add_ps(scaled, minimum));
                // SAFETY: eight floats are there; the store is unaligned.
                unsafe { _mm256_storeu_ps(out.as_mut_ptr(), value) };
            }
        }
    }

    /// The 32 quants of a 4-bit block: low nibbles are weights 0 to 15, high nibbles 16 to 31.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn nibbles(quants: &[u8; 16]) -> [__m128i; 2] {
        // SAFETY: 16 bytes are there; the load is unaligned.
        let packed = unsafe { _mm_loadu_si128(quants.as_ptr().cast()) };
        let mask = _mm_set1_epi8(0x0f);
        [_mm_and_si128(packed, mask), _mm_and_si128(_mm_srli_epi16::<4>(packed), mask)]
    }

    #[target_feature(enable = "avx2,f16c")]
    pub(super) fn q4_1(bytes: &[u8], out: &mut [f32]) {
        for (block, out) in bytes.as_chunks::<20>().0.iter().zip(out.as_chunks_mut::<32>().0) {
            let [d0, d1, m0, m1, quants @ ..] = block;
            store(out, nibbles(quants), splat_f16([*d0, *d1]), Some(splat_f16([*m0, *m1])));
        }
    }

    #[target_feature(enable = "avx2,f16c")]
    pub(super) fn q4_0(bytes: &[u8], out: &mut [f32]) {
        let centre = _mm_set1_epi8(8);
        for (block, out) in bytes.as_chunks::<18>().0.iter().zip(out.as_chunks_mut::<32>().0) {
            let [d0, d1, quants @ ..] = block;
            let [low, high] = nibbles(quants);
            let centred = [_mm_sub_epi8(low, centre), _mm_sub_epi8(high, centre)];
            store(out, centred, splat_f16([*d0, *d1]), None);
        }
    }

    #[target_feature(enable = "avx2,f16c")]
    pub(super) fn q8_0(bytes: &[u8], out: &mut [f32]) {
        for (block, out) in bytes.as_chunks::<34>().0.iter().zip(out.as_chunks_mut::<32>().0) {
            let [d0, d1, quants @ ..] = block;
            // SAFETY: a block has 32 quants; the loads are unaligned.
            let quants =
                unsafe { [_mm_loadu_si128(quants.as_ptr().cast()), _mm_loadu_si128(quants.as_ptr().add(16).cast())] };
            store(out, quants, splat_f16([*d0, *d1]), None);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
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
