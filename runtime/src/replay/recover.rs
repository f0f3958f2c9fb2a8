//! Reading a whole medium: which segments are in use, which frames carry on the log, where it ends.
//!
//! The scan changes nothing. Opening a log and verifying one are the same scan with different eyes.
//!
//! The log is one row of ids, and each segment answers for a stretch of it. Where several answer for the same id, the one
//! with the highest sequence does, if it is whole: a compaction replaces older segments that way. What comes out is a
//! prefix of what was appended, whatever the medium did: where something is missing that was written, because a sync
//! lied or flash decayed, the log is cut, and what follows is kept out of it. One flipped bit in a frame or a header is
//! put right first (see `repair.rs`).

use alloc::vec;
use alloc::vec::Vec;

use super::batch::Heads;
use super::error::{DropReason, Dropped, ReplayError};
use super::frame::{Opened, open_payload};
use super::repair::{is_repaired, repair_header};
use super::route::{Found, Head, Joint, Loader, Place, Route};
use super::seal::Sealer;
use super::segment::{
    FORMAT_VERSION, FRAME_HEADER_BYTES, Geometry, HeaderState, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentSeal,
    hidden_end_id, is_erased, parse_wear_word,
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
    /// Frames stand outside the log: of segments that a compaction replaced but did not erase, or that were cut off.
    pub(crate) has_stale: bool,
    /// Ids of all examples in segments that are, or might have been, on the log's way, where there were several ways.
    /// Ascending, below `end_id`.
    pub(crate) rival_ids: Vec<u64>,
    /// Where segments that no way leads to would join the log.
    pub(crate) loose_ends: Vec<Place>,
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
    let mut loader = Loader::new(medium, geometry);
    let mut view = View::new(geometry, sealer, seen);
    let heads = read_headers(&mut loader, &mut view, tokenizer_digest)?;
    let mut walk = Walk { loader, route: Route::new(geometry, heads), view };
    walk.read_broken_slots()?;
    walk.follow()?;
    walk.leave_behind()?;
    walk.view.keep_lost_ids();
    walk.note_rivals()?;
    walk.view.scan.read_bytes = walk.loader.read_bytes;
    Ok(walk.view.scan)
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

/// The log as far as it was shown.
struct View<'a> {
    geometry: &'a Geometry,
    sealer: Option<&'a Sealer>,
    seen: &'a mut dyn FnMut(SeenFrame<'_>),
    scan: Scan,
    broken: Vec<Broken>,
    /// At the end of the segment last walked.
    hole: Option<Hole>,
    /// The id the active segment goes on with.
    active_next_id: u64,
}

struct Walk<'a, M> {
    loader: Loader<'a, M>,
    route: Route<'a>,
    view: View<'a>,
}

/// Reads the header of every slot; returns the sound ones.
fn read_headers<M: Medium>(
    loader: &mut Loader<'_, M>,
    view: &mut View<'_>,
    tokenizer_digest: &[u8; 32],
) -> Result<Vec<Head>, ReplayError<M::Error>> {
    let geometry = view.geometry;
    let mut heads = Vec::new();
    for slot in 0..geometry.segments {
        let offset = geometry.base(slot);
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        loader.medium.read(offset, &mut bytes).map_err(|source| reading(source, "read a segment header"))?;
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
                view.check_header(&header, tokenizer_digest)?;
                view.scan.last_sequence = view.scan.last_sequence.max(header.sequence);
                heads.push(Head::new(slot, header, is_repaired(&bytes, &header)));
                Slot::Used
            }
        };
        view.scan.slots[slot as usize] = state;
        let mut word = [0; 8];
        let word_at = offset + geometry.frames_end();
        loader.medium.read(word_at, &mut word).map_err(|source| reading(source, "read an erase count"))?;
        view.scan.wear[slot as usize] = parse_wear_word(&word);
    }
    Ok(heads)
}

