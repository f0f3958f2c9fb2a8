//! The replay log as its users see it: open, append, read, remove, verify. `append.rs` and `compact.rs` write.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use super::append::{Records, WRITE_BYTES};
use super::batch::{Head, Heads, Item, TableRef};
use super::codec::TokenTable;
use super::coding::{Coding, InForce};
use super::config::{Eviction, LogConfig, RecordInfo, RecoveryReport, SegmentInfo, SegmentState, VerifyReport};
use super::error::{DropReason, Dropped, ReplayError};
use super::frame::{Opened, StoredFrame};
use super::index::{Entry, Index, Listed, TaskCount};
use super::record::{Record, RecordError};
use super::recover::{Active, Scan, SeenFrame, Segment, Slot, scan};
use super::repair::repair_frame;
use super::route::Place;
use super::score::Score;
use super::seal::Sealer;
use super::segment::{FRAME_HEADER_BYTES, Geometry};
use super::stage::Staged;
use super::tables::TableCache;
use crate::example::{ContentKey, Example, ExampleId};
use crate::storage::Medium;

/// What a record weighs beside its tokens when the live share of a segment is estimated, in tokens.
const RECORD_WEIGHT: u64 = 5;
/// What a removal weighs.
const REMOVAL_WEIGHT: u64 = 2;
/// Token bytes of the worst id in the worst table, for a bound on what an example takes.
const TOKEN_LIMIT_BYTES: usize = 8;
/// What an example takes at most beside its tokens.
const HEAD_LIMIT_BYTES: usize = 160;

/// An append-only log of examples on a [`Medium`].
///
/// Every acknowledged record survives a power cut at any moment, and what is recovered is exactly a prefix of what was
/// appended; [`crate::storage`] states what the medium must promise for that. One index entry per live record is
/// kept in RAM, 22 bytes in chunks that are filled to three quarters at least.
///
/// **What a cut may lose:** examples that were [staged](ReplayLog::stage) and not flushed, at most 4 KiB of them, and
/// nothing that [`append`](ReplayLog::append), [`flush`](ReplayLog::flush), [`remove`](ReplayLog::remove) or
/// [`compact`](ReplayLog::compact) returned `Ok` for.
#[derive(Debug)]
pub struct ReplayLog<M> {
    pub(super) medium: M,
    pub(super) geometry: Geometry,
    /// Segments that may be in use at once.
    pub(super) quota_segments: u32,
    pub(super) eviction: Option<Eviction>,
    pub(super) tokenizer_digest: [u8; 32],
    pub(super) sealer: Option<Sealer>,
    pub(super) index: Index,
    pub(super) slots: Vec<Slot>,
    /// Erase counts of the slots.
    pub(super) wear: Vec<u32>,
    /// What the records in the slots weigh.
    pub(super) usage: Vec<Usage>,
    /// In the order of the log.
    pub(super) segments: Vec<Segment>,
    pub(super) active: Option<Active>,
    /// The id after the last record.
    pub(super) end_id: u64,
    /// The id of the next record.
    pub(super) next_id: u64,
    /// CRC of the last frame.
    pub(super) chain: u32,
    /// Of the newest segment.
    pub(super) last_sequence: u64,
    /// Segments up to this sequence were there when the log was opened, so they have survived a cut if there was one.
    pub(super) durable_sequence: u64,
    /// When the log was opened, frames were on the medium that are not part of it.
    pub(super) has_stale: bool,
    /// Where segments that were cut off would join the log.
    pub(super) loose_ends: Vec<Place>,
    /// Records that are gone although no note in the log says so, ascending. They could come back behind a sync that lies,
    /// so the next thing that is written is a note of their removal.
    pub(super) unnoted: Vec<u64>,
    /// How often records were replayed since they were written, of those that were.
    pub(super) replayed: BTreeMap<u64, u32>,
    pub(super) used_bytes: u64,
    /// A write failed, so what is on the medium is unknown until it is scanned again.
    pub(super) is_dead: bool,
    pub(super) staged: Staged,
    /// `None` until something is written.
    pub(super) coding: Option<Coding>,
    pub(super) tables: TableCache,
    pub(super) out: heapless::Vec<u8, WRITE_BYTES>,
}

