//! Reading a whole medium: which segments are in use, which frames carry on the log, where it ends.
//!
//! The scan changes nothing. Opening a log and verifying one are the same scan with different eyes.
//!
//! The log is one row of ids, and each segment answers for a stretch of it. Where several answer for the same id, the one
//! with the highest sequence does, if it is whole: a compaction replaces older segments that way. What comes out is a
//! prefix of what was appended, whatever the medium did: where something is missing that was written, because a sync
//! lied or flash decayed, the log is cut, and what follows is kept out of it. One flipped bit in a frame or a header is
//! put right first (see `repair.rs`).

use alloc::borrow::Cow;
use alloc::vec;
use alloc::vec::Vec;

use super::batch::Heads;
use super::error::{DropReason, Dropped, ReplayError};
use super::frame::{Opened, open_payload};
use super::repair::{is_repaired, repair_frame, repair_header};
use super::seal::Sealer;
use super::segment::{
    FORMAT_VERSION, FRAME_HEADER_BYTES, FrameHeader, Geometry, HeaderState, SEGMENT_HEADER_BYTES, SegmentHeader,
    SegmentSeal, hidden_end_id, is_erased, parse_wear_word,
};
use crate::storage::Medium;

/// What a slot, the place of one segment, holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    /// No header; may be started (after a look at the rest).
    Erased,
    /// Remains of something that was cut short, or that a compaction replaced; erased and started before any other.
    Remains,
    /// A segment that is not part of the log any more; erased when nothing else is left.
    Orphan,
    /// Whole frames under a header that cannot be read: left as it is, for someone to rescue.
    Damaged,
    /// Part of the log.
    Used,
}

/// A segment of the log. It answers for the ids from `from_id` to the next one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) slot: u32,
    pub(crate) version: u16,
    pub(crate) sequence: u64,
    pub(crate) from_id: u64,
    /// Ids from here on are in its bytes, those below `from_id` as copies that another segment replaced.
    pub(crate) held_from_id: u64,
    /// Offset after its last frame.
    pub(crate) used_bytes: u32,
    /// What links to the log before `from_id`.
    pub(crate) chain: u32,
    /// What the segment behind it has as its chain.
    pub(crate) end_chain: u32,
    pub(crate) seal: Option<SegmentSeal>,
    /// An interrupted write stands behind its last frame.
    pub(crate) has_remains: bool,
}

impl Segment {
    pub(crate) fn header_bytes(&self) -> usize {
        match self.version {
            1 => super::segment::V1_HEADER_BYTES,
            _ => SEGMENT_HEADER_BYTES,
        }
    }
}

/// Where the next frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Active {
    pub(crate) slot: u32,
    /// Byte offset in the segment.
    pub(crate) at: u32,
    /// The checksum that frame links to.
    pub(crate) link: u32,
}

/// A frame as the scan shows it.
#[derive(Debug)]
pub(crate) struct SeenFrame<'a> {
    /// Byte offset on the medium.
    pub(crate) at: u32,
    /// Ids below this one are answered for by another segment.
    pub(crate) from_id: u64,
    pub(crate) heads: Heads<'a>,
}

/// What the scan found.
#[derive(Debug)]
pub(crate) struct Scan {
    pub(crate) slots: Vec<Slot>,
    /// Erase counts of the slots that have one.
    pub(crate) wear: Vec<Option<u32>>,
    /// In the order of the log.
    pub(crate) segments: Vec<Segment>,
    /// `None` if the next frame needs a new segment.
    pub(crate) active: Option<Active>,
    /// The id after the last record.
    pub(crate) end_id: u64,
    /// The id of the next record. Above `end_id` where ids after it were given out and their records are lost.
    pub(crate) next_id: u64,
    /// CRC of the last frame.
    pub(crate) chain: u32,
    pub(crate) last_sequence: u64,
    /// Segments that a compaction replaced, but did not erase, were found.
    pub(crate) has_stale: bool,
    pub(crate) frames: u64,
    /// Headers and frames, without unused ends of segments.
    pub(crate) used_bytes: u64,
    pub(crate) read_bytes: u64,
    pub(crate) dropped: Vec<Dropped>,
}

