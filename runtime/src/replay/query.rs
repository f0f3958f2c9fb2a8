//! What can be asked of a log about its records and segments.

use alloc::vec::Vec;

use super::config::{RecordInfo, SegmentInfo, SegmentState};
use super::error::ReplayError;
use super::index::{Entry, TaskCount};
use super::log::ReplayLog;
use super::recover::Slot;
use crate::example::{ContentKey, ExampleId};
use crate::storage::Medium;

impl<M: Medium> ReplayLog<M> {
    /// The first example with this content, stored or staged.
    ///
    /// The index knows 16 bits of each content key, so the records that share them are read: about one in 65,536.
    ///
    /// # Errors
    /// [`ReplayError::Medium`]. A record that is damaged is not this one.
    pub fn contains(&mut self, key: ContentKey) -> Result<Option<ExampleId>, ReplayError<M::Error>> {
        let mut least_id = 0;
        while let Some(entry) = self.index.with_tag(key.0 as u16, least_id) {
            let id = ExampleId(entry.id);
            match self.read(id) {
                Ok(example) if example.key() == key => return Ok(Some(id)),
                Ok(_) | Err(ReplayError::Damaged { .. } | ReplayError::Undecodable { .. }) => {}
                Err(error) => return Err(error),
            }
            least_id = entry.id + 1;
        }
        Ok(self.staged.with_key(key).map(|nth| ExampleId(self.next_id + nth)))
    }

    /// The live records whose interaction happened before `time_unix_s`, in seconds since 1970 (UTC). Reads every frame
    /// that has live records, but decodes no tokens.
    ///
    /// # Errors
    /// [`ReplayError::Damaged`] names a record whose time cannot be read; [`ReplayError::Medium`].
    pub fn ids_before(&mut self, time_unix_s: u64) -> Result<Vec<ExampleId>, ReplayError<M::Error>> {
        let mut ids = Vec::new();
        let mut next = self.index.range(0..u64::MAX).next();
        while let Some(first) = next {
            let damaged = ReplayError::Damaged { id: ExampleId(first.id), offset: first.frame_at };
            let times = self.frame_times(first.frame_at)?.ok_or(damaged)?;
            let mut last_id = first.id;
            for entry in self.index.range(first.id..u64::MAX).take_while(|entry| entry.frame_at == first.frame_at) {
                if times.get(usize::from(entry.nth)).is_some_and(|&time| time < time_unix_s) {
                    ids.push(ExampleId(entry.id));
                }
                last_id = entry.id;
            }
            next = self.index.range(last_id + 1..u64::MAX).next();
        }
        Ok(ids)
    }

    /// Counts one more replay of each of these records, as far as they are stored.
    ///
    /// A record cannot be changed where it lies, so the count is written when compaction copies it, and until then lives in RAM
    /// and is lost when the log is closed: a lower bound, in some 16 bytes for each record that was replayed.
    pub fn count_replays(&mut self, ids: &[ExampleId]) {
        for id in ids.iter().filter(|id| self.index.get(id.0).is_some()) {
            let count = self.replayed.entry(id.0).or_default();
            *count = count.saturating_add(1);
        }
    }

    /// How often a record was replayed, as far as that was kept; see [`ReplayLog::count_replays`]. Reads its frame, but
    /// decodes no tokens.
    ///
    /// # Errors
    /// [`ReplayError::NotFound`]; [`ReplayError::Damaged`]; [`ReplayError::Medium`].
    pub fn replays(&mut self, id: ExampleId) -> Result<u32, ReplayError<M::Error>> {
        let Some(Entry { frame_at, nth, .. }) = self.index.get(id.0) else {
            let is_staged = id.0.checked_sub(self.next_id).is_some_and(|nth| self.staged.get(nth).is_some());
            return if is_staged { Ok(0) } else { Err(ReplayError::NotFound { id }) };
        };
        let stored = self.with_frame(frame_at, |opened| {
            let (heads, _) = opened.heads()?;
            heads.examples.get(usize::from(nth)).map(|head| head.replays)
        })?;
        let stored = stored.ok_or(ReplayError::Damaged { id, offset: frame_at })?;
        Ok(self.replays_with(id.0, stored))
    }

    /// The count of a record that was written with `stored`.
    pub(super) fn replays_with(&self, id: u64, stored: u32) -> u32 {
        stored.saturating_add(self.replayed.get(&id).copied().unwrap_or(0))
    }

    /// What is known of one record without reading it.
    pub fn info(&self, id: ExampleId) -> Option<RecordInfo<'_>> {
        self.index.get(id.0).map(|entry| self.describe(entry))
    }

    /// All live records, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = RecordInfo<'_>> {
        self.index.iter().map(|entry| self.describe(entry))
    }

    /// Live records.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether no record is live.
    pub fn is_empty(&self) -> bool {
        self.index.len() == 0
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

    /// Bytes the log may take: its quota or its medium, in whole segments.
    pub fn capacity_bytes(&self) -> u64 {
        u64::from(self.quota_segments) * u64::from(self.geometry.segment_bytes)
    }

    /// Largest encoded record this log can hold, in bytes.
    pub fn record_limit_bytes(&self) -> u32 {
        self.geometry.payload_limit_bytes()
    }

    /// The id the next record will get. Above every id ever acknowledged.
    pub fn next_id(&self) -> ExampleId {
        ExampleId(self.staged_end().saturating_add(self.unnoted.len() as u64))
    }

    /// The places of all segments, by offset.
    pub fn segments(&self) -> impl ExactSizeIterator<Item = SegmentInfo> {
        (0..self.geometry.segments).map(|slot| self.describe_slot(slot))
    }

    /// The medium.
    pub fn medium(&self) -> &M {
        &self.medium
    }

    fn describe(&self, entry: Entry) -> RecordInfo<'_> {
        RecordInfo {
            id: ExampleId(entry.id),
            task: self.index.task_of(&entry),
            tokens: u32::from(entry.tokens),
            score: entry.score.nats(),
        }
    }

    fn describe_slot(&self, slot: u32) -> SegmentInfo {
        let at = slot as usize;
        let state = match self.slots[at] {
            Slot::Erased => SegmentState::Free,
            Slot::Remains => SegmentState::Remains,
            Slot::Orphan => SegmentState::CutOff,
            Slot::Damaged => SegmentState::Damaged,
            Slot::Used => SegmentState::Used,
        };
        let segment = self.segments.iter().find(|segment| segment.slot == slot);
        let used_bytes = segment.map_or(0, |segment| segment.used_bytes);
        SegmentInfo { state, erases: self.wear[at], used_bytes, live_bytes: self.live_bytes(slot, used_bytes) }
    }
}
