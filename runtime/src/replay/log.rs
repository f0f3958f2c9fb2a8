//! The replay log as its users see it: open, append, read, remove, verify. `append.rs` holds the writing half.

use alloc::vec;
use alloc::vec::Vec;

use super::append::STAGING_BYTES;
use super::config::{LogConfig, RecordInfo, RecoveryReport, VerifyReport};
use super::error::ReplayError;
use super::index::{Entry, Index, TaskCount};
use super::record::{Pending, Record};
use super::recover::{Active, Place, Scan, Slot, scan};
use super::repair::repair_frame;
use super::segment::{FRAME_HEADER_BYTES, FrameHeader, Geometry};
use crate::example::{ContentKey, Example, ExampleId, check_task};
use crate::storage::Medium;

/// An append-only log of examples on a [`Medium`].
///
/// Every acknowledged record survives a power cut at any moment, and what is recovered is exactly a prefix of what was
/// appended; [`crate::storage`] states what the medium must promise for that. One index entry per live record is
/// kept in RAM: 32 bytes and about 24 for the lookup by key.
#[derive(Debug)]
pub struct ReplayLog<M> {
    pub(super) medium: M,
    pub(super) geometry: Geometry,
    pub(super) tokenizer_digest: [u8; 32],
    pub(super) index: Index,
    pub(super) slots: Vec<Slot>,
    pub(super) active: Option<Active>,
    /// The id after the last record.
    pub(super) end_id: u64,
    /// The id of the next record.
    pub(super) next_id: u64,
    /// CRC of the last frame.
    pub(super) chain: u32,
    /// Of the newest segment.
    pub(super) last_sequence: u64,
    pub(super) used_bytes: u64,
    /// A write failed, so what is on the medium is unknown until it is scanned again.
    pub(super) is_dead: bool,
    pub(super) staging: heapless::Vec<u8, STAGING_BYTES>,
}

impl<M: Medium> ReplayLog<M> {
    /// Opens the log on `medium`, or an empty one if nothing was ever stored there.
    ///
    /// Reads every segment in use and writes nothing; what a cut left behind is reported, and stepped over or erased
    /// by the first append. The medium is synced first, so that what is found now is still there later.
    ///
    /// # Errors
    /// [`ReplayError::OtherTokenizer`], [`ReplayError::OtherGeometry`] and [`ReplayError::NewerFormat`] if the log was
    /// made differently; [`ReplayError::Unsuitable`] if the medium's sizes cannot carry a log;
    /// [`ReplayError::Medium`] if it cannot be read. Damage is no error but part of the report.
    pub fn open(mut medium: M, config: &LogConfig) -> Result<(Self, RecoveryReport), ReplayError<M::Error>> {
        let geometry = config.geometry(&medium)?;
        let doing = "sync";
        let synced = medium.sync();
        synced.map_err(|source| ReplayError::Medium { doing, source })?;
        let mut index = Index::default();
        let scan = scan(&mut medium, &geometry, &config.tokenizer_digest, &mut |place, record| {
            admit(&mut index, place, record)
        })?;
        for dropped in &scan.dropped {
            log::warn!("replay log: {dropped}");
        }
        let report = RecoveryReport {
            records: index.entries().len() as u64,
            frames: scan.frames,
            segments: used(&scan.slots),
            read_bytes: scan.read_bytes,
            dropped: scan.dropped,
        };
        let log = Self {
            medium,
            geometry,
            tokenizer_digest: config.tokenizer_digest,
            index,
            slots: scan.slots,
            active: scan.active,
            end_id: scan.end_id,
            next_id: scan.next_id,
            chain: scan.chain,
            last_sequence: scan.last_sequence,
            used_bytes: scan.used_bytes,
            is_dead: false,
            staging: heapless::Vec::new(),
        };
        Ok((log, report))
    }