/// What the records in a segment weigh: tokens, and a bit for each record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Usage {
    pub(super) total: u64,
    pub(super) live: u64,
}

impl<M: Medium> ReplayLog<M> {
    /// Opens the log on `medium`, or an empty one if nothing was ever stored there.
    ///
    /// Reads every segment in use and writes nothing; what a cut left behind is reported, and stepped over or erased
    /// by the first append. The medium is synced first, so that what is found now is still there later.
    ///
    /// # Errors
    /// [`ReplayError::OtherTokenizer`], [`ReplayError::OtherGeometry`] and [`ReplayError::NewerFormat`] if the log was
    /// made differently; [`ReplayError::KeyRequired`] and [`ReplayError::WrongKey`] if it is encrypted;
    /// [`ReplayError::Unsuitable`] if the medium's sizes cannot carry a log; [`ReplayError::Medium`] if it cannot be
    /// read. Damage is no error but part of the report.
    pub fn open(mut medium: M, config: &LogConfig) -> Result<(Self, RecoveryReport), ReplayError<M::Error>> {
        let geometry = config.geometry(&medium)?;
        let doing = "sync";
        let synced = medium.sync();
        synced.map_err(|source| ReplayError::Medium { doing, source })?;
        let sealer = config.seal.as_ref().map(Sealer::new);
        let mut found = Found::new(&geometry);
        let scan = scan(&mut medium, &geometry, &config.tokenizer_digest, sealer.as_ref(), &mut |frame| {
            found.admit(&frame);
        })?;
        for dropped in &scan.dropped {
            log::warn!("replay log: {dropped}");
        }
        let mut unnoted = scan.rival_ids;
        unnoted.retain(|&id| found.index.get(id).is_none());
        if !unnoted.is_empty() {
            let mut noted = Vec::new();
            self::scan(&mut medium, &geometry, &config.tokenizer_digest, sealer.as_ref(), &mut |frame| {
                noted.extend(frame.heads.removed.iter().filter(|id| unnoted.binary_search(id).is_ok()));
            })?;
            noted.sort_unstable();
            unnoted.retain(|id| noted.binary_search(id).is_err());
        }
        let report = RecoveryReport {
            records: found.index.len() as u64,
            frames: scan.frames,
            segments: scan.segments.len() as u32,
            read_bytes: scan.read_bytes,
            dropped: scan.dropped,
        };
        let log = Self {
            medium,
            geometry,
            quota_segments: config.quota_segments(&geometry),
            eviction: config.eviction,
            tokenizer_digest: config.tokenizer_digest,
            sealer,
            index: found.index,
            slots: scan.slots,
            wear: known_or_mean(&scan.wear),
            usage: found.usage,
            segments: scan.segments,
            active: scan.active,
            end_id: scan.end_id,
            next_id: scan.next_id,
            chain: scan.chain,
            last_sequence: scan.last_sequence,
            durable_sequence: scan.last_sequence,
            has_stale: scan.has_stale,
            loose_ends: scan.loose_ends,
            unnoted,
            used_bytes: scan.used_bytes,
            replayed: BTreeMap::new(),
            is_dead: false,
            staged: Staged::default(),
            coding: None,
            tables: TableCache::default(),
            out: heapless::Vec::new(),
        };
        Ok((log, report))
    }

    /// Stores `examples` and returns their ids, in order, when all of them survive a power cut. What is staged is stored
    /// with them, before them.
    ///
    /// Examples of at most 8,192 tokens together that fit one segment are stored whole or not at all, with one sync. More
    /// than that takes one sync for each part, and a cut, or an error other than `TooLarge`, may leave the first parts
    /// stored.
    ///
    /// # Errors
    /// [`ReplayError::TooLarge`] and [`ReplayError::Full`] before anything of it is written;
    /// [`ReplayError::WriteFailed`], after which the log only reads. A disk that fills up in the middle of several
    /// segments is `Full` too.
    pub fn append(&mut self, examples: &[Example]) -> Result<Vec<ExampleId>, ReplayError<M::Error>> {
        self.append_all(examples.iter().map(|example| (example, Score::NONE)))
    }

