//! Which segments the log goes through, by headers and links alone.
//!
//! Segments join where id and chain agree. Mostly one segment answers for an id. After a compaction that was cut short, or
//! a sync that lied, several do: then all ways are followed until they meet or end, and the one that leads furthest is
//! taken; of those that lead as far, the one through the newest segment that is whole as it stands.
//!
//! The furthest way is what keeps the log a prefix behind a sync that lies. What a recovery left out because nothing led
//! there cannot be reached later, by whatever older states of segments a cut brings back: a segment written since begins
//! and ends where the log of that recovery had a joint, so a way through it can be made without it.

use alloc::borrow::Cow;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;

use super::error::ReplayError;
use super::repair::repair_frame;
use super::segment::{FRAME_HEADER_BYTES, FrameHeader, Geometry, SegmentHeader, is_erased};
use crate::storage::Medium;

/// A segment with a sound header.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) slot: u32,
    pub(super) header: SegmentHeader,
    /// A flipped bit of it was put right.
    pub(super) is_repaired: bool,
    /// A later segment ends the log here, so nothing of this one from this id on is part of it.
    limit_id: u64,
    /// It is part of the log.
    pub(super) is_done: bool,
    /// It was on one of several ways.
    pub(super) is_rival: bool,
    /// Where its frames lie, once that was asked.
    outline: Option<Outline>,
}

/// Where the log goes on inside a segment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Joint {
    pub(super) at: usize,
    pub(super) link: u32,
    /// First id of the frame there.
    pub(super) frame_id: u64,
}

/// Where the log stands between two segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// It goes on with this id.
    pub(super) id: u64,
    /// And with what links to this.
    pub(super) chain: u32,
}

/// A segment that the log goes through.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub(super) from: Place,
    pub(super) head: usize,
    pub(super) joint: Joint,
    /// Where it leads, if that was asked and is further.
    end: Option<Place>,
}

/// The frame that comes next.
pub(super) struct Found<'a> {
    pub(super) frame: FrameHeader,
    pub(super) payload: Cow<'a, [u8]>,
    pub(super) is_repaired: bool,
}

/// The frames of a segment.
#[derive(Debug)]
struct Outline {
    /// Before each frame, and behind the last.
    joints: Vec<Joint>,
    /// Nothing of it has to be put right, and a copy has all its frames.
    is_whole: bool,
}

/// One segment at a time, in memory.
pub(super) struct Loader<'a, M> {
    pub(super) medium: &'a mut M,
    pub(super) geometry: &'a Geometry,
    pub(super) read_bytes: u64,
    bytes: Vec<u8>,
    slot: Option<u32>,
}

/// The segments with sound headers, newest first, and the search among them.
pub(super) struct Route<'a> {
    geometry: &'a Geometry,
    pub(super) heads: Vec<Head>,
    /// Positions of those that may be part of the log, by the first id they answer for, last first.
    to_come: Vec<usize>,
    /// Positions of those that begin at or before the id that was asked for last and may answer for it, newest first.
    begun: Vec<usize>,
}

impl Head {
    pub(super) fn new(slot: u32, header: SegmentHeader, is_repaired: bool) -> Self {
        Self { slot, header, is_repaired, limit_id: u64::MAX, is_done: false, is_rival: false, outline: None }
    }

    pub(super) fn is_void(&self) -> bool {
        let is_empty = self.header.moved.is_some_and(|moved| moved.until_id == self.header.first_id);
        // A copy of nothing ends where its first frame would be.
        self.header.first_id > self.limit_id || self.header.first_id == self.limit_id && !is_empty
    }

    fn until_id(&self) -> u64 {
        self.header.moved.map_or(u64::MAX, |moved| moved.until_id).min(self.limit_id)
    }

    pub(super) fn first_joint(&self) -> Joint {
        Joint { at: self.header.len_bytes(), link: self.header.crc(), frame_id: self.header.first_id }
    }

    /// Whether all frames are there if they end at `end`. What an append started may end anywhere.
    pub(super) fn is_finished_at(&self, end: &Joint) -> bool {
        self.header.moved.is_none_or(|moved| {
            let has_frames = self.header.first_id < moved.until_id;
            moved.until_id <= self.limit_id
                && (!has_frames || end.link == moved.last_crc && end.frame_id <= moved.until_id)
        })
    }

    /// Where the log goes on in this segment; frames are asked for only if it begins before `place`.
    fn join(&self, place: Place) -> Option<Joint> {
        let Place { id, chain } = place;
        if id <= self.header.first_id {
            return (self.header.chain == chain).then(|| self.first_joint());
        }
        let joints = &self.outline.as_ref()?.joints;
        let nth = joints.partition_point(|joint| joint.frame_id < id);
        let behind = joints.get(nth).filter(|behind| behind.link == chain)?;
        match behind.frame_id == id {
            true => Some(*behind),
            // The segment before ends within this frame.
            false => joints.get(nth.checked_sub(1)?).copied(),
        }
    }

