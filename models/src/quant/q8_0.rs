//! Q8_0: scale (f16), then 32 signed bytes. Value = scale · code.

use half::f16;

use super::{BlockFormat, read_f16};

/// The format; see the module.
pub(super) struct Q8_0;

impl BlockFormat for Q8_0 {
    const BLOCK_LEN: usize = 32;
    const BLOCK_BYTES: usize = 34;

    fn dequantize_block(block: &[u8], values: &mut [f32]) {
        let scale = read_f16(block).to_f32();
        for (value, &code) in values.iter_mut().zip(&block[2..]) {
            *value = f32::from(code as i8) * scale;
        }
    }

    fn quantize_block(values: &[f32], block: &mut [u8]) {
        let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        let scale = largest / 127.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        for (code, value) in block[2..].iter_mut().zip(values) {
            *code = (value * inverse).round() as i8 as u8;
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
    fn codes_are_counted_in_steps_of_the_largest_over_127() {
        let mut values = [0.0f32; 32];
        values[0] = -63.5; // scale 0.5
        values[1] = 10.0;
        values[31] = 0.25; // half a step rounds away from zero
        let mut block = [0; 34];
        Q8_0::quantize_block(&values, &mut block);
        assert_eq!(block[..4], [0x00, 0x38, 0x81, 20]);
        assert_eq!(block[33], 1);
        let mut back = [0.0; 32];
        Q8_0::dequantize_block(&block, &mut back);
        assert_eq!((back[0], back[1], back[31]), (-63.5, 10.0, 0.5));
    }
}