impl<M: Medium> Walk<'_, M> {
    /// Looks for whole frames under headers that are not sound.
    fn read_broken_slots(&mut self) -> Result<(), ReplayError<M::Error>> {
        for slot in 0..self.view.geometry.segments {
            if self.view.scan.slots[slot as usize] == Slot::Remains {
                let bytes = self.loader.load(slot)?;
                let end_id = hidden_end_id(bytes, self.view.geometry);
                self.view.broken.push(Broken { slot, bytes: written_bytes(bytes), end_id });
            }
        }
        Ok(())
    }

    /// Shows the log, segment by segment.
    fn follow(&mut self) -> Result<(), ReplayError<M::Error>> {
        let Self { loader, route, view } = self;
        loop {
            let steps = route.next(loader, view.place())?;
            if steps.is_empty() {
                break;
            }
            for step in steps {
                if step.from != view.place() {
                    // The medium reads differently each time.
                    break;
                }
                route.heads[step.head].is_done = true;
                let head = &route.heads[step.head];
                view.read_segment(route, head, loader.load(head.slot)?, &step.joint);
            }
        }
        if let Some(head) = route.unlinked(view.scan.end_id) {
            view.drop(view.geometry.base(head.slot), 0, Some(0), DropReason::Unlinked);
        }
        Ok(())
    }

    /// What stands on the medium and is not part of the log: replaced by a compaction, cut off before, or cut off now.
    fn leave_behind(&mut self) -> Result<(), ReplayError<M::Error>> {
        let Self { loader, route, view } = self;
        let end_id = view.scan.end_id;
        // Oldest first, as the records in them were stored.
        for head in route.heads.iter().rev().filter(|head| !head.is_done) {
            view.scan.has_stale = true;
            if !head.is_rival {
                view.scan.loose_ends.push(Place { id: head.header.end_id, chain: head.header.chain });
            }
            if head.is_void() {
                view.scan.slots[head.slot as usize] = Slot::Orphan;
                continue;
            }
            let segment = loader.load(head.slot)?;
            let base = view.geometry.base(head.slot);
            let bytes = written_bytes(segment);
            let hidden = hidden_end_id(segment, view.geometry).unwrap_or(0).max(head.header.first_id);
            if hidden <= end_id {
                view.scan.slots[head.slot as usize] = Slot::Remains;
                view.drop(base, bytes, Some(0), DropReason::TornCompaction);
                continue;
            }
            if let Some(hole) = view.hole.take() {
                view.lose_until(hole.hidden_id.unwrap_or(0), hole.offset, hole.bytes);
            }
            view.lose_until(hidden, base, bytes);
            view.scan.slots[head.slot as usize] = Slot::Orphan;
            view.scan.active = None;
        }
        view.end();
        Ok(())
    }

    /// Lists what the segments on all ways hold, where there were several.
    fn note_rivals(&mut self) -> Result<(), ReplayError<M::Error>> {
        let Self { loader, route, view } = self;
        for head in route.heads.iter().filter(|head| head.is_rival) {
            let segment = loader.load(head.slot)?;
            let mut joint = head.first_joint();
            while let Some((found, behind)) = route.next_frame(segment, head, &joint) {
                let opened = view.open(&head.header, &found);
                let heads = opened.as_ref().and_then(Opened::heads);
                let ids = heads.iter().flat_map(|(heads, _)| heads.examples.iter().map(|head| head.id));
                view.scan.rival_ids.extend(ids.filter(|&id| id < view.scan.end_id));
                joint = behind;
            }
        }
        view.scan.rival_ids.sort_unstable();
        view.scan.rival_ids.dedup();
        Ok(())
    }
}

