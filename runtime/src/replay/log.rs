//! The replay log as its users see it: opened, appended to, removed from. `append.rs` and `rewrite.rs` write, `read.rs` and
//! `query.rs` answer.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::append::{Records, WRITE_BYTES};
use super::batch::Item;
use super::coding::Coding;
use super::config::{Eviction, LogConfig, RecoveryReport};
use super::error::ReplayError;
use super::index::Index;
use super::recover::{Active, Segment, Slot, scan};
use super::route::Place;
use super::score::Score;
use super::seal::Sealer;
use super::segment::Geometry;
use super::stage::Staged;
use super::tables::TableCache;
use super::tally::{Found, Usage};
use crate::example::{Example, ExampleId};
use crate::storage::Medium;

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
    pub(super) fn staged_end(&self) -> u64 {
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

    /// Closes the log and hands the medium back. What is staged is lost; all else was synced.
    pub fn into_medium(self) -> M {
        self.medium
    }
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
