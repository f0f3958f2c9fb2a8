//! Q4_0: scale (f16), then 16 bytes: the low half of byte i is value i, the high half value i + 16. Value = scale · (code − 8).

use half::f16;

use super::{BlockFormat, read_f16};

/// The format; see the module.
pub(super) struct Q4_0;

impl BlockFormat for Q4_0 {
    const BLOCK_LEN: usize = 32;
    const BLOCK_BYTES: usize = 18;

    fn dequantize_block(block: &[u8], values: &mut [f32]) {
        let scale = read_f16(block).to_f32();
        for (i, &pair) in block[2..18].iter().enumerate() {
            values[i] = f32::from(i16::from(pair & 15) - 8) * scale;
            values[i + 16] = f32::from(i16::from(pair >> 4) - 8) * scale;
        }
    }

    fn quantize_block(values: &[f32], block: &mut [u8]) {
        // The value of largest magnitude gets code 0, the only one that reaches 8 steps.
        let extreme = values.iter().fold(0.0f32, |extreme, &v| if v.abs() > extreme.abs() { v } else { extreme });
        let scale = extreme / -8.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        let code = |value: f32| ((value * inverse + 8.5) as i8).clamp(0, 15) as u8;
        for i in 0..16 {
            block[2 + i] = code(values[i]) | code(values[i + 16]) << 4;
        }
    }

    fn is_finite(block: &[u8]) -> bool {
        read_f16(block).is_finite()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_magnitude_is_exact_and_the_halves_are_not_mixed_up() {
        let mut values = [0.0f32; 32];
        values[0] = 4.0; // scale -0.5
        values[16] = 1.0;
        values[31] = -3.5;
        let mut block = [0; 18];
        Q4_0::quantize_block(&values, &mut block);
        assert_eq!(block[..4], [0x00, 0xb8, 0x60, 0x88]);
        assert_eq!(block[17], 0xf8);
        let mut back = [0.0; 32];
        Q4_0::dequantize_block(&block, &mut back);
        assert_eq!(back, values);
    }
}
