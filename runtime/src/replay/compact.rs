//! Compaction: live records are copied out of segments, the copies are synced, and only then the segments are erased.
//!
//! A copy answers for a stretch of ids in the place of what it was copied from, with a higher sequence. So a cut leaves
//! the old segments, or both, or the copy, and recovery takes the newest that is whole. One free segment is enough: each
//! copy that is written sets free at least one segment, or is not written.

use alloc::vec::Vec;
use core::ops::Range;

use super::config::{Compact, CompactReport, Eviction};
use super::error::ReplayError;
use super::log::ReplayLog;
use super::recover::{Segment, Slot};
use super::rewrite::{Packed, Rewrite};
use super::score::Score;
use super::seal::Sealer;
use super::segment::{FORMAT_VERSION, SEGMENT_HEADER_BYTES};
use crate::example::ExampleId;
use crate::storage::Medium;

/// [`Compact::Wasteful`] rewrites segments of which at most this share is live, in percent.
const WASTEFUL_PERCENT: u64 = 75;
/// A segment is moved from its place when another place was erased this many times more.
const WEAR_SPREAD: u32 = 64;
/// What an eviction frees at least, as a part of all.
const EVICTED_PART: u64 = 16;

impl<M: Medium> ReplayLog<M> {
    /// Rewrites segments to get back the room of removed records, or to be rid of their bytes. Ids stay. What is staged
    /// is flushed first. Token tables are made anew from what is copied, so the log may shrink even if nothing was removed.
    ///
    /// A power cut in the middle loses nothing; `Holding` is then called again.
    ///
    /// # Errors
    /// [`ReplayError::Full`] if no free segment is left to copy to; [`ReplayError::Damaged`] if a live record in a segment
    /// that was to be rewritten cannot be read; [`ReplayError::WriteFailed`]; [`ReplayError::Medium`].
    pub fn compact(&mut self, what: Compact<'_>) -> Result<CompactReport, ReplayError<M::Error>> {
        self.flush()?;
        let mut report = CompactReport { bytes_before: self.used_bytes, ..CompactReport::default() };
        match what {
            Compact::All => {
                self.rewrite(1..self.end_id, Rewrite::default(), &mut report)?;
            }
            Compact::Wasteful => {
                while let Some(ids) = self.wasteful_run(WASTEFUL_PERCENT) {
                    let before = self.segments.len();
                    self.rewrite(ids, Rewrite::default(), &mut report)?;
                    if self.segments.len() >= before {
                        break;
                    }
                }
            }
            Compact::Holding(ids) => self.erase_bytes_of(ids, &mut report)?,
        }
        self.level_wear(&mut report)?;
        report.bytes_after = self.used_bytes;
        Ok(report)
    }

    /// Compacts, then evicts, until `segments` can be started.
    pub(super) fn make_room(&mut self, segments: u32, needed_bytes: u64) -> Result<(), ReplayError<M::Error>> {
        let mut report = CompactReport::default();
        while self.room_segments() < segments {
            let before = self.room_segments();
            if let Some(ids) = self.wasteful_run(100) {
                self.rewrite(ids, Rewrite::default(), &mut report)?;
            }
            if self.room_segments() > before {
                continue;
            }
            let Some(rule) = self.eviction.filter(|_| self.index.len() > 0) else {
                return Err(self.full(needed_bytes));
            };
            self.evict(rule, &mut report)?;
        }
        self.level_wear(&mut report)
    }

    /// Drops records by rewriting their segments without them: for a log without room for a note of their removal.
    pub(super) fn remove_by_compaction(&mut self, ids: &[u64]) -> Result<(), ReplayError<M::Error>> {
        let done = self.rewrite_without(ids);
        if !self.medium.is_write_through() {
            self.unnoted.extend(ids.iter().filter(|&&id| self.index.get(id).is_none()));
            self.unnoted.sort_unstable();
        }
        done
    }