    /// Where the log stands after this segment, if that is further than `from`.
    fn end_from(&self, from: Place, joint: &Joint) -> Option<Place> {
        let end = self.outline.as_ref()?.joints.last()?;
        let place = match self.header.moved.filter(|_| self.is_finished_at(end)) {
            Some(moved) => Place { id: moved.until_id, chain: moved.chain },
            None if end.frame_id > joint.frame_id => Place { id: end.frame_id, chain: end.link },
            None => return None,
        };
        (place.id > from.id).then_some(place)
    }
}

impl<'a, M: Medium> Loader<'a, M> {
    pub(super) fn new(medium: &'a mut M, geometry: &'a Geometry) -> Self {
        Self { medium, geometry, read_bytes: 0, bytes: Vec::new(), slot: None }
    }

    /// The bytes of the segment in `slot`; those that were loaded last are not read again.
    pub(super) fn load(&mut self, slot: u32) -> Result<&[u8], ReplayError<M::Error>> {
        if self.slot != Some(slot) {
            self.slot = None;
            self.bytes.resize(self.geometry.segment_bytes as usize, 0);
            self.read_bytes += self.bytes.len() as u64;
            let doing = "read a segment";
            let read = self.medium.read(self.geometry.base(slot), &mut self.bytes);
            read.map_err(|source| ReplayError::Medium { doing, source })?;
            self.slot = Some(slot);
        }
        Ok(&self.bytes)
    }
}

impl<'a> Route<'a> {
    pub(super) fn new(geometry: &'a Geometry, mut heads: Vec<Head>) -> Self {
        heads.sort_by_key(|head| core::cmp::Reverse((head.header.sequence, head.slot)));
        // A segment that an append started ends the log before it: a recovery did that, or there was nothing behind.
        let mut limit_id = u64::MAX;
        for head in &mut heads {
            head.limit_id = limit_id;
            if head.header.moved.is_none() {
                limit_id = limit_id.min(head.header.end_id);
            }
        }
        let mut to_come: Vec<usize> = (0..heads.len()).filter(|&at| !heads[at].is_void()).collect();
        to_come.sort_by_key(|&at| core::cmp::Reverse(heads[at].header.end_id));
        Self { geometry, heads, to_come, begun: Vec::new() }
    }

    /// What the log goes through from `place` on, as far as there is no other way; nothing where it ends. The id of `place`
    /// is never below one that was asked for before.
    pub(super) fn next<M: Medium>(
        &mut self,
        loader: &mut Loader<'_, M>,
        place: Place,
    ) -> Result<Vec<Step>, ReplayError<M::Error>> {
        let candidates = self.answering(place.id);
        let &[head] = &candidates[..] else {
            return self.explore(loader, place);
        };
        if place.id > self.heads[head].header.first_id {
            self.outline(loader, head)?;
        }
        Ok(self.step(place, head).into_iter().collect())
    }

    /// A segment that begins with this id, although the log does not go on there.
    pub(super) fn unlinked(&mut self, id: u64) -> Option<&Head> {
        let candidates = self.answering(id);
        candidates.into_iter().map(|at| &self.heads[at]).find(|head| head.header.end_id == id)
    }