    /// As [`ReplayLog::append`], each with a score in nats, kept to 1/128 nat between 0 and 1023.
    ///
    /// # Errors
    /// As [`ReplayLog::append`].
    pub fn append_scored(&mut self, examples: &[(&Example, f32)]) -> Result<Vec<ExampleId>, ReplayError<M::Error>> {
        self.append_all(examples.iter().map(|&(example, nats)| (example, Score::new(nats))))
    }

    fn append_all<'a>(
        &mut self,
        examples: impl ExactSizeIterator<Item = (&'a Example, Score)>,
    ) -> Result<Vec<ExampleId>, ReplayError<M::Error>> {
        self.note_removals()?;
        let first = self.next_id().0;
        let end = first.checked_add(examples.len() as u64).ok_or(ReplayError::IdsExhausted)?;
        let items = examples.zip(first..).map(|((example, score), id)| item(id, example, score)).collect();
        self.commit_with_staged(items, end, &[])?;
        Ok((first..end).map(ExampleId).collect())
    }

    /// Takes an example in without writing it yet, and without touching the allocator unless that makes it flush, or a
    /// recovery left notes of removals to be written first.
    ///
    /// The example has an id, can be read, found by content and removed, and is listed once it is flushed. **Until then a
    /// power cut loses it.** The buffer holds 4 KiB, some forty short examples; it is flushed when the next one does not
    /// fit, with whatever is written anyway, and by [`ReplayLog::flush`]. An example that does not fit the buffer is
    /// stored at once.
    ///
    /// # Errors
    /// As [`ReplayLog::append`], if it has to write; then the example is not taken in.
    pub fn stage(&mut self, example: &Example) -> Result<ExampleId, ReplayError<M::Error>> {
        self.stage_with(example, Score::NONE)
    }

    /// As [`ReplayLog::stage`], with a score as in [`ReplayLog::append_scored`].
    ///
    /// # Errors
    /// As [`ReplayLog::stage`].
    pub fn stage_scored(&mut self, example: &Example, nats: f32) -> Result<ExampleId, ReplayError<M::Error>> {
        self.stage_with(example, Score::new(nats))
    }

    fn stage_with(&mut self, example: &Example, score: Score) -> Result<ExampleId, ReplayError<M::Error>> {
        self.check_alive()?;
        self.note_removals()?;
        let id = self.next_id();
        let limit_bytes = TOKEN_LIMIT_BYTES * example.tokens().len() + HEAD_LIMIT_BYTES;
        let surely_fits = limit_bytes <= self.geometry.payload_limit_bytes() as usize;
        if surely_fits && id.0 < u64::MAX && self.staged.push(example, score).is_some() {
            return Ok(id);
        }
        self.flush()?;
        if surely_fits && id.0 < u64::MAX && self.staged.push(example, score).is_some() {
            return Ok(id);
        }
        self.append_all([(example, score)].into_iter())?;
        Ok(id)
    }

    /// Stores what is staged, with one sync if it fits a segment together. On return it survives a power cut.
    ///
    /// # Errors
    /// As [`ReplayLog::append`]; what was staged stays staged.
    pub fn flush(&mut self) -> Result<(), ReplayError<M::Error>> {
        self.commit_with_staged(Vec::new(), self.staged_end(), &[])
    }

    /// Stores what is staged, then notes of the removals that have none, so that what is stored next depends on them.
    fn note_removals(&mut self) -> Result<(), ReplayError<M::Error>> {
        if self.unnoted.is_empty() {
            return Ok(());
        }
        let unnoted = self.unnoted.clone();
        self.commit_with_staged(Vec::new(), self.staged_end(), &unnoted)
    }

    /// The id after the last one that was given out.
    fn staged_end(&self) -> u64 {
        self.next_id + self.staged.given()
    }

