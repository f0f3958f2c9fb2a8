//! F32: four bytes a value, little-endian.

use super::BlockFormat;

/// The format; see the module.
pub(super) struct F32;

impl BlockFormat for F32 {
    const BLOCK_LEN: usize = 1;
    const BLOCK_BYTES: usize = 4;

    fn dequantize_block(block: &[u8], values: &mut [f32]) {
        values[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    }

    fn quantize_block(values: &[f32], block: &mut [u8]) {
        block.copy_from_slice(&values[0].to_le_bytes());
    }

    fn is_finite(block: &[u8]) -> bool {
        f32::from_le_bytes([block[0], block[1], block[2], block[3]]).is_finite()
    }
}