/// Scans `medium` and shows each frame to `seen` in the order of the log.
pub(crate) fn scan<M: Medium>(
    medium: &mut M,
    geometry: &Geometry,
    tokenizer_digest: &[u8; 32],
    sealer: Option<&Sealer>,
    seen: &mut dyn FnMut(SeenFrame<'_>),
) -> Result<Scan, ReplayError<M::Error>> {
    let mut walk = Walk {
        medium,
        geometry,
        sealer,
        seen,
        scan: Scan {
            slots: vec![Slot::Erased; geometry.segments as usize],
            wear: vec![None; geometry.segments as usize],
            segments: Vec::new(),
            active: None,
            end_id: 1,
            next_id: 1,
            chain: 0,
            last_sequence: 0,
            has_stale: false,
            frames: 0,
            used_bytes: 0,
            read_bytes: 0,
            dropped: Vec::new(),
        },
        loaded: Vec::new(),
        loaded_slot: None,
        broken: Vec::new(),
        hole: None,
        active_next_id: 1,
    };
    let mut heads = walk.read_headers(tokenizer_digest)?;
    walk.read_broken_slots()?;
    set_limits(&mut heads);
    while let Some((at, joint)) = walk.next_segment(&heads)? {
        heads[at].is_done = true;
        walk.read_segment(&heads, at, &joint)?;
    }
    walk.leave_behind(&heads)?;
    walk.keep_lost_ids();
    Ok(walk.scan)
}

/// A segment with a sound header.
struct Head {
    slot: u32,
    header: SegmentHeader,
    /// A flipped bit of it was put right.
    is_repaired: bool,
    /// A later segment ends the log here, so nothing of this one from this id on is part of it.
    limit_id: u64,
    /// It is part of the log.
    is_done: bool,
}

impl Head {
    fn is_void(&self) -> bool {
        let is_empty = self.header.moved.is_some_and(|moved| moved.until_id == self.header.first_id);
        // A copy of nothing ends where its first frame would be.
        self.header.first_id > self.limit_id || self.header.first_id == self.limit_id && !is_empty
    }

    fn answers_for(&self, id: u64) -> bool {
        let until_id = self.header.moved.map_or(u64::MAX, |moved| moved.until_id);
        !self.is_done && !self.is_void() && (self.header.end_id..until_id.min(self.limit_id)).contains(&id)
    }
}

/// Where the log goes on inside a segment.
#[derive(Debug, Clone, Copy)]
struct Joint {
    at: usize,
    link: u32,
    /// First id of the frame there.
    frame_id: u64,
}

/// A slot whose header is neither sound nor erased.
struct Broken {
    slot: u32,
    bytes: u32,
    /// End id of the whole frames in it.
    end_id: Option<u64>,
}

/// What stands behind the last frame of a segment although it does not carry on the log.
struct Hole {
    offset: u32,
    bytes: u32,
    /// End id of the whole frames behind it.
    hidden_id: Option<u64>,
}

/// The frame that comes next.
struct Found<'a> {
    frame: FrameHeader,
    payload: Cow<'a, [u8]>,
    is_repaired: bool,
}

struct Walk<'a, M> {
    medium: &'a mut M,
    geometry: &'a Geometry,
    sealer: Option<&'a Sealer>,
    seen: &'a mut dyn FnMut(SeenFrame<'_>),
    scan: Scan,
    /// The segment last loaded.
    loaded: Vec<u8>,
    loaded_slot: Option<u32>,
    broken: Vec<Broken>,
    /// At the end of the segment last walked.
    hole: Option<Hole>,
    /// The id the active segment goes on with.
    active_next_id: u64,
}

