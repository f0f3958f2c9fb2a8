//! Reading a whole medium: which segments are in use, which frames carry on the log, where it ends.
//!
//! The scan changes nothing. Opening a log and verifying one are the same scan with different eyes.
//!
//! What comes out is a prefix of what was appended, whatever the medium did: where something is missing that was
//! written, because a sync lied or flash decayed, the log is cut, and what follows is kept out of it. One flipped bit
//! in a frame or a header is put right first (see `repair.rs`).

use alloc::vec;
use alloc::vec::Vec;

use super::error::{DropReason, Dropped, ReplayError};
use super::record::Record;
use super::repair::{repair_frame, repair_header};
use super::segment::{
    FORMAT_VERSION, FRAME_HEADER_BYTES, FRAME_PLAIN, FrameHeader, Geometry, HeaderState, SEGMENT_HEADER_BYTES,
    SegmentHeader, hidden_end_id, is_erased,
};
use crate::storage::Medium;

/// What a slot, the place of one segment, holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    /// No header; may be started (after a look at the rest).
    Erased,
    /// Remains of a start that was cut short; erased and started before any other.
    Torn,
    /// A segment that is not part of the log any more; erased when nothing else is left.
    Orphan,
    /// Whole frames under a header that cannot be read: left as it is, for someone to rescue.
    Damaged,
    /// Part of the log.
    Used,
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

/// Where a record is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) id: u64,
    pub(crate) frame_at: u32,
    pub(crate) record_at: u32,
}

/// What the scan found.
#[derive(Debug)]
pub(crate) struct Scan {
    pub(crate) slots: Vec<Slot>,
    /// `None` if the next frame needs a new segment.
    pub(crate) active: Option<Active>,
    /// The id after the last record.
    pub(crate) end_id: u64,
    /// The id of the next record. Above `end_id` where ids after it were given out and their records are lost.
    pub(crate) next_id: u64,
    /// CRC of the last frame.
    pub(crate) chain: u32,
    pub(crate) last_sequence: u64,
    pub(crate) frames: u64,
    /// Headers and frames, without unused ends of segments.
    pub(crate) used_bytes: u64,
    pub(crate) read_bytes: u64,
    pub(crate) dropped: Vec<Dropped>,
}

/// Scans `medium` and shows each record to `seen` in the order of the log; `seen` says whether it could use it.
pub(crate) fn scan<M: Medium>(
    medium: &mut M,
    geometry: &Geometry,
    tokenizer_digest: &[u8; 32],
    seen: &mut dyn FnMut(Place, Record<'_>) -> bool,
) -> Result<Scan, ReplayError<M::Error>> {
    let mut walk = Walk {
        medium,
        geometry,
        seen,
        scan: Scan {
            slots: vec![Slot::Erased; geometry.segments as usize],
            active: None,
            end_id: 1,
            next_id: 1,
            chain: 0,
            last_sequence: 0,
            frames: 0,
            used_bytes: 0,
            read_bytes: 0,
            dropped: Vec::new(),
        },
        segment: Vec::new(),
        broken: Vec::new(),
        hole: None,
        active_next_id: 1,
    };
    let mut heads = walk.read_headers(tokenizer_digest)?;
    walk.judge_broken_slots()?;
    walk.drop_superseded(&mut heads);
    for at in 0..heads.len() {
        let next = heads.get(at + 1).map(|head| &head.header);
        if !walk.carries_on(&heads[at]) {
            walk.drop_orphans(&heads[at..])?;
            break;
        }
        walk.read_segment(&heads[at], next)?;
    }
    walk.keep_lost_ids();
    Ok(walk.scan)
}

/// A segment with a sound header.
struct Head {
    slot: u32,
    header: SegmentHeader,
    /// A flipped bit of it was put right.
    is_repaired: bool,
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

struct Walk<'a, M> {
    medium: &'a mut M,
    geometry: &'a Geometry,
    seen: &'a mut dyn FnMut(Place, Record<'_>) -> bool,
    scan: Scan,
    /// The segment last loaded.
    segment: Vec<u8>,
    broken: Vec<Broken>,
    /// At the end of the segment last walked.
    hole: Option<Hole>,
    /// The id the active segment goes on with.
    active_next_id: u64,
}