    /// Stores what is staged, then `items`, then the removal of `removed`.
    fn commit_with_staged(
        &mut self,
        items: Vec<Item<'_>>,
        items_end: u64,
        removed: &[u64],
    ) -> Result<(), ReplayError<M::Error>> {
        self.check_alive()?;
        if items_end.checked_add(removed.len() as u64).is_none() {
            return Err(ReplayError::IdsExhausted);
        }
        let mut staged = Vec::new();
        for (id, score, example) in self.staged.examples(self.next_id) {
            let id_of = ExampleId(id);
            staged.push((id, score, example.map_err(|source| ReplayError::Undecodable { id: id_of, source })?));
        }
        let mut all: Vec<Item<'_>> = staged.iter().map(|(id, score, example)| item(*id, example, *score)).collect();
        let staged_count = all.len();
        all.extend(items);
        self.commit(Records { items: &all, items_end, removed }).map_err(|error| match error {
            ReplayError::TooLarge { position, bytes, limit_bytes } => {
                ReplayError::TooLarge { position: position.saturating_sub(staged_count), bytes, limit_bytes }
            }
            other => other,
        })?;
        self.staged.clear();
        Ok(())
    }

    /// Removes a record: it is gone from every list at once and stays so. Its bytes stay on flash until the segment
    /// they lie in is compacted.
    ///
    /// # Errors
    /// [`ReplayError::NotFound`]; else as [`ReplayLog::append`].
    pub fn remove(&mut self, id: ExampleId) -> Result<(), ReplayError<M::Error>> {
        self.remove_all(&[id])
    }

    /// Removes several records with one sync, and stores what is staged with it. In a log that has no room for a note of
    /// it, their segments are compacted instead, and a cut may leave the first of them removed; what is staged stays so.
    ///
    /// # Errors
    /// As [`ReplayLog::remove`]; if one id is not found, none is removed.
    pub fn remove_all(&mut self, ids: &[ExampleId]) -> Result<(), ReplayError<M::Error>> {
        self.check_alive()?;
        let is_staged = |log: &Self, id: u64| id >= log.next_id && log.staged.get(id - log.next_id).is_some();
        let is_known = |id: &&ExampleId| self.index.get(id.0).is_some() || is_staged(self, id.0);
        if let Some(&id) = ids.iter().find(|id| !is_known(id)) {
            return Err(ReplayError::NotFound { id });
        }
        let mut stored: Vec<u64> = Vec::new();
        for id in ids {
            match id.0.checked_sub(self.next_id) {
                Some(nth) => _ = self.staged.remove(nth),
                None => stored.push(id.0),
            }
        }
        if stored.is_empty() {
            return Ok(());
        }
        stored.sort_unstable();
        stored.dedup();
        let mut noted = [&stored[..], &self.unnoted].concat();
        noted.sort_unstable();
        match self.commit_with_staged(Vec::new(), self.staged_end(), &noted) {
            Err(ReplayError::Full { .. }) => self.remove_by_compaction(&stored),
            done => done,
        }
    }

    /// Reads one example, decoding no other frame than its own, and the token table that was used for it.
    ///
    /// # Errors
    /// [`ReplayError::NotFound`]; [`ReplayError::Damaged`] if its frame no longer matches its checksum;
    /// [`ReplayError::Undecodable`]; [`ReplayError::Medium`].
    pub fn read(&mut self, id: ExampleId) -> Result<Example, ReplayError<M::Error>> {
        let undecodable = |source| ReplayError::Undecodable { id, source };
        if let Some(staged) = id.0.checked_sub(self.next_id).and_then(|nth| self.staged.get(nth)) {
            return staged.map_err(undecodable);
        }
        let entry = self.index.get(id.0).ok_or(ReplayError::NotFound { id })?;
        let damaged = ReplayError::Damaged { id, offset: entry.frame_at };
        let mut read = Err(RecordError::Malformed);
        let is_whole = self.decode_frame(entry.frame_at, &mut |nth, decoded| {
            if nth == usize::from(entry.nth) {
                read = decoded;
            }
            nth < usize::from(entry.nth)
        })?;
        if !is_whole {
            return Err(damaged);
        }
        let (found, example) = read.map_err(undecodable)?;
        match found == id.0 && example.key().0 as u16 == entry.tag {
            true => Ok(example),
            false => Err(damaged),
        }
    }

