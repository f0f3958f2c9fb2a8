//! The writing half of the log: records become frames, frames fill segments, one sync acknowledges them.
//!
//! At most one frame is ever written and not yet synced, so a cut leaves at most one torn frame and one empty segment.

use alloc::vec;
use alloc::vec::Vec;

use zeroize::Zeroizing;

use super::batch::{Batch, FRAME_RECORDS, FRAME_TOKENS, Item};
use super::coding::{Coding, InForce};
use super::error::ReplayError;
use super::index::Listed;
use super::log::ReplayLog;
use super::recover::{Active, Segment, Slot};
use super::seal::{Place, SEAL_BYTES, Sealer};
use super::segment::{
    FORMAT_VERSION, FRAME_CODED, FRAME_HEADER_BYTES, FRAME_SEALED, FrameHeader, MAX_WORD_BYTES, SEGMENT_HEADER_BYTES,
    SegmentHeader, SegmentSeal, is_erased, parse_wear_word, wear_word,
};
use crate::storage::Medium;

/// Bytes gathered before they are programmed: a frame up to this size is one call to the medium.
pub(super) const WRITE_BYTES: usize = 4096;
/// Erase counts that differ by less are taken for equal.
const WEAR_STEP: u32 = 16;

/// What is to be stored together. Ids are given out already.
#[derive(Debug, Clone, Copy)]
pub(super) struct Records<'a> {
    /// Ascending by id.
    pub(super) items: &'a [Item<'a>],
    /// The id after the last item and those that were given out and taken back.
    pub(super) items_end: u64,
    /// Ids of records to be removed, ascending. Each takes an id after the items.
    pub(super) removed: &'a [u64],
}

impl<'a> Records<'a> {
    fn end_id(&self) -> u64 {
        self.items_end + self.removed.len() as u64
    }

    fn is_empty(&self, first_id: u64) -> bool {
        self.end_id() == first_id
    }

    /// The first `count` items; with the last of them come removals.
    fn split(&self, first_id: u64, count: usize) -> (Batch<'a>, Self) {
        let (now, later) = self.items.split_at(count);
        let removed_count = if later.is_empty() { self.removed.len().min(FRAME_RECORDS) } else { 0 };
        let (removed, left) = self.removed.split_at(removed_count);
        let end_id = match later.first() {
            Some(next) => next.id,
            None => self.items_end + removed_count as u64,
        };
        let batch = Batch { first_id, span: (end_id - first_id) as u16, items: now, removed };
        (batch, Self { items: later, items_end: self.items_end.max(end_id), removed: left })
    }

    /// Items that may share a frame.
    fn batch_len(&self) -> usize {
        let mut tokens = 0;
        let fits = |item: &&Item<'_>| {
            tokens += item.tokens.len();
            tokens <= FRAME_TOKENS
        };
        let count = self.items.iter().take(FRAME_RECORDS).take_while(fits).count();
        count.max(self.items.len().min(1))
    }
}

/// A frame that has its place.
struct Planned<'a> {
    batch: Batch<'a>,
    starts_segment: bool,
    payload: Zeroizing<Vec<u8>>,
}

