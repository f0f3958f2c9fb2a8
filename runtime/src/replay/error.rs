//! What can go wrong in the replay log, and what recovery had to leave behind.

use core::fmt;

use super::record::RecordError;
use crate::example::ExampleId;
use crate::hex::Hex;

/// An error of the replay log over a medium whose error is `E`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError<E: core::error::Error + 'static> {
    /// The medium failed while the log was opened or read; nothing was changed.
    #[error("the replay medium failed to {doing}")]
    Medium {
        /// What was asked of it.
        doing: &'static str,
        /// The medium's error.
        #[source]
        source: E,
    },
    /// A program, an erase or a sync failed, so what was in flight may or may not be stored. Acknowledged records are
    /// safe and readable; the log takes nothing more until it is reopened.
    #[error("the replay log failed to {doing}; reopen it to go on")]
    WriteFailed {
        /// What was asked of the medium.
        doing: &'static str,
        /// The medium's error.
        #[source]
        source: E,
    },
    /// An earlier write failed, see [`ReplayError::WriteFailed`].
    #[error("an earlier write to the replay log failed; reopen it to go on")]
    Dead,
    /// No room is left although removed records were compacted away. Space comes back when more records are removed.
    #[error("the replay log is full: {needed_bytes} bytes do not fit what is left of {capacity_bytes} bytes")]
    Full {
        /// Bytes of frames that were to be written.
        needed_bytes: u64,
        /// Bytes the log may take, or the disk had room for.
        capacity_bytes: u64,
    },
    /// An example can never be stored on this medium, however empty.
    #[error("example {position} takes {bytes} bytes, a segment of this log holds {limit_bytes}")]
    TooLarge {
        /// Its position in the slice given to append.
        position: usize,
        /// Its encoded size in bytes.
        bytes: u32,
        /// Largest record this log can hold.
        limit_bytes: u32,
    },
    /// No record of this id is in the log.
    #[error("no record {id} in the replay log")]
    NotFound {
        /// The id asked for.
        id: ExampleId,
    },
    /// The frame that holds a record changed after it was written.
    #[error("record {id} at offset {offset} is damaged: its frame fails the checksum")]
    Damaged {
        /// The record.
        id: ExampleId,
        /// Byte offset of its frame.
        offset: u32,
    },
    /// A record whose frame is sound cannot be decoded.
    #[error("record {id} cannot be decoded")]
    Undecodable {
        /// The record.
        id: ExampleId,
        /// What is wrong with it.
        #[source]
        source: RecordError,
    },
    /// The log was written by a newer version of this library.
    #[error(
        "the segment at offset {offset} has replay format {found}, this version reads up to {supported}; \
         use the version that wrote it"
    )]
    NewerFormat {
        /// Byte offset of the segment.
        offset: u32,
        /// The format version it carries.
        found: u16,
        /// The newest version this library reads.
        supported: u16,
    },
    /// The log holds token ids of another tokenizer.
    #[error("the replay log holds tokens of tokenizer {}, not of {}", Hex(found), Hex(expected))]
    OtherTokenizer {
        /// Digest of the tokenizer the log was to be opened with.
        expected: [u8; 32],
        /// Digest in the log.
        found: [u8; 32],
    },
    /// The log was written with other sizes than the medium and the configuration have now.
    #[error(
        "the replay log has {segment_bytes}-byte segments of {word_bytes}-byte words, \
         which does not fit this medium and configuration"
    )]
    OtherGeometry {
        /// Segment size the log was written with.
        segment_bytes: u32,
        /// Word size the log was written with.
        word_bytes: u32,
    },
    /// The log is encrypted and was opened without a key.
    #[error("the replay log is encrypted; open it with its key")]
    KeyRequired,
    /// The log is encrypted with another key.
    #[error("the replay log is encrypted with another key")]
    WrongKey,
    /// The medium cannot carry a log.
    #[error("this medium cannot carry a replay log: {reason}")]
    Unsuitable {
        /// The rule it breaks.
        reason: &'static str,
    },
    /// The log has used up its ids.
    #[error("the replay log has used up its record ids")]
    IdsExhausted,
}

/// Something that recovery could not read, or that [`verify`](super::ReplayLog::verify) found wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Dropped {
    /// Byte offset on the medium where it starts.
    pub offset: u32,
    /// Bytes that cannot be used.
    pub bytes: u32,
    /// Acknowledged records lost with them; `None` if that cannot be known.
    pub records: Option<u64>,
    /// Why.
    pub reason: DropReason,
}

/// Why bytes of the log were dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DropReason {
    /// The log ends in a frame that was never finished: a cut in the middle of an append. Nothing acknowledged is
    /// lost by it.
    TornTail,
    /// A segment was started and its header never finished: a cut. Nothing acknowledged is lost by it.
    TornHeader,
    /// A compaction was cut short before its copies were whole, or before what they replace was erased. Nothing is lost
    /// by it.
    TornCompaction,
    /// Something was acknowledged and is not there any more: a sync lied, or more than a bit decayed. The log is cut
    /// there, so that it stays a prefix; the bytes behind the cut stay on the medium until their place is needed.
    Lost,
    /// A segment does not carry on where the one before it ends; the log is cut there.
    Unlinked,
    /// One flipped bit of a frame. It is put right each time it is read.
    DamagedFrame,
    /// The header of a segment fails its checksum. One flipped bit is put right and no record is lost; else the
    /// log is cut there, see [`DropReason::Lost`].
    DamagedHeader,
    /// Records that an earlier recovery had to give up. Said again each time, so that a list with gaps explains itself.
    LostBefore,
    /// A record inside a sound frame is of no kind this version can decode.
    Undecodable,
    /// The filling between two frames is not what was written. No record is touched by it.
    DamagedPadding,
}

impl DropReason {
    /// Whether an interrupted append explains it, so that nothing acknowledged is lost.
    pub fn is_interruption(self) -> bool {
        matches!(self, Self::TornTail | Self::TornHeader | Self::TornCompaction)
    }
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.reason {
            DropReason::TornTail => "an append that was cut short",
            DropReason::TornHeader => "a segment start that was cut short",
            DropReason::TornCompaction => "a compaction that was cut short",
            DropReason::Lost => "data that was stored and is gone",
            DropReason::Unlinked => "a segment that does not carry on from the one before",
            DropReason::DamagedFrame => "a flipped bit in a frame, put right",
            DropReason::DamagedHeader => "a damaged segment header",
            DropReason::LostBefore => "records given up by an earlier recovery",
            DropReason::Undecodable => "records this version cannot decode",
            DropReason::DamagedPadding => "damaged filling between frames",
        };
        write!(f, "offset {}: {what}, {} bytes", self.offset, self.bytes)?;
        match self.records {
            Some(0) => Ok(()),
            Some(records) => write!(f, ", {records} records lost"),
            None if self.reason.is_interruption() => Ok(()),
            None => f.write_str(", an unknown number of records lost"),
        }
    }
}