    fn rewrite_without(&mut self, ids: &[u64]) -> Result<(), ReplayError<M::Error>> {
        let mut report = CompactReport::default();
        for &id in ids {
            if self.index.get(id).is_some() {
                let stretch = self.stretch_of(id);
                self.rewrite(stretch, Rewrite { omitted: ids, is_cold: false }, &mut report)?;
            }
            if self.index.get(id).is_some() {
                return Err(self.full(0));
            }
        }
        Ok(())
    }

    /// Drops the records that `rule` names first, a sixteenth of the log or a segment's worth.
    fn evict(&mut self, rule: Eviction, report: &mut CompactReport) -> Result<(), ReplayError<M::Error>> {
        let mut candidates: Vec<(Score, u64, u32)> =
            self.index.iter().map(|entry| (entry.score, entry.id, u32::from(entry.tokens))).collect();
        if rule == Eviction::LowestScore {
            candidates.sort_unstable();
        }
        let tokens: u64 = self.index.tokens() + candidates.len() as u64;
        let segments = self.segments.len().max(1) as u64;
        let mut wanted = (tokens / EVICTED_PART).max(2 * tokens / segments);
        let mut evicted = Vec::new();
        for (_, id, tokens) in candidates {
            evicted.push(id);
            wanted = wanted.saturating_sub(u64::from(tokens) + 1);
            if wanted == 0 {
                break;
            }
        }
        evicted.sort_unstable();
        let (Some(&first), Some(&last)) = (evicted.first(), evicted.last()) else {
            return Ok(());
        };
        let ids = self.stretch_of(first).start..self.stretch_of(last).end;
        let before = self.index.len();
        self.rewrite(ids, Rewrite { omitted: &evicted, is_cold: false }, report)?;
        match self.index.len() < before {
            true => Ok(()),
            false => Err(self.full(0)),
        }
    }

    /// Erases every segment that holds a copy of one of `ids`, live ones moved, and all that is not part of the log.
    fn erase_bytes_of(&mut self, ids: &[ExampleId], report: &mut CompactReport) -> Result<(), ReplayError<M::Error>> {
        self.keep_lost_ids(report)?;
        self.erase_leftovers(report)?;
        let mut at = 0;
        while at < self.segments.len() {
            let segment = self.segments[at];
            let stretch = segment.from_id..self.until_id(at);
            if !segment.has_remains && !self.holds_any(&segment, stretch.end, ids)? {
                at += 1;
                continue;
            }
            if stretch.is_empty() {
                self.give_back(at, report)?;
                continue;
            }
            let until_id = stretch.end;
            if !self.rewrite(stretch, Rewrite::default(), report)? {
                return Err(self.full(u64::from(self.geometry.segment_bytes)));
            }
            at = self.segments.partition_point(|segment| segment.from_id < until_id).max(at + 1);
        }
        Ok(())
    }

    /// Whether a segment that answers up to `until_id` has bytes of one of `ids`.
    fn holds_any(
        &mut self,
        segment: &Segment,
        until_id: u64,
        ids: &[ExampleId],
    ) -> Result<bool, ReplayError<M::Error>> {
        let held = segment.held_from_id..until_id;
        if !ids.iter().any(|id| held.contains(&id.0)) {
            return Ok(false);
        }
        Ok(self.ids_in(segment)?.iter().any(|&held| ids.contains(&ExampleId(held))))
    }

    /// Where ids were given out and their records are lost, only what is left of those says so. Before it is erased, a
    /// copy of nothing answers for them, so that they stay used.
    fn keep_lost_ids(&mut self, report: &mut CompactReport) -> Result<(), ReplayError<M::Error>> {
        if self.next_id == self.end_id {
            return Ok(());
        }
        let place = Segment {
            slot: 0,
            version: FORMAT_VERSION,
            sequence: self.last_sequence + 1,
            from_id: self.end_id,
            held_from_id: self.end_id,
            used_bytes: 0,
            chain: self.chain,
            end_chain: self.chain,
            seal: self.sealer.as_ref().map(Sealer::segment),
            has_remains: false,
        };
        let nothing = Packed { frames: Vec::new(), events: 0, end: SEGMENT_HEADER_BYTES as u32 };
        let copy = self.write_copy(place, self.next_id, false, &nothing, &[])?;
        report.segments_written += 1;
        self.segments.push(copy);
        self.active = None;
        self.end_id = self.next_id;
        Ok(())
    }