impl<M: Medium> ReplayLog<M> {
    /// Writes records in as few frames as they fit.
    pub(super) fn commit(&mut self, records: Records<'_>) -> Result<(), ReplayError<M::Error>> {
        if records.is_empty(self.next_id) {
            return Ok(());
        }
        let mut coding = self.take_coding()?;
        let (frames, in_force) = loop {
            let (frames, in_force) = self.plan(records, &coding)?;
            let needed = frames.iter().filter(|frame| frame.starts_segment).count() as u32;
            if needed <= self.room_segments() {
                break (frames, in_force);
            }
            let needed_bytes = frames.iter().map(|frame| u64::from(self.frame_bytes(frame.payload.len()))).sum();
            self.make_room(needed, needed_bytes)?;
            if self.active.is_none() {
                coding.in_force = InForce::none();
            }
        };
        frames.iter().try_for_each(|frame| self.write_frame(frame))?;
        records.items.iter().for_each(|item| coding.statistics.add(item.tokens));
        coding.in_force = in_force;
        // After an error it is learned again from what was written.
        self.coding = Some(coding);
        Ok(())
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

    pub(super) fn check_alive(&self) -> Result<(), ReplayError<M::Error>> {
        match self.is_dead {
            true => Err(ReplayError::Dead),
            false => Ok(()),
        }
    }

    /// Cuts `records` into frames, each within a segment, and codes them.
    fn plan<'a>(
        &self,
        records: Records<'a>,
        coding: &Coding,
    ) -> Result<(Vec<Planned<'a>>, InForce), ReplayError<M::Error>> {
        let statistics = &coding.statistics;
        let word_bytes = self.geometry.word_bytes;
        let mut in_force = coding.in_force.clone();
        let end_bytes = self.geometry.frames_end();
        let mut at = self.active.map_or(end_bytes, |active| active.at);
        let mut first_id = self.next_id;
        let mut rest = records;
        let mut frames = Vec::new();
        let mut count = rest.batch_len();
        while !rest.is_empty(first_id) {
            let (batch, later) = rest.split(first_id, count);
            let room_bytes = self.payload_room(end_bytes - at);
            let mut coded = in_force.encode(&batch, statistics, at, word_bytes, room_bytes);
            let starts_segment = coded.payload.len() > room_bytes || end_bytes == at;
            if starts_segment {
                let limit_bytes = self.payload_room(end_bytes - SEGMENT_HEADER_BYTES as u32);
                let fresh = InForce::none();
                coded = fresh.encode(&batch, statistics, SEGMENT_HEADER_BYTES as u32, word_bytes, limit_bytes);
                if coded.payload.len() > limit_bytes {
                    if count <= 1 {
                        let position = records.items.len() - rest.items.len();
                        let bytes = (coded.payload.len() + self.seal_bytes()) as u32;
                        let limit_bytes = self.geometry.payload_limit_bytes();
                        return Err(ReplayError::TooLarge { position, bytes, limit_bytes });
                    }
                    count /= 2;
                    continue;
                }
                in_force = fresh;
                at = SEGMENT_HEADER_BYTES as u32;
            }
            in_force.place(&batch, &mut coded, at);
            at += self.frame_bytes(coded.payload.len());
            first_id += u64::from(batch.span);
            rest = later;
            count = rest.batch_len();
            frames.push(Planned { batch, starts_segment, payload: Zeroizing::new(coded.payload) });
        }
        Ok((frames, in_force))
    }

    fn seal_bytes(&self) -> usize {
        self.sealer.as_ref().map_or(0, |_| SEAL_BYTES)
    }

    /// Bytes that a frame with this much payload takes on the medium.
    pub(super) fn frame_bytes(&self, payload_bytes: usize) -> u32 {
        self.geometry.frame_bytes((payload_bytes + self.seal_bytes()) as u32)
    }

    /// Largest payload of a frame in `bytes`.
    pub(super) fn payload_room(&self, bytes: u32) -> usize {
        (bytes as usize).saturating_sub(FRAME_HEADER_BYTES + self.seal_bytes())
    }

    /// Writes one frame, syncs, and only then lets the index know.
    fn write_frame(&mut self, planned: &Planned<'_>) -> Result<(), ReplayError<M::Error>> {
        let started = match planned.starts_segment {
            true => Some(self.next_header()),
            false => None,
        };
        let active = self.active.unwrap_or(Active { slot: 0, at: 0, link: 0 });
        let link = started.map_or(active.link, |header| header.crc());
        let last = self.segments.last().map_or((0, None), |segment| (segment.sequence, segment.seal));
        let (sequence, seal) = started.map_or(last, |header| (header.sequence, header.seal));
        let (frame, payload) = finish_frame(&planned.batch, &planned.payload, link, sequence, seal, &mut self.sealer);
        let active = match started {
            Some(header) => self.start_segment(&SegmentHeader { first_crc: frame.crc, ..header })?,
            None => active,
        };
        let frame_at = self.geometry.base(active.slot) + active.at;
        let programmed = self.program_frame(frame_at, &frame, &payload);
        self.or_die(programmed, "program a frame")?;
        self.sync()?;

        let frame_bytes = self.geometry.frame_bytes(frame.payload_bytes);
        self.active = Some(Active { at: active.at + frame_bytes, link: frame.crc, ..active });
        self.chain = frame.crc;
        self.used_bytes += u64::from(frame_bytes);
        if let Some(segment) = self.segments.last_mut() {
            segment.used_bytes = active.at + frame_bytes;
            segment.end_chain = frame.crc;
        }
        self.acknowledge(&planned.batch, frame_at);
        Ok(())
    }

