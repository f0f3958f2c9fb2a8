//! BF16: the upper two bytes of a single, little-endian, rounded to nearest, ties to even.

use half::bf16;

use super::BlockFormat;

/// The format; see the module.
pub(super) struct Bf16;

impl BlockFormat for Bf16 {
    const BLOCK_LEN: usize = 1;
    const BLOCK_BYTES: usize = 2;

    fn dequantize_block(block: &[u8], values: &mut [f32]) {
        values[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32();
    }

    fn quantize_block(values: &[f32], block: &mut [u8]) {
        block.copy_from_slice(&bf16::from_f32(values[0]).to_le_bytes());
    }

    fn is_finite(block: &[u8]) -> bool {
        bf16::from_le_bytes([block[0], block[1]]).is_finite()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_third_keeps_seven_bits() {
        let (mut block, mut value) = ([0; 2], [0.0]);
        Bf16::quantize_block(&[1.0 / 3.0], &mut block);
        assert_eq!(block, [0xab, 0x3e]);
        Bf16::dequantize_block(&block, &mut value);
        assert_eq!(value, [0.333_984_38]);
    }
}
