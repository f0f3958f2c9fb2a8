//! How a log is laid out, and what it reports of itself.

use alloc::vec::Vec;

use super::error::{Dropped, ReplayError};
use super::segment::{FRAME_HEADER_BYTES, Geometry, MAX_WORD_BYTES, MIN_WORD_BYTES, SEGMENT_HEADER_BYTES};
use crate::example::{ContentKey, ExampleId};
use crate::storage::Medium;

/// How a log lies on its medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogConfig {
    /// SHA-256 of the tokenizer whose ids the examples hold. A log is opened with the digest it was made with.
    pub tokenizer_digest: [u8; 32],
    /// Erase blocks per segment. More than one where erase blocks are smaller than the longest example.
    pub blocks_per_segment: u32,
}

impl LogConfig {
    /// Segments of one erase block.
    pub fn new(tokenizer_digest: [u8; 32]) -> Self {
        Self { tokenizer_digest, blocks_per_segment: 1 }
    }

    pub(super) fn geometry<M: Medium>(&self, medium: &M) -> Result<Geometry, ReplayError<M::Error>> {
        let unsuitable = |reason| Err(ReplayError::Unsuitable { reason });
        let capacity = medium.capacity();
        if !M::WRITE_SIZE.is_power_of_two() || M::WRITE_SIZE > MAX_WORD_BYTES {
            return unsuitable("its word must be a power of two of at most 32 bytes");
        }
        if M::READ_SIZE == 0 || !M::WRITE_SIZE.is_multiple_of(M::READ_SIZE) {
            return unsuitable("its read size must divide its word");
        }
        let word_bytes = M::WRITE_SIZE.max(MIN_WORD_BYTES);
        if !M::ERASE_SIZE.is_multiple_of(word_bytes) || u32::try_from(capacity).is_err() {
            return unsuitable("its blocks must be whole words and its size below 4 GiB");
        }
        let segment_bytes = M::ERASE_SIZE.checked_mul(self.blocks_per_segment as usize);
        let Some(segment_bytes) =
            segment_bytes.filter(|&bytes| bytes <= capacity && bytes >= SEGMENT_HEADER_BYTES + 2 * FRAME_HEADER_BYTES)
        else {
            return unsuitable("a segment must hold a header and a frame and fit the medium");
        };
        Ok(Geometry {
            word_bytes: word_bytes as u32,
            segment_bytes: segment_bytes as u32,
            segments: (capacity / segment_bytes) as u32,
        })
    }
}

/// What was found when a log was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// Live records.
    pub records: u64,
    /// Sound frames.
    pub frames: u64,
    /// Segments in use.
    pub segments: u32,
    /// Bytes read to find out.
    pub read_bytes: u64,
    /// What had to be left behind; empty after a clean end.
    pub dropped: Vec<Dropped>,
}

/// What reading every byte of a log showed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Segments in use.
    pub segments: u32,
    /// Sound frames.
    pub frames: u64,
    /// Examples decoded and found right, removed ones included.
    pub examples: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Everything that is not as it was written, interrupted appends included.
    pub problems: Vec<Dropped>,
    /// Live records that are no longer where they were when the log was opened.
    pub missing: Vec<ExampleId>,
}

impl VerifyReport {
    /// Whether everything that was ever acknowledged is there. What an interrupted append left does not count.
    pub fn is_ok(&self) -> bool {
        self.missing.is_empty() && self.problems.iter().all(|p| p.reason.is_interruption())
    }
}

/// What can be said of a record without reading flash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordInfo<'a> {
    /// Its id.
    pub id: ExampleId,
    /// Its task tag.
    pub task: &'a str,
    /// Its tokens, prompt, answer and end token.
    pub tokens: u32,
    /// The hash of its content.
    pub key: ContentKey,
}