    fn acknowledge(&mut self, batch: &Batch<'_>, frame_at: u32) {
        for (nth, item) in batch.items.iter().enumerate() {
            let tokens = item.tokens.len() as u32;
            self.count_record(frame_at, tokens);
            let Item { id, task, tag, score, .. } = *item;
            self.index.insert(Listed { id, task, tokens, tag, score, frame_at, nth: nth as u16 });
        }
        self.count_removals(frame_at, batch.removed.len());
        for &id in batch.removed {
            self.drop_record(id);
        }
        self.unnoted.retain(|id| batch.removed.binary_search(id).is_err());
        self.next_id = batch.first_id + u64::from(batch.span);
        self.end_id = self.next_id;
    }

    /// The header of the next segment, but for what its first frame adds.
    fn next_header(&self) -> SegmentHeader {
        SegmentHeader {
            version: FORMAT_VERSION,
            word_bytes: self.geometry.word_bytes,
            segment_bytes: self.geometry.segment_bytes,
            sequence: self.last_sequence + 1,
            end_id: self.end_id,
            first_id: self.next_id,
            chain: self.chain,
            tokenizer_digest: self.tokenizer_digest,
            first_crc: 0,
            moved: None,
            seal: self.sealer.as_ref().map(Sealer::segment),
        }
    }

    /// Starts the next segment of the log.
    fn start_segment(&mut self, header: &SegmentHeader) -> Result<Active, ReplayError<M::Error>> {
        let slot = self.erased_slot(false, SEGMENT_HEADER_BYTES as u64)?;
        // Not synced alone: a header without frames and frames without a header are both an interrupted start.
        let programmed = self.medium.write(self.geometry.base(slot), &header.encode());
        self.or_full(programmed, SEGMENT_HEADER_BYTES as u64, "start a segment")?;
        self.last_sequence += 1;
        self.slots[slot as usize] = Slot::Used;
        self.used_bytes += SEGMENT_HEADER_BYTES as u64;
        self.segments.push(Segment {
            slot,
            version: FORMAT_VERSION,
            sequence: header.sequence,
            from_id: header.end_id,
            held_from_id: header.end_id,
            used_bytes: SEGMENT_HEADER_BYTES as u32,
            chain: header.chain,
            end_chain: header.chain,
            seal: header.seal,
            has_remains: false,
        });
        let active = Active { slot, at: SEGMENT_HEADER_BYTES as u32, link: header.crc() };
        self.active = Some(active);
        Ok(active)
    }

    /// Segments that appends may still start: one stays free for compaction, where there are enough.
    pub(super) fn room_segments(&self) -> u32 {
        let reserve = u32::from(self.quota_segments >= 3);
        self.free_segments().saturating_sub(reserve)
    }

    pub(super) fn free_segments(&self) -> u32 {
        let free = self.slots.iter().filter(|slot| is_free(**slot)).count() as u32;
        free.min(self.quota_segments.saturating_sub(self.segments.len() as u32))
    }

    /// A slot that reads as erased: remains first, then the one that was erased least, or for cold data most, then what was
    /// given up.
    pub(super) fn erased_slot(&mut self, is_cold: bool, needed_bytes: u64) -> Result<u32, ReplayError<M::Error>> {
        let wear = |at: &u32| {
            let wear = self.wear[*at as usize] / WEAR_STEP;
            if is_cold { u32::MAX - wear } else { wear }
        };
        let in_state = |wanted| {
            let slots = (0_u32..).zip(&self.slots).filter(move |(_, slot)| **slot == wanted).map(|(at, _)| at);
            slots.min_by_key(wear)
        };
        let chosen = in_state(Slot::Remains).or_else(|| in_state(Slot::Erased)).or_else(|| in_state(Slot::Orphan));
        let Some(slot) = chosen else {
            return Err(self.full(needed_bytes));
        };
        self.erase_unless_erased(slot)?;
        Ok(slot)
    }

    pub(super) fn full(&self, needed_bytes: u64) -> ReplayError<M::Error> {
        ReplayError::Full { needed_bytes, capacity_bytes: self.capacity_bytes() }
    }

    fn erase_unless_erased(&mut self, slot: u32) -> Result<(), ReplayError<M::Error>> {
        match self.reads_as_erased(slot)? {
            true => Ok(()),
            false => self.erase(&[slot]),
        }
    }

    /// Whether nothing but an erase count stands in a slot.
    pub(super) fn reads_as_erased(&mut self, slot: u32) -> Result<bool, ReplayError<M::Error>> {
        let mut bytes = vec![0; self.geometry.segment_bytes as usize];
        let doing = "read a segment";
        let read = self.medium.read(self.geometry.base(slot), &mut bytes);
        read.map_err(|source| ReplayError::Medium { doing, source })?;
        let (frames, last_word) = bytes.split_at(self.geometry.frames_end() as usize);
        Ok(is_erased(frames) && (is_erased(last_word) || parse_wear_word(last_word).is_some()))
    }