    /// Stores `examples` and returns their ids, in order, when all of them survive a power cut.
    ///
    /// Examples that fit one segment together are stored whole or not at all, with one sync. More than that takes one
    /// sync per segment, and a cut, or an error other than `TooLarge`, may leave the first segments' worth stored.
    ///
    /// # Errors
    /// [`ReplayError::TooLarge`] and [`ReplayError::Full`] before anything is written;
    /// [`ReplayError::WriteFailed`], after which the log only reads. A disk that fills up in the middle of several
    /// segments is `Full` too.
    pub fn append(&mut self, examples: &[Example]) -> Result<Vec<ExampleId>, ReplayError<M::Error>> {
        let records: Vec<Pending<'_>> = examples.iter().map(Pending::Example).collect();
        let first = self.commit(&records)?;
        Ok((first..self.next_id).map(ExampleId).collect())
    }

    /// Removes a record: it is gone from every list at once and stays so. Its bytes stay on flash until the segment
    /// they lie in is compacted.
    ///
    /// # Errors
    /// [`ReplayError::NotFound`]; else as [`ReplayLog::append`], a removal takes room too.
    pub fn remove(&mut self, id: ExampleId) -> Result<(), ReplayError<M::Error>> {
        self.remove_all(&[id])
    }

    /// Removes several records with one sync.
    ///
    /// # Errors
    /// As [`ReplayLog::remove`]; if one id is not found, none is removed.
    pub fn remove_all(&mut self, ids: &[ExampleId]) -> Result<(), ReplayError<M::Error>> {
        if let Some(&id) = ids.iter().find(|id| self.index.get(id.0).is_none()) {
            return Err(ReplayError::NotFound { id });
        }
        let records: Vec<Pending<'_>> = ids.iter().copied().map(Pending::Tombstone).collect();
        self.commit(&records).map(drop)
    }

    /// Reads one example, decoding no other frame than its own.
    ///
    /// # Errors
    /// [`ReplayError::NotFound`]; [`ReplayError::Damaged`] if its frame no longer matches its checksum;
    /// [`ReplayError::Undecodable`]; [`ReplayError::Medium`].
    pub fn read(&mut self, id: ExampleId) -> Result<Example, ReplayError<M::Error>> {
        let found = self.index.get(id.0).copied();
        let entry = found.ok_or(ReplayError::NotFound { id })?;
        let offset = entry.frame_at;
        let damaged = ReplayError::Damaged { id, offset };
        let frame = self.read_frame(offset)?;
        let repaired;
        let parsed = match FrameHeader::parse(&frame) {
            Some(parsed) => Some(parsed),
            None => {
                repaired = self.repaired_frame(offset)?;
                repaired.as_deref().and_then(FrameHeader::parse)
            }
        };
        let Some((_, payload)) = parsed else {
            return Err(damaged);
        };
        let record = payload.get(entry.record_at as usize..);
        let Some((record, _)) = record.and_then(Record::take) else {
            return Err(damaged);
        };
        let example = record.to_example().map_err(|source| ReplayError::Undecodable { id, source })?;
        if example.key().0 != entry.key {
            return Err(damaged);
        }
        Ok(example)
    }

