//! Packed weights: how each tensor type of GGUF stores its values, and a matrix of such rows.
//!
//! The code here is scalar and exact: it is what the kernels are tested against. A value is what `dequantize` gives in f32.

mod bfloat16;
mod float16;
mod float32;
mod packed;
mod q4_0;
mod q4_1;
mod q8_0;
#[cfg(test)]
mod reference_tests;

pub use packed::{PackedMatrix, WeightBytes};

/// One way to pack floats: fixed-size blocks, each on its own.
pub trait BlockFormat {
    /// Values in one block.
    const BLOCK_LEN: usize;
    /// Bytes of one block.
    const BLOCK_BYTES: usize;

    /// Unpacks one block of [`BLOCK_BYTES`](Self::BLOCK_BYTES) into [`BLOCK_LEN`](Self::BLOCK_LEN) values.
    fn dequantize_block(block: &[u8], values: &mut [f32]);

    /// Packs [`BLOCK_LEN`](Self::BLOCK_LEN) values into one block, rounded as llama.cpp's reference code does.
    fn quantize_block(values: &[f32], block: &mut [u8]);

    /// Whether every value of the block is finite.
    fn is_finite(block: &[u8]) -> bool;
}

/// Makes [`TensorType`] and its dispatch from one line per type: variant, GGUF's type number, name, format.
macro_rules! tensor_types {
    ($($variant:ident = $number:literal, $name:literal, $format:ty, $doc:literal;)+) => {
        /// How the values of a tensor are packed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum TensorType {
            $(#[doc = $doc] $variant,)+
        }

        impl TensorType {
            /// Every type that is computed with.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// From GGUF's type number; `None` for a type that is not computed with here.
            pub fn from_gguf(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)+
                    _ => None,
                }
            }

            /// GGUF's type number.
            pub fn gguf_number(self) -> u32 {
                match self { $(Self::$variant => $number,)+ }
            }

            /// The name that model files carry, as `Q4_1`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// Values in one block.
            pub fn block_len(self) -> usize {
                match self { $(Self::$variant => <$format>::BLOCK_LEN,)+ }
            }

            /// Bytes of one block.
            pub fn block_bytes(self) -> usize {
                match self { $(Self::$variant => <$format>::BLOCK_BYTES,)+ }
            }

            /// Unpacks whole blocks.
            ///
            /// # Panics
            /// If `bytes` is not exactly the blocks of `values`.
            pub fn dequantize(self, bytes: &[u8], values: &mut [f32]) {
                self.check(bytes.len(), values.len());
                match self { $(Self::$variant => dequantize::<$format>(bytes, values),)+ }
            }

            /// Packs whole blocks, rounded as llama.cpp's reference code does.
            ///
            /// # Panics
            /// If `bytes` is not exactly the blocks of `values`.
            pub fn quantize(self, values: &[f32], bytes: &mut [u8]) {
                self.check(bytes.len(), values.len());
                match self { $(Self::$variant => quantize::<$format>(values, bytes),)+ }
            }

            /// The first block with a value that is infinite or not a number.
            pub fn first_not_finite(self, bytes: &[u8]) -> Option<usize> {
                let at = |is_finite: fn(&[u8]) -> bool| {
                    bytes.chunks_exact(self.block_bytes()).position(|block| !is_finite(block))
                };
                match self { $(Self::$variant => at(<$format>::is_finite),)+ }
            }
        }
    };
}

tensor_types! {
    F32 = 0, "F32", float32::F32, "IEEE single precision.";
    F16 = 1, "F16", float16::F16, "IEEE half precision.";
    Q4_0 = 2, "Q4_0", q4_0::Q4_0, "32 values of 4 bits, one scale.";
    Q4_1 = 3, "Q4_1", q4_1::Q4_1, "32 values of 4 bits, a scale and a minimum.";
    Q8_0 = 8, "Q8_0", q8_0::Q8_0, "32 values of 8 bits, one scale.";
    BF16 = 30, "BF16", bfloat16::Bf16, "The upper half of single precision.";
}

impl TensorType {
    /// Bytes that `len` values take; `None` if they are not whole blocks.
    pub fn packed_bytes(self, len: usize) -> Option<usize> {
        if len.is_multiple_of(self.block_len()) {
            (len / self.block_len()).checked_mul(self.block_bytes())
        } else {
            None
        }
    }

    fn check(self, bytes: usize, values: usize) {
        assert_eq!(self.packed_bytes(values), Some(bytes), "{values} values of {} in {bytes} bytes", self.name());
    }
}

