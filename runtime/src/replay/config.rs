//! How a log is laid out, and what it reports of itself.

use alloc::vec::Vec;

use super::error::{Dropped, ReplayError};
use super::seal::Seal;
use super::segment::{FRAME_HEADER_BYTES, Geometry, MAX_WORD_BYTES, MIN_WORD_BYTES, SEGMENT_HEADER_BYTES};
use crate::example::ExampleId;
use crate::storage::Medium;

/// How a log lies on its medium.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LogConfig {
    /// SHA-256 of the tokenizer whose ids the examples hold. A log is opened with the digest it was made with.
    pub tokenizer_digest: [u8; 32],
    /// Erase blocks per segment. More than one where erase blocks are smaller than the longest example.
    pub blocks_per_segment: u32,
    /// Bytes the log may take, rounded down to whole segments, three at least; `None` for the whole medium. Segments that
    /// are in use already are kept.
    pub quota_bytes: Option<u64>,
    /// Which records make room when the quota is reached and every record is live; `None` refuses what is new.
    pub eviction: Option<Eviction>,
    /// With a key what is written is encrypted, and what was encrypted with it can be read.
    pub seal: Option<Seal>,
}

/// Which records make room for new ones in a full log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Eviction {
    /// Those that were stored first.
    Oldest,
    /// Those with the lowest score, those without a score before all others; of equals the oldest.
    LowestScore,
}

impl LogConfig {
    /// Segments of one erase block, the whole medium, no eviction, no encryption.
    pub fn new(tokenizer_digest: [u8; 32]) -> Self {
        Self { tokenizer_digest, blocks_per_segment: 1, quota_bytes: None, eviction: None, seal: None }
    }

    /// Segments that may be in use at once.
    pub(super) fn quota_segments(&self, geometry: &Geometry) -> u32 {
        let quota = self.quota_bytes.map(|bytes| bytes / u64::from(geometry.segment_bytes));
        let quota = quota.map_or(u32::MAX, |segments| segments.clamp(3, u64::from(u32::MAX)) as u32);
        quota.min(geometry.segments)
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
            segment_bytes.filter(|&bytes| bytes <= capacity && bytes >= SEGMENT_HEADER_BYTES + 3 * FRAME_HEADER_BYTES)
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
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct RecordInfo<'a> {
    /// Its id.
    pub id: ExampleId,
    /// Its task tag.
    pub task: &'a str,
    /// Its tokens, prompt, answer and end token.
    pub tokens: u32,
    /// The score it was stored with, in nats, to 1/128 nat.
    pub score: Option<f32>,
}

/// What the place of one segment holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SegmentState {
    /// Nothing; may be started.
    Free,
    /// Remains of an interrupted write or compaction, which are erased before it is started.
    Remains,
    /// A segment that a recovery had to cut off; erased when nothing else is free.
    CutOff,
    /// Whole frames under a header that cannot be read; never erased by itself.
    Damaged,
    /// Part of the log.
    Used,
}

/// The place of one segment, for statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SegmentInfo {
    /// What it holds.
    pub state: SegmentState,
    /// Times it was erased since the log is there, as far as that is known.
    pub erases: u32,
    /// Bytes of headers and frames, 0 unless it is used.
    pub used_bytes: u32,
    /// The share of them that belongs to live records, estimated by their tokens.
    pub live_bytes: u32,
}

/// Which segments are rewritten.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Compact<'a> {
    /// Those whose records are mostly removed, as long as that frees whole segments.
    Wasteful,
    /// Those that hold frames of these records, which were removed before: then no byte of them is on the medium, in
    /// plain or encrypted. Remains of interrupted writes and segments that were cut off are erased too.
    Holding(&'a [ExampleId]),
    /// All of them.
    All,
}

/// What a compaction did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CompactReport {
    /// Segments erased.
    pub segments_freed: u32,
    /// Segments written.
    pub segments_written: u32,
    /// Bytes in use before, headers included.
    pub bytes_before: u64,
    /// Bytes in use after.
    pub bytes_after: u64,
    /// Records that were copied.
    pub records_moved: u64,
}