impl<'a> View<'a> {
    fn new(geometry: &'a Geometry, sealer: Option<&'a Sealer>, seen: &'a mut dyn FnMut(SeenFrame<'_>)) -> Self {
        let scan = Scan {
            slots: vec![Slot::Erased; geometry.segments as usize],
            wear: vec![None; geometry.segments as usize],
            segments: Vec::new(),
            active: None,
            end_id: 1,
            next_id: 1,
            chain: 0,
            last_sequence: 0,
            has_stale: false,
            rival_ids: Vec::new(),
            loose_ends: Vec::new(),
            frames: 0,
            used_bytes: 0,
            read_bytes: 0,
            dropped: Vec::new(),
        };
        Self { geometry, sealer, seen, scan, broken: Vec::new(), hole: None, active_next_id: 1 }
    }

    fn place(&self) -> Place {
        Place { id: self.scan.end_id, chain: self.scan.chain }
    }

    fn check_header<E: core::error::Error + 'static>(
        &self,
        header: &SegmentHeader,
        tokenizer_digest: &[u8; 32],
    ) -> Result<(), ReplayError<E>> {
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

    /// Walks a segment from `joint` on.
    fn read_segment(&mut self, route: &Route<'_>, head: &Head, segment: &[u8], joint: &Joint) {
        let header = &head.header;
        let base = self.geometry.base(head.slot);
        let (from_id, chain, frames) = (self.scan.end_id, self.scan.chain, self.scan.frames);
        let is_at_start = joint.at == header.len_bytes();
        let lost_before = joint.frame_id.saturating_sub(from_id);
        if header.moved.is_none() && is_at_start && lost_before > 0 {
            self.drop(base, 0, Some(lost_before), DropReason::LostBefore);
        }
        self.scan.next_id = joint.frame_id.max(from_id);
        let end = self.walk_frames(route, head, segment, joint);
        let is_finished = self.end_moved(head, &end);
        let is_empty = self.scan.frames == frames;
        self.note_hole(head, segment, end.at, is_finished);
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
    }

    /// After a whole segment of a compaction the log goes on where that says, which may be above its last frame.
    fn end_moved(&mut self, head: &Head, end: &Joint) -> bool {
        let is_finished = head.is_finished_at(end);
        if let Some(moved) = head.header.moved.filter(|_| is_finished) {
            self.scan.end_id = moved.until_id;
            self.scan.next_id = moved.until_id;
            self.scan.chain = moved.chain;
        }
        is_finished
    }

    fn note_hole(&mut self, head: &Head, segment: &[u8], at: usize, is_finished: bool) {
        let rest = &segment[at..head.header.frames_end(self.geometry)];
        let missing = head.header.moved.filter(|_| !is_finished).map(|moved| moved.until_id);
        self.hole = (!is_erased(rest) || !is_finished).then(|| Hole {
            offset: self.geometry.base(head.slot) + at as u32,
            bytes: written_bytes(rest),
            hidden_id: hidden_end_id(rest, self.geometry).max(missing),
        });
    }

    /// Follows the frames of a segment; returns where they end.
    fn walk_frames(&mut self, route: &Route<'_>, head: &Head, segment: &[u8], joint: &Joint) -> Joint {
        let base = self.geometry.base(head.slot);
        let from_id = self.scan.end_id;
        let mut end = *joint;
        while let Some((found, behind)) = route.next_frame(segment, head, &end) {
            let offset = base + end.at as u32;
            if found.is_repaired {
                let bytes = (FRAME_HEADER_BYTES + found.payload.len()) as u32;
                self.drop(offset, bytes, Some(0), DropReason::DamagedFrame);
            }
            self.read_frame(offset, from_id, &head.header, &found);
            let filling = end.at + FRAME_HEADER_BYTES + found.payload.len();
            if !is_erased(&segment[filling..behind.at]) {
                let (offset, bytes) = (base + filling as u32, (behind.at - filling) as u32);
                self.drop(offset, bytes, Some(0), DropReason::DamagedPadding);
            }
            self.scan.end_id = behind.frame_id;
            self.scan.next_id = behind.frame_id;
            self.scan.chain = behind.link;
            self.scan.frames += 1;
            end = behind;
        }
        end
    }

    fn open<'f>(&self, header: &SegmentHeader, found: &'f Found<'_>) -> Option<Opened<'f>> {
        open_payload(&found.frame, &found.payload, header.seal, header.sequence, self.sealer)
    }

    fn read_frame(&mut self, offset: u32, from_id: u64, header: &SegmentHeader, found: &Found<'_>) {
        let frame = &found.frame;
        let opened = self.open(header, found);
        let (heads, unread) = match opened.as_ref().and_then(Opened::heads) {
            Some(read) => read,
            None => return self.drop(offset, frame.payload_bytes, Some(frame.records.into()), DropReason::Undecodable),
        };
        if unread > 0 {
            self.drop(offset, frame.payload_bytes, Some(unread), DropReason::Undecodable);
        }
        (self.seen)(SeenFrame { at: offset, from_id, heads });
    }

    /// Says how the log ends.
    fn end(&mut self) {
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

/// Length of `bytes` without the erased end.
fn written_bytes(bytes: &[u8]) -> u32 {
    bytes.iter().rposition(|&byte| byte != 0xFF).map_or(0, |at| at as u32 + 1)
}

fn reading<E: core::error::Error + 'static>(source: E, doing: &'static str) -> ReplayError<E> {
    ReplayError::Medium { doing, source }
}