impl std::fmt::Display for TensorType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

fn dequantize<F: BlockFormat>(bytes: &[u8], values: &mut [f32]) {
    for (block, values) in bytes.chunks_exact(F::BLOCK_BYTES).zip(values.chunks_exact_mut(F::BLOCK_LEN)) {
        F::dequantize_block(block, values);
    }
}

fn quantize<F: BlockFormat>(values: &[f32], bytes: &mut [u8]) {
    for (values, block) in values.chunks_exact(F::BLOCK_LEN).zip(bytes.chunks_exact_mut(F::BLOCK_BYTES)) {
        F::quantize_block(values, block);
    }
}

/// The half-precision number in the first two bytes of a block.
fn read_f16(block: &[u8]) -> half::f16 {
    half::f16::from_le_bytes([block[0], block[1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest error of one value, as a share of the block's largest magnitude: half a step, plus what the scale loses
    /// to half precision over the largest multiplier, plus half an ulp of f16 for the floats.
    fn error_bound(tensor_type: TensorType) -> f32 {
        match tensor_type {
            TensorType::F32 => 0.0,
            TensorType::F16 => 1.0 / 2048.0,
            TensorType::BF16 => 1.0 / 256.0,
            TensorType::Q8_0 => 0.5 / 127.0 + 1.0 / 2048.0,
            // The value opposite to the largest can need +8, the code ends at +7: a whole step.
            TensorType::Q4_0 => 1.0 / 8.0 + 1.0 / 2048.0,
            // The range can be twice the largest magnitude.
            TensorType::Q4_1 => 1.0 / 15.0 + 2.0 / 1024.0,
        }
    }

    fn noise(len: usize) -> Vec<f32> {
        let mut state = 0x2545_f491_u32;
        let mut next = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }

    #[test]
    fn a_round_trip_stays_within_the_error_bound_of_the_type() {
        let values = noise(32 * 64);
        for &tensor_type in TensorType::ALL {
            let mut bytes = vec![0; tensor_type.packed_bytes(values.len()).unwrap()];
            tensor_type.quantize(&values, &mut bytes);
            let mut back = vec![0.0; values.len()];
            tensor_type.dequantize(&bytes, &mut back);
            for (block, back) in values.chunks(32).zip(back.chunks(32)) {
                let largest = block.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                for (a, b) in block.iter().zip(back) {
                    assert!((a - b).abs() <= error_bound(tensor_type) * largest, "{tensor_type}: {a} became {b}");
                }
            }
            assert_eq!(tensor_type.first_not_finite(&bytes), None);
        }
    }

    #[test]
    fn packing_what_was_unpacked_changes_nothing_in_the_unpacked_values_of_floats_and_q8_0() {
        for &tensor_type in &[TensorType::F32, TensorType::F16, TensorType::BF16, TensorType::Q8_0] {
            let values = noise(256);
            let mut bytes = vec![0; tensor_type.packed_bytes(256).unwrap()];
            let (mut once, mut twice) = (vec![0.0; 256], vec![0.0; 256]);
            tensor_type.quantize(&values, &mut bytes);
            tensor_type.dequantize(&bytes, &mut once);
            tensor_type.quantize(&once, &mut bytes);
            tensor_type.dequantize(&bytes, &mut twice);
            let close = once.iter().zip(&twice).all(|(a, b)| (a - b).abs() <= 1e-3 * a.abs());
            assert!(close, "{tensor_type}");
        }
    }

    #[test]
    fn numbers_are_those_of_gguf_and_every_type_is_listed_once() {
        for &tensor_type in TensorType::ALL {
            assert_eq!(TensorType::from_gguf(tensor_type.gguf_number()), Some(tensor_type));
        }
        assert_eq!(TensorType::from_gguf(12), None);
        assert_eq!(TensorType::Q4_1.packed_bytes(64), Some(40));
        assert_eq!(TensorType::Q4_1.packed_bytes(65), None);
    }

    #[test]
    fn a_block_of_zeros_stays_zero() {
        for &tensor_type in TensorType::ALL {
            let mut bytes = vec![0xff; tensor_type.packed_bytes(32).unwrap()];
            tensor_type.quantize(&[0.0; 32], &mut bytes);
            let mut back = [1.0; 32];
            tensor_type.dequantize(&bytes, &mut back);
            assert_eq!(back, [0.0; 32], "{tensor_type}");
        }
    }
}