impl<M: Medium> Walk<'_, M> {
    /// Reads the header of every slot; returns the sound ones, newest first.
    fn read_headers(&mut self, tokenizer_digest: &[u8; 32]) -> Result<Vec<Head>, ReplayError<M::Error>> {
        let mut heads = Vec::new();
        for slot in 0..self.geometry.segments {
            let offset = self.geometry.base(slot);
            let mut bytes = [0; SEGMENT_HEADER_BYTES];
            self.medium.read(offset, &mut bytes).map_err(|source| reading(source, "read a segment header"))?;
            let mut found = SegmentHeader::parse(&bytes);
            if found == HeaderState::Broken
                && let Some(repaired) = repair_header(&bytes)
            {
                found = HeaderState::Valid(repaired);
            }
            let state = match found {
                HeaderState::Erased => Slot::Erased,
                HeaderState::Broken => Slot::Remains,
                HeaderState::Newer(found) => {
                    return Err(ReplayError::NewerFormat { offset, found, supported: FORMAT_VERSION });
                }
                HeaderState::Valid(header) => {
                    self.check_header(&header, tokenizer_digest)?;
                    self.scan.last_sequence = self.scan.last_sequence.max(header.sequence);
                    let is_repaired = is_repaired(&bytes, &header);
                    heads.push(Head { slot, header, is_repaired, limit_id: u64::MAX, is_done: false });
                    Slot::Used
                }
            };
            self.scan.slots[slot as usize] = state;
            let mut word = [0; 8];
            let word_at = offset + self.geometry.frames_end();
            self.medium.read(word_at, &mut word).map_err(|source| reading(source, "read an erase count"))?;
            self.scan.wear[slot as usize] = parse_wear_word(&word);
        }
        heads.sort_by_key(|head| core::cmp::Reverse((head.header.sequence, head.slot)));
        Ok(heads)
    }

    fn check_header(&self, header: &SegmentHeader, tokenizer_digest: &[u8; 32]) -> Result<(), ReplayError<M::Error>> {
        let SegmentHeader { segment_bytes, word_bytes, .. } = *header;
        if segment_bytes != self.geometry.segment_bytes || word_bytes != self.geometry.word_bytes {
            return Err(ReplayError::OtherGeometry { segment_bytes, word_bytes });
        }
        if header.tokenizer_digest != *tokenizer_digest {
            let (expected, found) = (*tokenizer_digest, header.tokenizer_digest);
            return Err(ReplayError::OtherTokenizer { expected, found });
        }
        match (header.seal, self.sealer) {
            (None, _) => Ok(()),
            (Some(_), None) => Err(ReplayError::KeyRequired),
            (Some(seal), Some(sealer)) if seal.key_id != sealer.key_id() => Err(ReplayError::WrongKey),
            (Some(_), Some(_)) => Ok(()),
        }
    }

    /// Looks for whole frames under headers that are not sound.
    fn read_broken_slots(&mut self) -> Result<(), ReplayError<M::Error>> {
        for slot in 0..self.geometry.segments {
            if self.scan.slots[slot as usize] == Slot::Remains {
                self.load(slot)?;
                let end_id = hidden_end_id(&self.loaded, self.geometry);
                self.broken.push(Broken { slot, bytes: written_bytes(&self.loaded), end_id });
            }
        }
        Ok(())
    }

    /// The segment that answers for the id the log goes on with, and where in it.
    fn next_segment(&mut self, heads: &[Head]) -> Result<Option<(usize, Joint)>, ReplayError<M::Error>> {
        let id = self.scan.end_id;
        let candidates: Vec<usize> = (0..heads.len()).filter(|&at| heads[at].answers_for(id)).collect();
        let is_only = candidates.len() == 1;
        let mut unfinished = Vec::new();
        for &at in &candidates {
            // What it replaces is still there, so it may have been cut short.
            if !is_only && !self.is_finished(heads, at)? {
                unfinished.push(at);
            } else if let Some(joint) = self.join(heads, at)? {
                return Ok(Some((at, joint)));
            }
        }
        for &at in &unfinished {
            if let Some(joint) = self.join(heads, at)? {
                return Ok(Some((at, joint)));
            }
        }
        let starts_here = |at: &&usize| heads[**at].header.end_id == id;
        if let Some(&at) = candidates.iter().find(starts_here) {
            self.drop(self.geometry.base(heads[at].slot), 0, Some(0), DropReason::Unlinked);
        }
        Ok(None)
    }

    /// Whether a compaction wrote all of this segment; others are never finished beforehand.
    fn is_finished(&mut self, heads: &[Head], at: usize) -> Result<bool, ReplayError<M::Error>> {
        let header = &heads[at].header;
        let Some(moved) = header.moved else {
            return Ok(true);
        };
        let mut joint = Joint { at: header.len_bytes(), link: header.crc(), frame_id: header.first_id };
        if header.first_id == moved.until_id {
            return Ok(true);
        }
        self.load(heads[at].slot)?;
        while joint.link != moved.last_crc {
            let Some((frame, next)) = self.step(heads, header, &joint) else {
                return Ok(false);
            };
            joint = Joint { at: next, link: frame.crc, frame_id: frame.first_id + u64::from(frame.records) };
        }
        Ok(joint.frame_id <= moved.until_id)
    }

    /// Where the log, as far as it was read, goes on in the segment `heads[at]`.
    fn join(&mut self, heads: &[Head], at: usize) -> Result<Option<Joint>, ReplayError<M::Error>> {
        let header = &heads[at].header;
        let (id, chain) = (self.scan.end_id, self.scan.chain);
        let mut joint = Joint { at: header.len_bytes(), link: header.crc(), frame_id: header.first_id };
        if id <= header.first_id {
            return Ok((header.chain == chain).then_some(joint));
        }
        self.load(heads[at].slot)?;
        while let Some((frame, next)) = self.step(heads, header, &joint) {
            let end_id = frame.first_id + u64::from(frame.records);
            if end_id > id {
                return Ok((frame.crc == chain).then_some(joint));
            }
            joint = Joint { at: next, link: frame.crc, frame_id: end_id };
            if end_id == id {
                return Ok((frame.crc == chain).then_some(joint));
            }
        }
        Ok(None)
    }

    /// The frame at `joint` in the loaded segment, and the offset after it.
    fn step(&self, heads: &[Head], header: &SegmentHeader, joint: &Joint) -> Option<(FrameHeader, usize)> {
        let rest = self.loaded.get(joint.at..header.frames_end(self.geometry))?;
        let found = self.find(rest, joint, heads, header)?;
        Some((found.frame, joint.at + self.geometry.frame_bytes(found.frame.payload_bytes) as usize))
    }

    /// Walks the segment `heads[at]` from `joint` on.
    fn read_segment(&mut self, heads: &[Head], at: usize, joint: &Joint) -> Result<(), ReplayError<M::Error>> {
        let head = &heads[at];
        let header = &head.header;
        let base = self.geometry.base(head.slot);
        let (from_id, chain, frames) = (self.scan.end_id, self.scan.chain, self.scan.frames);
        let is_at_start = joint.at == header.len_bytes();
        let lost_before = joint.frame_id.saturating_sub(from_id);
        if header.moved.is_none() && is_at_start && lost_before > 0 {
            self.drop(base, 0, Some(lost_before), DropReason::LostBefore);
        }
        self.load(head.slot)?;
        self.scan.next_id = joint.frame_id.max(from_id);
        let end = self.walk_frames(heads, head, joint);
        let is_finished = self.end_moved(header, &end);
        let is_empty = self.scan.frames == frames;
        self.note_hole(head, end.at, is_finished);
        if head.is_repaired {
            // A start that was cut a moment before its end looks like a decayed header, but has no frames.
            let is_start = is_empty && header.moved.is_none();
            let reason = if is_start { DropReason::TornHeader } else { DropReason::DamagedHeader };
            self.drop(base, header.len_bytes() as u32, Some(0), reason);
        }
        self.scan.used_bytes += end.at as u64;
        self.scan.segments.push(Segment {
            slot: head.slot,
            version: header.version,
            sequence: header.sequence,
            from_id,
            held_from_id: header.end_id,
            used_bytes: end.at as u32,
            chain,
            end_chain: self.scan.chain,
            seal: header.seal,
            has_remains: self.hole.is_some(),
        });
        self.scan.active = None;
        let is_active = header.moved.is_none() && header.version == FORMAT_VERSION && !is_empty;
        if is_active && self.hole.is_none() && header.seal.is_some() == self.sealer.is_some() {
            self.scan.active = Some(Active { slot: head.slot, at: end.at as u32, link: end.link });
            self.active_next_id = self.scan.next_id;
        }
        Ok(())
    }

    /// After a whole segment of a compaction the log goes on where that says, which may be above its last frame.
    fn end_moved(&mut self, header: &SegmentHeader, end: &Joint) -> bool {
        let Some(moved) = header.moved else {
            return true;
        };
        let has_frames = header.first_id < moved.until_id;
        let is_finished = !has_frames || end.link == moved.last_crc;
        if is_finished {
            self.scan.end_id = moved.until_id;
            self.scan.next_id = moved.until_id;
            self.scan.chain = moved.chain;
        }
        is_finished
    }

    fn note_hole(&mut self, head: &Head, at: usize, is_finished: bool) {
        let rest = &self.loaded[at..head.header.frames_end(self.geometry)];
        let missing = head.header.moved.filter(|_| !is_finished).map(|moved| moved.until_id);
        self.hole = (!is_erased(rest) || !is_finished).then(|| Hole {
            offset: self.geometry.base(head.slot) + at as u32,
            bytes: written_bytes(rest),
            hidden_id: hidden_end_id(rest, self.geometry).max(missing),
        });
    }

    /// Reads the segment in `slot` into memory, unless it was the last one that was.
    fn load(&mut self, slot: u32) -> Result<(), ReplayError<M::Error>> {
        if self.loaded_slot == Some(slot) {
            return Ok(());
        }
        self.loaded_slot = None;
        self.loaded.resize(self.geometry.segment_bytes as usize, 0);
        self.scan.read_bytes += self.loaded.len() as u64;
        self.medium
            .read(self.geometry.base(slot), &mut self.loaded)
            .map_err(|source| reading(source, "read a segment"))?;
        self.loaded_slot = Some(slot);
        Ok(())
    }

    /// Follows the frames of the loaded segment; returns where they end.
    fn walk_frames(&mut self, heads: &[Head], head: &Head, joint: &Joint) -> Joint {
        let segment = core::mem::take(&mut self.loaded);
        let base = self.geometry.base(head.slot);
        let frames_end = head.header.frames_end(self.geometry);
        let until = head.header.moved.unwrap_or(super::segment::Moved { until_id: u64::MAX, chain: 0, last_crc: 0 });
        let from_id = self.scan.end_id;
        let mut end = *joint;
        while end.frame_id < head.limit_id.min(until.until_id) {
            if head.header.moved.is_some() && end.link == until.last_crc {
                break;
            }
            let Some(found) = self.find(&segment[end.at..frames_end], &end, heads, &head.header) else {
                break;
            };
            let Some(after) = found.frame.end_id().filter(|&after| after <= head.limit_id) else {
                break;
            };
            let offset = base + end.at as u32;
            if found.is_repaired {
                let bytes = (FRAME_HEADER_BYTES + found.payload.len()) as u32;
                self.drop(offset, bytes, Some(0), DropReason::DamagedFrame);
            }
            self.read_frame(offset, from_id, &head.header, &found);
            let filling = end.at + FRAME_HEADER_BYTES + found.payload.len();
            let next = (end.at + self.geometry.frame_bytes(found.frame.payload_bytes) as usize).min(frames_end);
            if !is_erased(&segment[filling..next]) {
                let (offset, bytes) = (base + filling as u32, (next - filling) as u32);
                self.drop(offset, bytes, Some(0), DropReason::DamagedPadding);
            }
            self.scan.end_id = after;
            self.scan.next_id = after;
            self.scan.chain = found.frame.crc;
            self.scan.frames += 1;
            end = Joint { at: next, link: found.frame.crc, frame_id: after };
        }
        self.loaded = segment;
        end
    }

    /// The frame at the start of `rest`, if it is the one that comes next. One flipped bit is put right if what follows
    /// vouches for the frame by linking to it. Nothing vouches for the last frame of the log, which may be torn.
    fn find<'f>(&self, rest: &'f [u8], joint: &Joint, heads: &[Head], header: &SegmentHeader) -> Option<Found<'f>> {
        let is_first = joint.at == header.len_bytes();
        let comes_next = |frame: &FrameHeader| {
            let is_linked = frame.first_id == joint.frame_id && frame.previous_crc == joint.link;
            is_linked && (!is_first || header.begins_with(frame))
        };
        if let Some((frame, payload)) = FrameHeader::parse(rest).filter(|(frame, _)| comes_next(frame)) {
            return Some(Found { frame, payload: Cow::Borrowed(payload), is_repaired: false });
        }
        if is_erased(rest.get(..FRAME_HEADER_BYTES)?) {
            return None;
        }
        let mut repaired = repair_frame(rest)?;
        let (frame, _) = FrameHeader::parse(&repaired).filter(|(frame, _)| comes_next(frame))?;
        let follower = rest
            .get(self.geometry.frame_bytes(frame.payload_bytes) as usize..)
            .and_then(FrameHeader::read)
            .map(|follower| (follower.first_id, follower.previous_crc));
        let own = (frame.end_id()?, frame.crc);
        let is_vouched_for = follower == Some(own)
            || header.moved.is_some_and(|moved| moved.last_crc == frame.crc)
            || heads.iter().any(|head| (head.header.end_id, head.header.chain) == own);
        let payload = Cow::Owned(repaired.split_off(FRAME_HEADER_BYTES));
        is_vouched_for.then_some(Found { frame, payload, is_repaired: true })
    }

    fn read_frame(&mut self, offset: u32, from_id: u64, header: &SegmentHeader, found: &Found<'_>) {
        let Found { frame, payload, .. } = found;
        let opened = open_payload(frame, payload, header.seal, header.sequence, self.sealer);
        let (heads, unread) = match opened.as_ref().and_then(Opened::heads) {
            Some(read) => read,
            None => return self.drop(offset, frame.payload_bytes, Some(frame.records.into()), DropReason::Undecodable),
        };
        if unread > 0 {
            self.drop(offset, frame.payload_bytes, Some(unread), DropReason::Undecodable);
        }
        (self.seen)(SeenFrame { at: offset, from_id, heads });
    }

    /// What stands on the medium and is not part of the log: replaced by a compaction, cut off before, or cut off now.
    fn leave_behind(&mut self, heads: &[Head]) -> Result<(), ReplayError<M::Error>> {
        let end_id = self.scan.end_id;
        // Oldest first, as the records in them were stored.
        for head in heads.iter().rev().filter(|head| !head.is_done) {
            if head.is_void() {
                self.scan.slots[head.slot as usize] = Slot::Orphan;
                continue;
            }
            self.load(head.slot)?;
            let base = self.geometry.base(head.slot);
            let bytes = written_bytes(&self.loaded);
            let hidden = hidden_end_id(&self.loaded, self.geometry).unwrap_or(0).max(head.header.first_id);
            if hidden <= end_id {
                self.scan.slots[head.slot as usize] = Slot::Remains;
                self.scan.has_stale = true;
                self.drop(base, bytes, Some(0), DropReason::TornCompaction);
                continue;
            }
            if let Some(hole) = self.hole.take() {
                self.lose_until(hole.hidden_id.unwrap_or(0), hole.offset, hole.bytes);
            }
            self.lose_until(hidden, base, bytes);
            self.scan.slots[head.slot as usize] = Slot::Orphan;
            self.scan.active = None;
        }
        match self.hole.take() {
            Some(hole) => self.end_in_hole(&hole),
            // A header without frames: the next start writes another.
            None => {
                if let Some((offset, bytes)) = self.free_last_if_empty()
                    && !self.scan.dropped.iter().any(|dropped| dropped.offset == offset)
                {
                    self.drop(offset, bytes, Some(0), DropReason::TornHeader);
                }
            }
        }
        Ok(())
    }

    /// The ids up to `end_id` were given out and their records are lost.
    fn lose_until(&mut self, end_id: u64, offset: u32, bytes: u32) {
        let end_id = end_id.max(self.scan.next_id);
        let records = end_id - self.scan.next_id;
        self.drop(offset, bytes, Some(records), DropReason::Lost);
        self.scan.next_id = end_id;
    }

    /// The log ends in a hole: an append that was cut short, or the place of frames that were whole once.
    fn end_in_hole(&mut self, hole: &Hole) {
        let lost = hole.hidden_id.map_or(0, |hidden| hidden.saturating_sub(self.scan.end_id));
        let (records, reason) = match lost {
            0 => (None, DropReason::TornTail),
            lost => (Some(lost), DropReason::Lost),
        };
        self.drop(hole.offset, hole.bytes, records, reason);
        if lost == 0 {
            self.free_last_if_empty();
        }
        // One frame at most is in flight, so whole frames behind a hole were acknowledged: their ids stay used.
        self.scan.next_id = self.scan.next_id.max(self.scan.end_id + lost);
    }

    /// Gives the last segment back if nothing was stored in it; says where it is and how long.
    fn free_last_if_empty(&mut self) -> Option<(u32, u32)> {
        let end_id = self.scan.end_id;
        let is_empty =
            |segment: &mut Segment| segment.used_bytes as usize == segment.header_bytes() && segment.from_id == end_id;
        let segment = self.scan.segments.pop_if(is_empty)?;
        self.scan.slots[segment.slot as usize] = Slot::Remains;
        self.scan.used_bytes -= u64::from(segment.used_bytes);
        Some((self.geometry.base(segment.slot), segment.used_bytes))
    }

    /// Reports the broken slots, and keeps the ids of the records in them from being given out again: a revision that
    /// names one would mean another record.
    fn keep_lost_ids(&mut self) {
        for broken in core::mem::take(&mut self.broken) {
            let base = self.geometry.base(broken.slot);
            let Some(end_id) = broken.end_id else {
                self.drop(base, broken.bytes, Some(0), DropReason::TornHeader);
                continue;
            };
            if end_id <= self.scan.end_id {
                // All that was in it is in the log: its erase was cut short.
                self.drop(base, broken.bytes, Some(0), DropReason::TornCompaction);
                self.scan.has_stale = true;
                continue;
            }
            self.scan.slots[broken.slot as usize] = Slot::Damaged;
            // Others were counted where the log is cut.
            let lost = end_id.saturating_sub(self.scan.next_id);
            self.drop(base, broken.bytes, Some(lost), DropReason::DamagedHeader);
            self.scan.next_id += lost;
        }
        // A segment cannot skip ids, so lost ones need a new segment that begins behind them.
        if self.scan.next_id != self.active_next_id {
            self.scan.active = None;
        }
    }

    fn drop(&mut self, offset: u32, bytes: u32, records: Option<u64>, reason: DropReason) {
        self.scan.dropped.push(Dropped { offset, bytes, records, reason });
    }
}

/// A segment that an append started ends the log before it: a recovery did that, or there was nothing behind.
fn set_limits(heads: &mut [Head]) {
    let mut limit_id = u64::MAX;
    for head in heads {
        head.limit_id = limit_id;
        if head.header.moved.is_none() {
            limit_id = limit_id.min(head.header.end_id);
        }
    }
}

/// Length of `bytes` without the erased end.
fn written_bytes(bytes: &[u8]) -> u32 {
    bytes.iter().rposition(|&byte| byte != 0xFF).map_or(0, |at| at as u32 + 1)
}

fn reading<E: core::error::Error + 'static>(source: E, doing: &'static str) -> ReplayError<E> {
    ReplayError::Medium { doing, source }
}