    /// Erases what is not part of the log: remains of whatever was cut short, and what stands behind a header whose erase
    /// was.
    fn erase_leftovers(&mut self, report: &mut CompactReport) -> Result<(), ReplayError<M::Error>> {
        let mut left = Vec::new();
        for slot in 0..self.geometry.segments {
            let is_left = match self.slots[slot as usize] {
                Slot::Used => false,
                Slot::Remains | Slot::Orphan | Slot::Damaged => true,
                Slot::Erased => !self.reads_as_erased(slot)?,
            };
            if is_left {
                left.push(slot);
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        report.segments_freed += left.len() as u32;
        self.erase(&left)
    }

    /// Erases a segment that answers for no id.
    fn give_back(&mut self, at: usize, report: &mut CompactReport) -> Result<(), ReplayError<M::Error>> {
        let empty = self.segments.remove(at);
        self.used_bytes -= u64::from(empty.used_bytes);
        report.segments_freed += 1;
        self.erase(&[empty.slot])
    }

    /// The stretch of ids that the segment which answers for `id` answers for.
    pub(super) fn stretch_of(&self, id: u64) -> Range<u64> {
        let at = self.segments.partition_point(|segment| segment.from_id <= id).saturating_sub(1);
        self.segments[at].from_id..self.until_id(at)
    }

    /// The id after the last one that the segment at this position answers for.
    pub(super) fn until_id(&self, at: usize) -> u64 {
        self.segments.get(at + 1).map_or(self.end_id, |next| next.from_id)
    }

    /// The cheapest run of segments that takes a segment less when it is rewritten, if its live share is at most
    /// `percent`. The active segment is left alone.
    fn wasteful_run(&self, percent: u64) -> Option<Range<u64>> {
        let capacity = u64::from(self.geometry.frames_end()) - SEGMENT_HEADER_BYTES as u64;
        let closed = self.segments.len() - usize::from(self.active.is_some());
        let live = |segment: &Segment| {
            let frames = segment.used_bytes - segment.header_bytes() as u32;
            u64::from(self.live_bytes(segment.slot, frames))
        };
        let live: Vec<u64> = self.segments[..closed].iter().map(live).collect();
        let mut best: Option<(u64, Range<usize>)> = None;
        for from in 0..closed {
            let mut sum = 0;
            for (to, live) in live.iter().enumerate().skip(from) {
                sum += live;
                let count = (to - from + 1) as u64;
                // A segment is filled to a frame's length below its end, estimated as a sixteenth.
                let written = (sum + sum / 16).div_ceil(capacity).max(1);
                if best.as_ref().is_some_and(|(least, _)| sum >= *least) {
                    break;
                }
                if written < count && sum * 100 <= percent * count * capacity {
                    best = Some((sum, from..to + 1));
                    break;
                }
            }
        }
        best.map(|(_, run)| self.segments[run.start].from_id..self.until_id(run.end - 1))
    }

    /// Moves a segment out of the place that was erased least, if another was erased much more often.
    fn level_wear(&mut self, report: &mut CompactReport) -> Result<(), ReplayError<M::Error>> {
        let closed = self.segments.len() - usize::from(self.active.is_some());
        let wear_of = |segment: &Segment| self.wear[segment.slot as usize];
        let least = self.segments[..closed].iter().enumerate().min_by_key(|(_, segment)| wear_of(segment));
        let most = self.wear.iter().max().copied().unwrap_or(0);
        match least {
            Some((at, segment)) if most - wear_of(segment) > WEAR_SPREAD && self.free_segments() > 0 => {
                let ids = segment.from_id..self.until_id(at);
                self.rewrite(ids, Rewrite { is_cold: true, ..Rewrite::default() }, report).map(drop)
            }
            _ => Ok(()),
        }
    }
}