    /// Erases slots and notes that in them, with one sync.
    pub(super) fn erase(&mut self, slots: &[u32]) -> Result<(), ReplayError<M::Error>> {
        for &slot in slots {
            let base = self.geometry.base(slot);
            let erased = self.medium.erase(base, base + self.geometry.segment_bytes);
            self.or_die(erased, "erase a segment")?;
            self.wear[slot as usize] += 1;
            let mut word = [0xFF; MAX_WORD_BYTES];
            word[..8].copy_from_slice(&wear_word(self.wear[slot as usize]));
            let word = &word[..self.geometry.word_bytes as usize];
            let noted = self.medium.write(base + self.geometry.frames_end(), word);
            self.or_die(noted, "note an erase")?;
            self.slots[slot as usize] = Slot::Erased;
            self.usage[slot as usize] = Default::default();
            self.tables.forget(base..base + self.geometry.segment_bytes);
        }
        // Before anything is programmed: an old frame must not come back behind a new one.
        self.sync()
    }

    fn program_frame(&mut self, mut at: u32, frame: &FrameHeader, payload: &[u8]) -> Result<(), M::Error> {
        let Self { medium, out, .. } = self;
        out.clear();
        let mut push = |mut bytes: &[u8]| -> Result<(), M::Error> {
            while !bytes.is_empty() {
                let (now, later) = bytes.split_at(bytes.len().min(WRITE_BYTES - out.len()));
                out.extend(now.iter().copied());
                bytes = later;
                if out.is_full() {
                    medium.write(at, out)?;
                    at += WRITE_BYTES as u32;
                    out.clear();
                }
            }
            Ok(())
        };
        push(&frame.encode())?;
        push(payload)?;
        let content_bytes = (FRAME_HEADER_BYTES + payload.len()) as u32;
        let padding = self.geometry.pad(content_bytes) - content_bytes;
        push(&[0xFF; MAX_WORD_BYTES][..padding as usize])?;
        if self.out.is_empty() {
            return Ok(());
        }
        self.medium.write(at, &self.out)
    }

    pub(super) fn sync(&mut self) -> Result<(), ReplayError<M::Error>> {
        let synced = self.medium.sync();
        self.or_die(synced, "sync")
    }

    /// As [`ReplayLog::or_die`], but a full disk changed nothing.
    pub(super) fn or_full(
        &mut self,
        result: Result<(), M::Error>,
        needed_bytes: u64,
        doing: &'static str,
    ) -> Result<(), ReplayError<M::Error>> {
        if result.as_ref().is_err_and(M::is_full) {
            return Err(self.full(needed_bytes));
        }
        self.or_die(result, doing)
    }

    /// Turns a failed write into an error and the log into one that only reads.
    pub(super) fn or_die(
        &mut self,
        result: Result<(), M::Error>,
        doing: &'static str,
    ) -> Result<(), ReplayError<M::Error>> {
        result.map_err(|source| {
            self.is_dead = true;
            ReplayError::WriteFailed { doing, source }
        })
    }
}

/// Seals the payload if its segment is sealed, and makes the header.
pub(super) fn finish_frame(
    batch: &Batch<'_>,
    payload: &[u8],
    link: u32,
    sequence: u64,
    seal: Option<SegmentSeal>,
    sealer: &mut Option<Sealer>,
) -> (FrameHeader, Vec<u8>) {
    let Batch { first_id, span, .. } = *batch;
    let sealed = seal.zip(sealer.as_mut()).map(|(seal, sealer)| {
        let place = Place { seal, sequence, first_id, span };
        sealer.seal(&place, payload)
    });
    let codec = FRAME_CODED | if sealed.is_some() { FRAME_SEALED } else { 0 };
    let payload = sealed.unwrap_or_else(|| payload.to_vec());
    let mut frame =
        FrameHeader { codec, records: span, payload_bytes: payload.len() as u32, crc: 0, previous_crc: link, first_id };
    let mut digest = frame.start_crc();
    digest.update(&payload);
    frame.crc = digest.finalize();
    (frame, payload)
}

fn is_free(slot: Slot) -> bool {
    matches!(slot, Slot::Erased | Slot::Remains | Slot::Orphan)
}