impl<M: Medium> Walk<'_, M> {
    /// Reads the header of every slot; returns the sound ones, oldest first.
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
                HeaderState::Broken => Slot::Torn,
                HeaderState::Newer(found) => {
                    return Err(ReplayError::NewerFormat { offset, found, supported: FORMAT_VERSION });
                }
                HeaderState::Valid(header) => {
                    check_header(&header, self.geometry, tokenizer_digest)?;
                    self.scan.last_sequence = self.scan.last_sequence.max(header.sequence);
                    heads.push(Head { slot, header, is_repaired: header.encode() != bytes });
                    Slot::Used
                }
            };
            self.scan.slots[slot as usize] = state;
        }
        heads.sort_by_key(|head| (head.header.sequence, head.slot));
        Ok(heads)
    }

    /// Tells segments with a damaged header from starts that were cut short.
    fn judge_broken_slots(&mut self) -> Result<(), ReplayError<M::Error>> {
        for slot in 0..self.geometry.segments {
            if self.scan.slots[slot as usize] != Slot::Torn {
                continue;
            }
            self.load(slot)?;
            let end_id = hidden_end_id(&self.segment, self.geometry);
            if end_id.is_some() {
                self.scan.slots[slot as usize] = Slot::Damaged;
            }
            self.broken.push(Broken { slot, bytes: written_bytes(&self.segment), end_id });
        }
        Ok(())
    }

    /// Frees segments that a later one replaced: it ends the log before them. A recovery did that, which dropped them.
    fn drop_superseded(&mut self, heads: &mut Vec<Head>) {
        let mut end_id = u64::MAX;
        let slots = &mut self.scan.slots;
        heads.reverse();
        heads.retain(|head| {
            let is_kept = head.header.first_id < end_id;
            if !is_kept {
                slots[head.slot as usize] = Slot::Orphan;
            }
            end_id = end_id.min(head.header.end_id);
            is_kept
        });
        heads.reverse();
    }

    /// Whether the log goes on in the segment `head`, after what was read so far.
    fn carries_on(&mut self, head: &Head) -> bool {
        let header = &head.header;
        let base = self.geometry.base(head.slot);
        if header.end_id != self.scan.end_id {
            return false;
        }
        if header.chain != self.scan.chain {
            self.drop(base, 0, Some(0), DropReason::Unlinked);
            return false;
        }
        let lost_before = header.first_id - header.end_id;
        if lost_before > 0 {
            self.drop(base, 0, Some(lost_before), DropReason::LostBefore);
        }
        self.scan.next_id = header.first_id;
        true
    }

    /// Walks one segment; `next` is the header of the one after it, which says where this one ends.
    fn read_segment(&mut self, head: &Head, next: Option<&SegmentHeader>) -> Result<(), ReplayError<M::Error>> {
        let base = self.geometry.base(head.slot);
        let before = self.scan.frames;
        self.load(head.slot)?;
        let (at, link) = self.walk_frames(base, head.header.crc(), next);
        self.scan.used_bytes += at as u64;
        let is_whole = match next {
            Some(next) => self.scan.end_id == next.end_id,
            None => is_erased(&self.segment[at..]),
        };
        let is_empty = self.scan.frames == before;
        if head.is_repaired {
            // A start that was cut a moment before its end looks like a decayed header, but has no frames.
            let reason = match is_empty && next.is_none() {
                true => DropReason::TornHeader,
                false => DropReason::DamagedHeader,
            };
            self.drop(base, SEGMENT_HEADER_BYTES as u32, Some(0), reason);
        }
        if !is_whole {
            let rest = &self.segment[at..];
            self.hole = Some(Hole {
                offset: base + at as u32,
                bytes: written_bytes(rest),
                hidden_id: hidden_end_id(rest, self.geometry),
            });
        } else if next.is_none() && head.is_repaired && is_empty {
            self.scan.slots[head.slot as usize] = Slot::Torn;
        } else if next.is_none() {
            let (slot, at) = (head.slot, at as u32);
            self.scan.active = Some(Active { slot, at, link });
            self.active_next_id = self.scan.next_id;
        }
        if next.is_none()
            && let Some(hole) = self.hole.take()
        {
            self.end_in_hole(head.slot, &hole, is_empty);
        }
        Ok(())
    }

    /// Reads the segment in `slot` into memory.
    fn load(&mut self, slot: u32) -> Result<(), ReplayError<M::Error>> {
        self.segment.resize(self.geometry.segment_bytes as usize, 0);
        self.scan.read_bytes += self.segment.len() as u64;
        self.medium
            .read(self.geometry.base(slot), &mut self.segment)
            .map_err(|source| reading(source, "read a segment"))
    }

    /// Follows the frames of the loaded segment; returns the offset after the last one, and what the next links to.
    fn walk_frames(&mut self, base: u32, mut link: u32, next: Option<&SegmentHeader>) -> (usize, u32) {
        let segment = core::mem::take(&mut self.segment);
        let end_id = next.map_or(u64::MAX, |next| next.end_id);
        let mut at = SEGMENT_HEADER_BYTES;
        while self.scan.next_id < end_id {
            let rest = &segment[at..];
            let repaired;
            let found = match self.carrying_on(FrameHeader::parse(rest), link) {
                Some(found) => Some(found),
                None => {
                    repaired = self.repaired(rest, link, next);
                    let offset = base + at as u32;
                    if let Some(whole) = &repaired {
                        let bytes = whole.len() as u32;
                        self.drop(offset, bytes, Some(0), DropReason::DamagedFrame);
                    }
                    repaired.as_deref().and_then(FrameHeader::parse)
                }
            };
            let Some((frame, payload)) = found else { break };
            let Some(after) = frame.end_id().filter(|&after| after <= end_id) else {
                break;
            };
            self.read_frame(base + at as u32, &frame, payload);
            let filling = at + FRAME_HEADER_BYTES + payload.len();
            let frame_bytes = self.geometry.frame_bytes(frame.payload_bytes) as usize;
            at = (at + frame_bytes).min(segment.len());
            if !is_erased(&segment[filling..at]) {
                let (offset, bytes) = (base + filling as u32, (at - filling) as u32);
                self.drop(offset, bytes, Some(0), DropReason::DamagedPadding);
            }
            self.scan.end_id = after;
            self.scan.next_id = after;
            self.scan.chain = frame.crc;
            self.scan.frames += 1;
            link = frame.crc;
        }
        self.segment = segment;
        (at, link)
    }

    /// `found`, if it is the frame that comes next.
    fn carrying_on<'f>(&self, found: Option<(FrameHeader, &'f [u8])>, link: u32) -> Option<(FrameHeader, &'f [u8])> {
        found.filter(|(frame, _)| frame.first_id == self.scan.next_id && frame.previous_crc == link)
    }

    /// The frame at the start of `rest` with a flipped bit put right, if what follows it vouches for it by linking to
    /// it. Nothing vouches for the last frame of the log, which may be torn.
    fn repaired(&self, rest: &[u8], link: u32, next: Option<&SegmentHeader>) -> Option<Vec<u8>> {
        if is_erased(rest.get(..FRAME_HEADER_BYTES)?) {
            return None;
        }
        let repaired = repair_frame(rest)?;
        let (frame, _) = self.carrying_on(FrameHeader::parse(&repaired), link)?;
        let follower = rest
            .get(self.geometry.frame_bytes(frame.payload_bytes) as usize..)
            .and_then(FrameHeader::read)
            .map(|follower| (follower.first_id, follower.previous_crc));
        let next = next.map(|next| (next.end_id, next.chain));
        let own = Some((frame.end_id()?, frame.crc));
        (follower == own || next == own).then_some(repaired)
    }

    fn read_frame(&mut self, frame_at: u32, frame: &FrameHeader, payload: &[u8]) {
        let mut rest = payload;
        let mut unread = u64::from(frame.records);
        let mut unused = 0;
        if frame.codec == FRAME_PLAIN {
            for nth in 0..u64::from(frame.records) {
                let Some((record, after)) = Record::take(rest) else {
                    break;
                };
                let place =
                    Place { id: frame.first_id + nth, frame_at, record_at: (payload.len() - rest.len()) as u32 };
                unused += u64::from(!(self.seen)(place, record));
                unread -= 1;
                rest = after;
            }
        }
        let lost = unread + unused;
        if lost > 0 || !rest.is_empty() {
            let bytes = payload.len() as u32;
            self.drop(frame_at, bytes, Some(lost), DropReason::Undecodable);
        }
    }

    /// The log ends in a hole: an append that was cut short, or the place of frames that were whole once.
    fn end_in_hole(&mut self, slot: u32, hole: &Hole, is_empty: bool) {
        let lost = hole.hidden_id.map_or(0, |hidden| hidden.saturating_sub(self.scan.end_id));
        let (records, reason) = match lost {
            0 => (None, DropReason::TornTail),
            lost => (Some(lost), DropReason::Lost),
        };
        self.drop(hole.offset, hole.bytes, records, reason);
        if is_empty && lost == 0 {
            self.scan.slots[slot as usize] = Slot::Torn;
        }
        // One frame at most is in flight, so whole frames behind a hole were acknowledged: their ids stay used.
        self.scan.next_id = self.scan.next_id.max(self.scan.end_id + lost);
    }

    /// Cuts the log before the segments `heads`, which do not carry on what was read.
    fn drop_orphans(&mut self, heads: &[Head]) -> Result<(), ReplayError<M::Error>> {
        if let Some(hole) = self.hole.take() {
            let end_id = hole.hidden_id.unwrap_or(0).max(self.scan.next_id);
            let records = end_id - self.scan.next_id;
            self.drop(hole.offset, hole.bytes, Some(records), DropReason::Lost);
            self.scan.next_id = end_id;
        }
        for head in heads {
            self.load(head.slot)?;
            let hidden = hidden_end_id(&self.segment, self.geometry).unwrap_or(0);
            let end_id = hidden.max(head.header.first_id).max(self.scan.next_id);
            let base = self.geometry.base(head.slot);
            let bytes = written_bytes(&self.segment);
            let records = end_id - self.scan.next_id;
            self.drop(base, bytes, Some(records), DropReason::Lost);
            self.scan.next_id = end_id;
            self.scan.slots[head.slot as usize] = Slot::Orphan;
        }
        Ok(())
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

fn check_header<E: core::error::Error + 'static>(
    header: &SegmentHeader,
    geometry: &Geometry,
    tokenizer_digest: &[u8; 32],
) -> Result<(), ReplayError<E>> {
    if header.segment_bytes != geometry.segment_bytes || header.word_bytes != geometry.word_bytes {
        return Err(ReplayError::OtherGeometry { segment_bytes: header.segment_bytes, word_bytes: header.word_bytes });
    }
    if header.tokenizer_digest != *tokenizer_digest {
        return Err(ReplayError::OtherTokenizer { expected: *tokenizer_digest, found: header.tokenizer_digest });
    }
    Ok(())
}

fn reading<E: core::error::Error + 'static>(source: E, doing: &'static str) -> ReplayError<E> {
    ReplayError::Medium { doing, source }
}
