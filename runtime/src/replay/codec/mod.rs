#![doc = include_str!("FORMAT.md")]

use alloc::vec::Vec;

mod frame;
mod range;
mod statistics;
mod table;
#[cfg(test)]
mod tests;
mod weights;

use frame::FrameModel;
use range::{Decoder, Encoder};
pub(crate) use statistics::TokenStatistics;
pub(crate) use table::TokenTable;

/// Most tokens that one frame may hold.
pub(crate) const MAX_FRAME_TOKENS: usize = 1 << 17;

impl TokenTable {
    /// Codes the sequences of one frame in one stream. Together they hold at most [`MAX_FRAME_TOKENS`] tokens.
    pub(crate) fn encode<'a>(&self, sequences: impl Iterator<Item = &'a [u32]> + Clone) -> Vec<u8> {
        let tokens = sequences.clone().map(<[u32]>::len).sum();
        debug_assert!(tokens <= MAX_FRAME_TOKENS);
        let mut model = FrameModel::new(self, tokens);
        let mut encoder = Encoder::new();
        for sequence in sequences {
            model.begin();
            for &id in sequence {
                model.pass(&mut encoder, Some(id));
            }
        }
        encoder.finish()
    }

    /// Decodes sequences of the given lengths, in order, and hands each to `sink`, which says whether to go on.
    ///
    /// `None` if the lengths are more than a frame may hold. Bytes that were not coded with this table and these lengths
    /// give other tokens, never a panic; checksum and content tags tell.
    pub(crate) fn decode(
        &self,
        bytes: &[u8],
        lengths: impl Iterator<Item = u32> + Clone,
        mut sink: impl FnMut(&[u32]) -> bool,
    ) -> Option<()> {
        let tokens = lengths.clone().try_fold(0_usize, |sum, length| sum.checked_add(length as usize))?;
        if tokens > MAX_FRAME_TOKENS {
            return None;
        }
        let mut model = FrameModel::new(self, tokens);
        let mut decoder = Decoder::new(bytes);
        let mut sequence = Vec::new();
        for length in lengths {
            model.begin();
            sequence.clear();
            sequence.extend((0..length).map(|_| model.pass(&mut decoder, None)));
            if !sink(&sequence) {
                break;
            }
        }
        Some(())
    }
}
