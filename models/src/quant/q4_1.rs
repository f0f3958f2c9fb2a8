//! Q4_1: scale (f16), minimum (f16), then 16 bytes: the low half of byte i is value i, the high half value i + 16.
//! Value = scale · code + minimum, the product rounded before the sum.

use half::f16;

use super::{BlockFormat, read_f16};

/// The format; see the module.
pub(super) struct Q4_1;

impl BlockFormat for Q4_1 {
    const BLOCK_LEN: usize = 32;
    const BLOCK_BYTES: usize = 20;

    fn dequantize_block(block: &[u8], values: &mut [f32]) {
        let (scale, minimum) = (read_f16(block).to_f32(), read_f16(&block[2..]).to_f32());
        for (i, &pair) in block[4..20].iter().enumerate() {
            values[i] = f32::from(pair & 15) * scale + minimum;
            values[i + 16] = f32::from(pair >> 4) * scale + minimum;
        }
    }

    fn quantize_block(values: &[f32], block: &mut [u8]) {
        let minimum = values.iter().copied().fold(f32::INFINITY, f32::min);
        let maximum = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let scale = (maximum - minimum) / 15.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        block[2..4].copy_from_slice(&f16::from_f32(minimum).to_le_bytes());
        let code = |value: f32| (((value - minimum) * inverse + 0.5) as i8).clamp(0, 15) as u8;
        for i in 0..16 {
            block[4 + i] = code(values[i]) | code(values[i + 16]) << 4;
        }
    }

    fn is_finite(block: &[u8]) -> bool {
        read_f16(block).is_finite() && read_f16(&block[2..]).is_finite()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minimum_and_maximum_are_exact_and_the_halves_are_not_mixed_up() {
        let mut values = [-1.0f32; 32]; // minimum -1, maximum 6.5: scale 0.5
        values[1] = 6.5;
        values[16] = 0.5;
        let mut block = [0; 20];
        Q4_1::quantize_block(&values, &mut block);
        assert_eq!(block[..6], [0x00, 0x38, 0x00, 0xbc, 0x30, 0x0f]);
        let mut back = [0.0; 32];
        Q4_1::dequantize_block(&block, &mut back);
        assert_eq!(back, values);
    }
}
