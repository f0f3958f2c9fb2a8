//! Other ways to write down token ids or their text, each record by itself or sixteen at once.

use mynah::example::Example;

/// Level of zstd that trades the most time for size within its usual range.
const ZSTD_LEVEL: i32 = 19;
/// Bytes of a trained dictionary: what zstd's own tool makes.
const DICTIONARY_BYTES: usize = 112_640;

/// Bytes of ids with seven bits a byte.
pub fn leb128_bytes(ids: &[u32]) -> usize {
    ids.iter().map(|id| (32 - id.leading_zeros()).max(1).div_ceil(7) as usize).sum()
}

/// Ids with seven bits a byte, least first: what a store without compression keeps of a record.
pub fn leb128(example: &Example) -> Vec<u8> {
    let mut bytes = Vec::new();
    for &id in example.tokens() {
        let mut rest = id;
        while rest >= 0x80 {
            bytes.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        bytes.push(rest as u8);
    }
    bytes
}

/// Bits of one id in a packing that no vocabulary up to 131,072 needs more of.
pub const PACKED_BITS: f64 = 17.0;

/// A dictionary of `texts` for [`zstd_bytes`].
///
/// # Errors
/// If there is too little text.
pub fn dictionary(texts: &[String]) -> anyhow::Result<Vec<u8>> {
    Ok(zstd::dict::from_samples(texts, DICTIONARY_BYTES)?)
}

/// Bytes of all texts, each compressed by itself; a dictionary is not counted.
///
/// # Errors
/// If zstd fails.
pub fn zstd_bytes(texts: &[String], dictionary: &[u8]) -> anyhow::Result<usize> {
    let mut compressor = zstd::bulk::Compressor::with_dictionary(ZSTD_LEVEL, dictionary)?;
    let mut bytes = 0;
    for text in texts {
        bytes += compressor.compress(text.as_bytes())?.len();
    }
    Ok(bytes)
}

/// Bytes of all texts, each compressed by itself.
pub fn lz4_bytes(texts: &[String]) -> usize {
    texts.iter().map(|text| lz4_flex::block::compress_prepend_size(text.as_bytes()).len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_take_a_byte_for_each_seven_bits() -> anyhow::Result<()> {
        let ids = [0, 127, 128, 16_383, 16_384, 49_151];
        assert_eq!(leb128_bytes(&ids), 1 + 1 + 2 + 2 + 3 + 3);
        let example = Example::from_tokens(ids.to_vec(), 2, "t", 0)?;
        assert_eq!(leb128(&example), [0, 0x7f, 0x80, 1, 0xff, 0x7f, 0x80, 0x80, 1, 0xff, 0xff, 2]);
        Ok(())
    }
}