    /// Reads every byte of every segment in use, decodes every record and compares with the index.
    ///
    /// # Errors
    /// [`ReplayError::Medium`] if something cannot be read. What is wrong is in the report.
    pub fn verify(&mut self) -> Result<VerifyReport, ReplayError<M::Error>> {
        let mut examples = 0;
        let mut found = Index::default();
        let mut seen = |place: Place, record: Record<'_>| {
            let is_sound = match record {
                Record::Example { .. } => record.to_example().is_ok(),
                Record::Tombstone { .. } => true,
            };
            examples += u64::from(is_sound && matches!(record, Record::Example { .. }));
            is_sound && admit(&mut found, place, record)
        };
        let Scan { slots, frames, read_bytes, dropped, .. } =
            scan(&mut self.medium, &self.geometry, &self.tokenizer_digest, &mut seen)?;
        let lost = |entry: &&Entry| {
            let place = |entry: &Entry| (entry.frame_at, entry.record_at, entry.key);
            found.get(entry.id).map(place) != Some(place(entry))
        };
        let missing = self.index.entries().iter().filter(lost);
        Ok(VerifyReport {
            segments: used(&slots),
            frames,
            examples,
            read_bytes,
            problems: dropped,
            missing: missing.map(|entry| ExampleId(entry.id)).collect(),
        })
    }

    /// Whether an example with this content is stored, and under which id (the lowest, if there are several).
    pub fn contains(&self, key: ContentKey) -> Option<ExampleId> {
        self.index.with_key(key)
    }

    /// What is known of one record without reading it.
    pub fn info(&self, id: ExampleId) -> Option<RecordInfo<'_>> {
        self.index.get(id.0).map(|entry| self.describe(entry))
    }

    /// All live records, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = RecordInfo<'_>> + ExactSizeIterator {
        self.index.entries().iter().map(|entry| self.describe(entry))
    }

    /// Live records.
    pub fn len(&self) -> usize {
        self.index.entries().len()
    }

    /// Whether no record is live.
    pub fn is_empty(&self) -> bool {
        self.index.entries().is_empty()
    }

    /// The tasks that have live records, in the order they first appeared.
    pub fn tasks(&self) -> impl Iterator<Item = &TaskCount> {
        self.index.tasks()
    }

    /// Tokens of all live records.
    pub fn tokens(&self) -> u64 {
        self.index.tokens()
    }

    /// Bytes that hold segment headers and frames, those of removed records included.
    pub fn bytes(&self) -> u64 {
        self.used_bytes
    }

    /// Bytes the medium can hold in whole segments.
    pub fn capacity_bytes(&self) -> u64 {
        u64::from(self.geometry.segments) * u64::from(self.geometry.segment_bytes)
    }

    /// Largest encoded record this log can hold, in bytes.
    pub fn record_limit_bytes(&self) -> u32 {
        self.geometry.payload_limit_bytes()
    }

    /// The id the next record will get. Above every id ever acknowledged.
    pub fn next_id(&self) -> ExampleId {
        ExampleId(self.next_id)
    }

    /// The medium.
    pub fn medium(&self) -> &M {
        &self.medium
    }

    /// Closes the log and hands the medium back. Nothing is pending: every append was synced.
    pub fn into_medium(self) -> M {
        self.medium
    }

    fn describe<'a>(&'a self, entry: &Entry) -> RecordInfo<'a> {
        RecordInfo {
            id: ExampleId(entry.id),
            task: self.index.task_of(entry),
            tokens: entry.tokens,
            key: ContentKey(entry.key),
        }
    }

    /// Reads the frame at `offset`, padding included, without trusting a length beyond its segment.
    fn read_frame(&mut self, offset: u32) -> Result<Vec<u8>, ReplayError<M::Error>> {
        let medium = &mut self.medium;
        let mut read = |bytes: &mut [u8]| {
            let doing = "read a frame";
            let done = medium.read(offset, bytes);
            done.map_err(|source| ReplayError::Medium { doing, source })
        };
        let lead = self.geometry.pad(FRAME_HEADER_BYTES as u32) as usize;
        let mut frame = vec![0; lead];
        read(&mut frame)?;
        let payload_bytes = u32::from_le_bytes([frame[4], frame[5], frame[6], frame[7]]);
        let room = self.geometry.segment_bytes - offset % self.geometry.segment_bytes;
        if payload_bytes <= room - FRAME_HEADER_BYTES as u32 {
            frame.resize(self.geometry.frame_bytes(payload_bytes) as usize, 0);
            read(&mut frame)?;
        }
        Ok(frame)
    }

    /// The frame at `offset` with one flipped bit put right, of which even the length may be wrong.
    fn repaired_frame(&mut self, offset: u32) -> Result<Option<Vec<u8>>, ReplayError<M::Error>> {
        let segment_bytes = self.geometry.segment_bytes;
        let mut rest = vec![0; (segment_bytes - offset % segment_bytes) as usize];
        let doing = "read a segment";
        let read = self.medium.read(offset, &mut rest);
        read.map_err(|source| ReplayError::Medium { doing, source })?;
        Ok(repair_frame(&rest))
    }
}

fn used(slots: &[Slot]) -> u32 {
    slots.iter().filter(|&&slot| slot == Slot::Used).count() as u32
}

/// Takes a record into the index; says whether it could be used.
fn admit(index: &mut Index, place: Place, record: Record<'_>) -> bool {
    match record {
        Record::Example { key, task, token_count, .. } => {
            if check_task(task).is_err() {
                return false;
            }
            index.insert(place.id, ContentKey(key), task, token_count, place.frame_at, place.record_at);
        }
        Record::Tombstone { id } => {
            index.remove(id);
        }
    }
    true
}