    /// Reads every byte of every segment in use, decodes every record and compares with the index.
    ///
    /// # Errors
    /// [`ReplayError::Medium`] if something cannot be read. What is wrong is in the report.
    pub fn verify(&mut self) -> Result<VerifyReport, ReplayError<M::Error>> {
        let mut found = Found::new(&self.geometry);
        let mut frames_at = Vec::new();
        let Scan { segments, frames, read_bytes, dropped, .. } =
            scan(&mut self.medium, &self.geometry, &self.tokenizer_digest, self.sealer.as_ref(), &mut |frame| {
                frames_at.push((frame.at, frame.heads.examples.len()));
                found.admit(&frame);
            })?;
        let mut problems = dropped;
        let mut examples = 0;
        for (offset, expected) in frames_at {
            let mut sound = 0;
            self.decode_frame(offset, &mut |_, decoded| {
                sound += u64::from(decoded.is_ok());
                true
            })?;
            examples += sound;
            let records = expected as u64 - sound;
            if records > 0 {
                let reason = DropReason::Undecodable;
                problems.push(Dropped { offset, bytes: 0, records: Some(records), reason });
            }
        }
        let place = |entry: Entry| (entry.frame_at, entry.nth, entry.tag);
        let lost = |entry: &Entry| found.index.get(entry.id).map(place) != Some(place(*entry));
        Ok(VerifyReport {
            segments: segments.len() as u32,
            frames,
            examples,
            read_bytes,
            problems,
            missing: self.index.iter().filter(lost).map(|entry| ExampleId(entry.id)).collect(),
        })
    }

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