    /// The frame at `joint` in the segment `head`, of which these are the bytes, and what is behind it.
    pub(super) fn next_frame<'f>(&self, segment: &'f [u8], head: &Head, joint: &Joint) -> Option<(Found<'f>, Joint)> {
        let header = &head.header;
        let is_last = header.moved.is_some_and(|moved| joint.link == moved.last_crc);
        if is_last || joint.frame_id >= head.until_id() {
            return None;
        }
        let frames_end = header.frames_end(self.geometry);
        let found = self.find(segment.get(joint.at..frames_end)?, joint, header)?;
        let frame_id = found.frame.end_id().filter(|&id| id <= head.limit_id)?;
        let at = joint.at + self.geometry.frame_bytes(found.frame.payload_bytes) as usize;
        let behind = Joint { at: at.min(frames_end), link: found.frame.crc, frame_id };
        Some((found, behind))
    }

    /// Follows all ways from `start` on until they meet or end, and gives the steps of the best one.
    fn explore<M: Medium>(
        &mut self,
        loader: &mut Loader<'_, M>,
        start: Place,
    ) -> Result<Vec<Step>, ReplayError<M::Error>> {
        let mut explored: BTreeMap<Place, Vec<Step>> = BTreeMap::new();
        let mut open = BTreeSet::from([start]);
        // The places that no way leads beyond: the one where all meet, or the ends of the furthest.
        let mut goals = Vec::new();
        while let Some(place) = open.pop_first() {
            if open.is_empty() && place != start {
                goals = vec![place];
                break;
            }
            let ways = self.ways(loader, place)?;
            open.extend(ways.iter().filter_map(|way| way.end));
            if ways.iter().all(|way| way.end.is_none()) {
                goals.retain(|goal: &Place| goal.id == place.id);
                goals.push(place);
            }
            explored.insert(place, ways);
        }
        Ok(best_steps(&explored, start, goals))
    }

    /// The segments that go on from `place`, the best first.
    fn ways<M: Medium>(
        &mut self,
        loader: &mut Loader<'_, M>,
        place: Place,
    ) -> Result<Vec<Step>, ReplayError<M::Error>> {
        let mut ways = Vec::new();
        for head in self.answering(place.id) {
            self.outline(loader, head)?;
            if let Some(step) = self.step(place, head) {
                self.heads[head].is_rival = true;
                ways.push(step);
            }
        }
        let is_whole = |way: &Step| self.heads[way.head].outline.as_ref().is_some_and(|outline| outline.is_whole);
        // Stable, so the newest of equals stays first.
        ways.sort_by_key(|way| !is_whole(way));
        Ok(ways)
    }

    /// The step from `place` through a segment.
    fn step(&self, place: Place, at: usize) -> Option<Step> {
        let head = &self.heads[at];
        let joint = head.join(place)?;
        let end = head.end_from(place, &joint);
        // What a copy replaced to its end adds nothing.
        let is_used_up = end.is_none() && joint.at > head.header.len_bytes();
        (!is_used_up).then_some(Step { from: place, head: at, joint, end })
    }

    /// Positions of the segments whose stretch has this id, newest first.
    fn answering(&mut self, id: u64) -> Vec<usize> {
        let heads = &self.heads;
        while let Some(at) = self.to_come.pop_if(|at| heads[*at].header.end_id <= id) {
            let newer = self.begun.partition_point(|&begun| begun < at);
            self.begun.insert(newer, at);
        }
        self.begun.retain(|&at| id < heads[at].until_id() && !heads[at].is_done);
        self.begun.clone()
    }

    fn outline<M: Medium>(&mut self, loader: &mut Loader<'_, M>, at: usize) -> Result<(), ReplayError<M::Error>> {
        let head = &self.heads[at];
        if head.outline.is_some() {
            return Ok(());
        }
        let bytes = loader.load(head.slot)?;
        let mut joint = head.first_joint();
        let mut joints = vec![joint];
        let mut is_whole = !head.is_repaired;
        while let Some((found, behind)) = self.next_frame(bytes, head, &joint) {
            is_whole &= !found.is_repaired;
            joint = behind;
            joints.push(joint);
        }
        is_whole &= head.is_finished_at(&joint);
        self.heads[at].outline = Some(Outline { joints, is_whole });
        Ok(())
    }

    /// The frame at the start of `rest`, if it is the one that comes next. One flipped bit is put right if what follows
    /// vouches for the frame by linking to it. Nothing vouches for the last frame of the log, which may be torn.
    fn find<'f>(&self, rest: &'f [u8], joint: &Joint, header: &SegmentHeader) -> Option<Found<'f>> {
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
            || self.heads.iter().any(|head| (head.header.end_id, head.header.chain) == own);
        let payload = Cow::Owned(repaired.split_off(FRAME_HEADER_BYTES));
        is_vouched_for.then_some(Found { frame, payload, is_repaired: true })
    }
}

/// The steps from `start` to one of `goals`; where there is a choice, the first that leads to one.
fn best_steps(explored: &BTreeMap<Place, Vec<Step>>, start: Place, goals: Vec<Place>) -> Vec<Step> {
    let mut leading: BTreeSet<Place> = goals.into_iter().collect();
    let leads = |way: &&Step, leading: &BTreeSet<Place>| way.end.is_some_and(|end| leading.contains(&end));
    for (place, ways) in explored.iter().rev() {
        if ways.iter().any(|way| leads(&way, &leading)) {
            leading.insert(*place);
        }
    }
    let mut steps = Vec::new();
    let mut at = start;
    while let Some(step) = explored.get(&at).and_then(|ways| ways.iter().find(|way| leads(way, &leading))) {
        steps.push(*step);
        at = step.end.unwrap_or(at);
    }
    if steps.is_empty() {
        // A segment without frames ends the log.
        steps.extend(explored.get(&start).and_then(|ways| ways.first()));
    }
    steps
}
