//! F16: two bytes a value, little-endian, rounded to nearest, ties to even.

use half::f16;

use super::{BlockFormat, read_f16};

/// The format; see the module.
pub(super) struct F16;

impl BlockFormat for F16 {
    const BLOCK_LEN: usize = 1;
    const BLOCK_BYTES: usize = 2;

    fn dequantize_block(block: &[u8], values: &mut [f32]) {
        values[0] = read_f16(block).to_f32();
    }

    fn quantize_block(values: &[f32], block: &mut [u8]) {
        block.copy_from_slice(&f16::from_f32(values[0]).to_le_bytes());
    }

    fn is_finite(block: &[u8]) -> bool {
        read_f16(block).is_finite()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_third_is_the_nearest_half() {
        let (mut block, mut value) = ([0; 2], [0.0]);
        F16::quantize_block(&[1.0 / 3.0], &mut block);
        assert_eq!(block, [0x55, 0x35]);
        F16::dequantize_block(&block, &mut value);
        assert_eq!(value, [0.333_251_95]);
        assert!(!F16::is_finite(&[0x00, 0x7c]));
    }
}