    /// Closes the log and hands the medium back. What is staged is lost; all else was synced.
    pub fn into_medium(self) -> M {
        self.medium
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

    /// The part of `used_bytes` of a segment that its live records take, by what they weigh.
    pub(super) fn live_bytes(&self, slot: u32, used_bytes: u32) -> u32 {
        let Usage { total, live } = self.usage[slot as usize];
        let share = u64::from(used_bytes) * live / total.max(1);
        share as u32
    }

    pub(super) fn count_record(&mut self, frame_at: u32, tokens: u32) {
        let usage = &mut self.usage[self.geometry.slot_of(frame_at) as usize];
        usage.total += weight(tokens);
        usage.live += weight(tokens);
    }

    pub(super) fn count_removals(&mut self, frame_at: u32, count: usize) {
        let usage = &mut self.usage[self.geometry.slot_of(frame_at) as usize];
        usage.total += REMOVAL_WEIGHT * count as u64;
        usage.live += REMOVAL_WEIGHT * count as u64;
    }

    /// Takes a record out of the index; says whether it was in.
    pub(super) fn drop_record(&mut self, id: u64) -> bool {
        let Some(entry) = self.index.remove(id) else {
            return false;
        };
        self.replayed.remove(&id);
        self.usage[self.geometry.slot_of(entry.frame_at) as usize].live -= weight(entry.tokens.into());
        true
    }

    /// A record no longer weighs where it was.
    pub(super) fn release(&mut self, id: u64, tokens: u32) {
        if let Some(entry) = self.index.get(id) {
            self.usage[self.geometry.slot_of(entry.frame_at) as usize].live -= weight(tokens);
        }
    }

    /// The frame at `offset`, repaired if it must be; `None` if it cannot be.
    fn read_frame(&mut self, offset: u32) -> Result<Option<StoredFrame>, ReplayError<M::Error>> {
        let bytes = self.read_frame_bytes(offset)?;
        if let Some(frame) = StoredFrame::parse(bytes) {
            return Ok(Some(frame));
        }
        Ok(self.repaired_frame(offset)?.and_then(StoredFrame::parse))
    }

    /// Decodes the frame at `offset` record by record, each with its position, id and content, until `sink` says to stop.
    /// `false` if the frame fails its checksum or its seal, or its tokens are not what was written.
    pub(super) fn decode_frame(
        &mut self,
        offset: u32,
        sink: &mut dyn FnMut(usize, Result<(u64, Example), RecordError>) -> bool,
    ) -> Result<bool, ReplayError<M::Error>> {
        let Some(frame) = self.read_frame(offset)? else {
            return Ok(false);
        };
        let (sequence, seal) = self.sealing(offset);
        let Some(opened) = frame.open(seal, sequence, self.sealer.as_ref()) else {
            return Ok(false);
        };
        if let Some(records) = opened.plain_records() {
            let examples =
                (frame.header.first_id..).zip(records).filter(|(_, record)| matches!(record, Record::Example { .. }));
            let mut decoded = examples.map(|(id, record)| record.to_example().map(|example| (id, example)));
            let _ = decoded.by_ref().enumerate().all(|(nth, decoded)| sink(nth, decoded));
            return Ok(true);
        }
        let Some((heads, _)) = opened.heads() else {
            return Ok(false);
        };
        let untrained;
        let table = match self.find_table(&heads, offset)? {
            TableAt::Untrained => {
                untrained = TokenTable::untrained();
                Some(&untrained)
            }
            TableAt::Cached(at) => self.tables.get(at),
        };
        let Some(table) = table else {
            return Ok(false);
        };
        let mut nth = 0;
        let decoded = heads.decode(table, |head, tokens| {
            nth += 1;
            sink(nth - 1, example_of(&heads, head, tokens).map(|example| (head.id, example)))
        });
        Ok(decoded.is_some())
    }

    /// Makes sure that the table of a frame is in the cache, and says where.
    fn find_table(&mut self, heads: &Heads<'_>, offset: u32) -> Result<TableAt, ReplayError<M::Error>> {
        let at = match heads.table {
            TableRef::Untrained => return Ok(TableAt::Untrained),
            TableRef::Inline(_) => offset,
            TableRef::Back(words) => {
                let room = offset % self.geometry.segment_bytes;
                let back = words.checked_mul(self.geometry.word_bytes).filter(|&back| back < room);
                // Where no frame is, no table is.
                back.map_or(u32::MAX, |back| offset - back)
            }
        };
        if self.tables.get(at).is_none() && at != u32::MAX {
            let brought = match heads.table {
                TableRef::Inline(bytes) => TokenTable::parse(bytes),
                _ => self.brought_table(at)?,
            };
            if let Some(table) = brought {
                self.tables.insert(at, table);
            }
        }
        Ok(TableAt::Cached(at))
    }

    fn frame_times(&mut self, offset: u32) -> Result<Option<Vec<u64>>, ReplayError<M::Error>> {
        self.with_frame(offset, |opened| {
            let (heads, _) = opened.heads()?;
            Some(heads.examples.iter().map(|head| head.time_unix_s).collect())
        })
    }

    /// The table that the frame at `offset` brings.
    fn brought_table(&mut self, offset: u32) -> Result<Option<TokenTable>, ReplayError<M::Error>> {
        self.with_frame(offset, |opened| opened.table())
    }

    /// What `look` finds in the frame at `offset`; nothing if it cannot be read.
    fn with_frame<T>(
        &mut self,
        offset: u32,
        look: impl FnOnce(&Opened<'_>) -> Option<T>,
    ) -> Result<Option<T>, ReplayError<M::Error>> {
        let frame = self.read_frame(offset)?;
        let (sequence, seal) = self.sealing(offset);
        let opened = frame.as_ref().and_then(|frame| frame.open(seal, sequence, self.sealer.as_ref()));
        Ok(opened.as_ref().and_then(look))
    }

    /// How the segment at `offset` is sealed.
    pub(super) fn sealing(&self, offset: u32) -> (u64, Option<super::segment::SegmentSeal>) {
        let slot = self.geometry.slot_of(offset);
        let segment = self.segments.iter().find(|segment| segment.slot == slot);
        segment.map_or((0, None), |segment| (segment.sequence, segment.seal))
    }

    /// Learns what tokens were seen from the newest table and the frames behind it, in the newest two segments.
    pub(super) fn take_coding(&mut self) -> Result<Coding, ReplayError<M::Error>> {
        if let Some(coding) = self.coding.take() {
            return Ok(coding);
        }
        let mut coding = Coding::new();
        let newest: Vec<Segment> = self.segments.iter().rev().take(2).rev().copied().collect();
        for segment in newest {
            coding.in_force = InForce::none();
            let base = self.geometry.base(segment.slot);
            let mut at = segment.header_bytes() as u32;
            while at < segment.used_bytes {
                let Some(frame) = self.read_frame(base + at)? else { break };
                let mut examples = Vec::new();
                self.decode_frame(base + at, &mut |_, decoded| {
                    examples.extend(decoded.into_iter().map(|(_, example)| example));
                    true
                })?;
                match self.brought_table(base + at)? {
                    Some(table) => coding.found_table(table, at),
                    None => examples.iter().for_each(|example| coding.found_tokens(example.tokens())),
                }
                at += self.geometry.frame_bytes(frame.header.payload_bytes);
            }
        }
        if self.active.is_none() {
            coding.in_force = InForce::none();
        }
        Ok(coding)
    }

    /// Reads the frame at `offset`, padding included, without trusting a length beyond its segment.
    fn read_frame_bytes(&mut self, offset: u32) -> Result<Vec<u8>, ReplayError<M::Error>> {
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

/// Where a frame's table is.
enum TableAt {
    Untrained,
    /// In the cache under this offset, if it could be read.
    Cached(u32),
}

/// The live records as a scan finds them.
struct Found {
    geometry: Geometry,
    index: Index,
    usage: Vec<Usage>,
}

impl Found {
    fn new(geometry: &Geometry) -> Self {
        let usage = vec![Usage::default(); geometry.segments as usize];
        Self { geometry: *geometry, index: Index::default(), usage }
    }

    fn admit(&mut self, frame: &SeenFrame<'_>) {
        let slot = self.geometry.slot_of(frame.at) as usize;
        for (nth, head) in frame.heads.examples.iter().enumerate() {
            self.usage[slot].total += weight(head.tokens);
            if head.id < frame.from_id {
                continue;
            }
            self.usage[slot].live += weight(head.tokens);
            let Head { id, task, tokens, tag, score, .. } = *head;
            let task = frame.heads.tasks[task];
            self.index.insert(Listed { id, task, tokens, tag, score, frame_at: frame.at, nth: nth as u16 });
        }
        let removals = REMOVAL_WEIGHT * frame.heads.removed.len() as u64;
        self.usage[slot].total += removals;
        self.usage[slot].live += removals;
        for &id in &frame.heads.removed {
            if let Some(entry) = self.index.remove(id) {
                self.usage[self.geometry.slot_of(entry.frame_at) as usize].live -= weight(entry.tokens.into());
            }
        }
    }
}

fn weight(tokens: u32) -> u64 {
    u64::from(tokens) + RECORD_WEIGHT
}

/// Slots whose erase count is not known, because it was never noted or its note was cut short, count as the others do.
fn known_or_mean(wear: &[Option<u32>]) -> Vec<u32> {
    let known = wear.iter().flatten();
    let sum: u64 = known.clone().map(|&erases| u64::from(erases)).sum();
    let mean = sum / (known.count() as u64).max(1);
    wear.iter().map(|erases| erases.unwrap_or(mean as u32)).collect()
}

pub(super) fn item(id: u64, example: &Example, score: Score) -> Item<'_> {
    Item {
        id,
        task: example.task(),
        time_unix_s: example.time_unix_s(),
        prompt_len: example.prompt_len() as u32,
        tokens: example.tokens(),
        tag: example.key().0 as u16,
        score,
        replays: 0,
    }
}

fn example_of(heads: &Heads<'_>, head: &Head, tokens: &[u32]) -> Result<Example, RecordError> {
    let task = heads.tasks[head.task];
    let example = Example::from_tokens(tokens.to_vec(), head.prompt_len as usize, task, head.time_unix_s)
        .map_err(RecordError::Example)?;
    match example.key().0 as u16 == head.tag {
        true => Ok(example),
        false => Err(RecordError::Key),
    }
}
