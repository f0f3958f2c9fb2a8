//! Copying what is live out of segments.

use alloc::vec::Vec;
use core::ops::Range;

use zeroize::Zeroizing;

use super::append::finish_frame;
use super::batch::{Batch, Item, TableRef};
use super::codec::{TokenStatistics, TokenTable};
use super::coding::InForce;
use super::config::CompactReport;
use super::error::ReplayError;
use super::frame::Opened;
use super::log::{ReplayLog, item};
use super::recover::{Segment, Slot};
use super::route::Place;
use super::score::Score;
use super::seal::Sealer;
use super::segment::{FORMAT_VERSION, Moved, SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::example::{Example, ExampleId};
use crate::storage::Medium;

/// Copied frames hold fewer records than an append may bring, so that reading one is cheap.
const MOVED_RECORDS: usize = 64;
const MOVED_TOKENS: usize = 2048;

/// How segments are rewritten.
#[derive(Clone, Copy, Default)]
pub(super) struct Rewrite<'a> {
    /// Live records that are dropped, ascending.
    pub(super) omitted: &'a [u64],
    /// What is copied is not expected to change: it goes where most erases were.
    pub(super) is_cold: bool,
}

/// What is copied of one id.
struct Event {
    id: u64,
    example: Option<(Example, Score, u32)>,
    /// Removals that stood in the same frame and are still needed.
    removed: Vec<u64>,
}

/// A frame that events were taken from, to link to it.
struct Mark {
    /// The first of its ids that its segment answers for, so marks ascend.
    first_id: u64,
    crc: u32,
    /// What it links to.
    before: u32,
}

/// The events of a stretch of ids.
struct Gathered {
    events: Vec<Event>,
    marks: Vec<Mark>,
    until_id: u64,
    end_chain: u32,
}

/// Events coded for one segment.
pub(super) struct Packed {
    pub(super) frames: Vec<PackedFrame>,
    /// How many of the events.
    pub(super) events: usize,
    /// Offset after the last frame.
    pub(super) end: u32,
}

pub(super) struct PackedFrame {
    first_id: u64,
    span: u16,
    /// Positions among the items.
    items: Range<usize>,
    removed: Vec<u64>,
    payload: Zeroizing<Vec<u8>>,
    /// Offset in the segment.
    at: u32,
}

/// The table that a copy is coded with.
#[derive(Clone, Copy)]
enum CopyTable<'a> {
    Untrained(&'a TokenTable),
    Own(&'a TokenTable, &'a [u8]),
}

impl<M: Medium> ReplayLog<M> {
    /// Copies what is live of these ids and erases the segments that held them. `false` if a part was
    /// left as it is because its copy would have freed nothing.
    pub(super) fn rewrite(
        &mut self,
        ids: Range<u64>,
        how: Rewrite<'_>,
        report: &mut CompactReport,
    ) -> Result<bool, ReplayError<M::Error>> {
        let mut is_all = true;
        let mut from_id = ids.start;
        while from_id < ids.end {
            let at = self.segments.partition_point(|segment| segment.from_id <= from_id).saturating_sub(1);
            let segment_until = self.until_id(at);
            let gathered = self.gather(at, ids.end, how.omitted)?;
            let items = items_of(&gathered.events);
            let mut packed = self.pack(&gathered.events, &items);
            while packed.events > 0 && self.has_loose_end(&gathered.end_after(packed.events)) {
                packed = self.pack(&gathered.events[..packed.events - 1], &items);
            }
            let Place { id: until_id, chain: end_chain } = gathered.end_after(packed.events);
            if until_id < segment_until {
                is_all = false;
                from_id = segment_until;
                continue;
            }
            let place = Segment { end_chain, ..self.place_of_copy(at) };
            let copy = self.write_copy(place, until_id, how.is_cold, &packed, &items)?;
            report.segments_written += 1;
            report.records_moved += packed.frames.iter().map(|frame| frame.items.len() as u64).sum::<u64>();
            // What was not copied is gone with its segment.
            how.omitted
                .iter()
                .filter(|&&id| (from_id..until_id).contains(&id))
                .for_each(|&id| _ = self.drop_record(id));
            self.replace(at, until_id, copy, report)?;
            from_id = until_id;
        }
        Ok(is_all)
    }

    /// Whether a segment that was cut off would follow a copy that ends here, and bring back what was lost.
    fn has_loose_end(&self, end: &Place) -> bool {
        let Place { id, chain } = *end;
        self.loose_ends.iter().any(|loose| loose.chain == chain && loose.id == id)
    }

    /// Reads what is live from the segment at this position on, about two segments' worth, up to `until_id`.
    fn gather(&mut self, at: usize, until_id: u64, omitted: &[u64]) -> Result<Gathered, ReplayError<M::Error>> {
        let from_id = self.segments[at].from_id;
        let enough = 2 * u64::from(self.geometry.segment_bytes);
        let mut gathered = Gathered { events: Vec::new(), marks: Vec::new(), until_id: from_id, end_chain: 0 };
        let mut live_bytes = 0;
        for at in at..self.segments.len() {
            if gathered.until_id >= until_id || live_bytes >= enough {
                break;
            }
            let segment = self.segments[at];
            live_bytes += u64::from(self.live_bytes(segment.slot, segment.used_bytes));
            self.gather_segment(&segment, omitted, &mut gathered)?;
            gathered.until_id = self.until_id(at);
            gathered.end_chain = segment.end_chain;
        }
        self.drop_needless_removals(&mut gathered.events)?;
        Ok(gathered)
    }

    fn gather_segment(
        &mut self,
        segment: &Segment,
        omitted: &[u64],
        gathered: &mut Gathered,
    ) -> Result<(), ReplayError<M::Error>> {
        let base = self.geometry.base(segment.slot);
        let mut before = None;
        for (offset, stored) in self.frames_of(segment)? {
            let frame = stored.header;
            let end_id = frame.first_id + u64::from(frame.records);
            let previous = before.replace(frame.crc);
            if end_id <= segment.from_id {
                continue;
            }
            // A frame in which the segment before this one ends holds ids of that one too.
            let before = previous.filter(|_| frame.first_id > segment.from_id).unwrap_or(segment.chain);
            let first_id = frame.first_id.max(segment.from_id);
            gathered.marks.push(Mark { first_id, crc: frame.crc, before });
            let frame_at = base + offset;
            let opened = stored.open(segment.seal, segment.sequence, self.sealer.as_ref());
            let removed = opened.as_ref().and_then(Opened::heads).map_or(Vec::new(), |(heads, _)| heads.removed);
            let known = opened.as_ref().and_then(Opened::heads).map_or(Vec::new(), |(heads, _)| {
                heads.examples.iter().map(|head| (head.score, head.replays)).collect::<Vec<_>>()
            });
            let first_event = gathered.events.len();
            let wanted: Vec<u64> = self
                .index
                .range(frame.first_id..end_id)
                .filter(|entry| entry.frame_at == frame_at)
                .map(|e| e.id)
                .collect();
            let mut found = Vec::new();
            if !wanted.is_empty() {
                self.decode_frame(frame_at, &mut |nth, decoded| {
                    if let Ok((id, example)) = decoded {
                        found.push((id, example, known.get(nth).copied().unwrap_or_default()));
                    }
                    true
                })?;
            }
            found.retain(|(id, ..)| wanted.binary_search(id).is_ok());
            if found.len() < wanted.len() {
                let is_missing = |id: &&u64| found.iter().all(|(found, ..)| found != *id);
                let id = ExampleId(wanted.iter().find(is_missing).copied().unwrap_or(frame.first_id));
                return Err(ReplayError::Damaged { id, offset: frame_at });
            }
            for (id, example, (score, stored_replays)) in found {
                let replays = self.replays_with(id, stored_replays);
                if omitted.binary_search(&id).is_err() {
                    gathered.events.push(Event { id, example: Some((example, score, replays)), removed: Vec::new() });
                }
            }
            gathered.place_removals(first_event, &removed, end_id);
        }
        Ok(())
    }

    /// Drops removals whose record is in no segment any more, and cannot come back even if a sync lied: then a segment that
    /// was there when the log was opened does without it.
    fn drop_needless_removals(&mut self, events: &mut Vec<Event>) -> Result<(), ReplayError<M::Error>> {
        let is_write_through = self.medium.is_write_through();
        let has_remains = self.slots.iter().any(|slot| matches!(slot, Slot::Remains | Slot::Orphan));
        if has_remains || self.has_stale && !is_write_through {
            return Ok(());
        }
        let mut ids: Vec<u64> = events.iter().flat_map(|event| event.removed.iter().copied()).collect();
        ids.sort_unstable();
        let mut needless = Vec::new();
        let mut rest = &ids[..];
        while let Some(&id) = rest.first() {
            let stretch = self.stretch_of(id);
            let (here, later) = rest.split_at(rest.partition_point(|&id| id < stretch.end).max(1));
            rest = later;
            let at = self.segments.partition_point(|segment| segment.from_id <= id).saturating_sub(1);
            let segment = self.segments[at];
            if is_write_through || segment.sequence <= self.durable_sequence {
                let held = self.ids_in(&segment)?;
                needless.extend(here.iter().filter(|id| held.binary_search(id).is_err()));
            }
        }
        for event in events.iter_mut() {
            event.removed.retain(|id| needless.binary_search(id).is_err());
        }
        events.retain(|event| event.example.is_some() || !event.removed.is_empty());
        Ok(())
    }

    /// Codes as many events as fit a segment, with a table of their own if that makes it more, or smaller.
    fn pack(&self, events: &[Event], items: &[Item<'_>]) -> Packed {
        let mut statistics = TokenStatistics::default();
        items.iter().for_each(|item| statistics.add(item.tokens));
        let table = statistics.table();
        let table_bytes = table.to_bytes();
        let plain = self.pack_with(events, items, CopyTable::Untrained(&TokenTable::untrained()));
        let tabled = self.pack_with(events, items, CopyTable::Own(&table, &table_bytes));
        let is_better = (tabled.events, plain.end) > (plain.events, tabled.end);
        if is_better { tabled } else { plain }
    }

    fn pack_with(&self, events: &[Event], items: &[Item<'_>], table: CopyTable<'_>) -> Packed {
        let mut packed = Packed { frames: Vec::new(), events: 0, end: SEGMENT_HEADER_BYTES as u32 };
        let mut item_at = 0;
        let mut count = batch_len(events);
        while let Some(now) =
            events.get(packed.events..).and_then(|rest| rest.get(..count)).filter(|now| !now.is_empty())
        {
            let next = events.get(packed.events + count);
            let (first_id, last_id) = (now[0].id, now[count - 1].id);
            let Ok(span) = u16::try_from(next.map_or(last_id + 1, |next| next.id) - first_id) else {
                // Frames follow each other without gaps, and one answers for 65,535 ids at most.
                match count {
                    1 => return self.pack_last(packed, now, item_at, items, table),
                    _ => count /= 2,
                }
                continue;
            };
            let item_count = now.iter().filter(|event| event.example.is_some()).count();
            let frame = self.pack_frame(&packed, now, item_at..item_at + item_count, span, items, table);
            match frame {
                Some((frame, end)) => {
                    packed.frames.push(frame);
                    packed.end = end;
                    packed.events += count;
                    item_at += item_count;
                    count = batch_len(&events[packed.events..]);
                }
                None if count > 1 => count /= 2,
                None => break,
            }
        }
        packed
    }

    /// Adds a frame for one event, the last because the next one's id is too far away.
    fn pack_last(
        &self,
        mut packed: Packed,
        now: &[Event],
        item_at: usize,
        items: &[Item<'_>],
        table: CopyTable<'_>,
    ) -> Packed {
        let item_count = now.iter().filter(|event| event.example.is_some()).count();
        if let Some((frame, end)) = self.pack_frame(&packed, now, item_at..item_at + item_count, 1, items, table) {
            packed.frames.push(frame);
            packed.end = end;
            packed.events += now.len();
        }
        packed
    }

    /// One frame behind those that are packed, and the offset after it; `None` if it does not fit the segment.
    fn pack_frame(
        &self,
        packed: &Packed,
        events: &[Event],
        range: Range<usize>,
        span: u16,
        items: &[Item<'_>],
        table: CopyTable<'_>,
    ) -> Option<(PackedFrame, u32)> {
        let mut removed: Vec<u64> = events.iter().flat_map(|event| event.removed.iter().copied()).collect();
        removed.sort_unstable();
        removed.dedup();
        let first_id = events.first()?.id;
        let batch = Batch { first_id, span, items: &items[range.clone()], removed: &removed };
        let back = packed.frames.first().map(|first| (packed.end - first.at) / self.geometry.word_bytes);
        let payload = match (table, back) {
            (CopyTable::Untrained(table), _) => batch.encode(TableRef::Untrained, table),
            (CopyTable::Own(table, bytes), None) => batch.encode(TableRef::Inline(bytes), table),
            (CopyTable::Own(table, _), Some(words)) => batch.encode(TableRef::Back(words), table),
        };
        let fits = payload.len() <= self.payload_room(self.geometry.frames_end() - packed.end);
        let end = packed.end + self.frame_bytes(payload.len());
        let payload = Zeroizing::new(payload);
        fits.then_some((PackedFrame { first_id, span, items: range, removed, payload, at: packed.end }, end))
    }

    /// The segment that will answer in the place of the one at this position.
    fn place_of_copy(&self, at: usize) -> Segment {
        let replaced = self.segments[at];
        Segment {
            version: FORMAT_VERSION,
            sequence: self.last_sequence + 1,
            held_from_id: replaced.from_id,
            seal: self.sealer.as_ref().map(Sealer::segment),
            has_remains: false,
            ..replaced
        }
    }

    /// Writes and syncs a copy in the place of what `place` says, up to `until_id`, and lets the index know.
    pub(super) fn write_copy(
        &mut self,
        place: Segment,
        until_id: u64,
        is_cold: bool,
        packed: &Packed,
        items: &[Item<'_>],
    ) -> Result<Segment, ReplayError<M::Error>> {
        let Segment { from_id, chain, end_chain, .. } = place;
        if self.free_segments() == 0 {
            return Err(self.full(u64::from(packed.end)));
        }
        let mut header = SegmentHeader {
            version: FORMAT_VERSION,
            word_bytes: self.geometry.word_bytes,
            segment_bytes: self.geometry.segment_bytes,
            sequence: place.sequence,
            end_id: from_id,
            first_id: packed.frames.first().map_or(until_id, |frame| frame.first_id),
            chain,
            tokenizer_digest: self.tokenizer_digest,
            first_crc: 0,
            moved: Some(Moved { until_id, chain: end_chain, last_crc: 0 }),
            seal: place.seal,
        };
        let mut image = alloc::vec![0xFF; packed.end as usize];
        let mut link = header.crc();
        for frame in &packed.frames {
            let batch = frame.batch(items);
            let (head, payload) =
                finish_frame(&batch, &frame.payload, link, header.sequence, header.seal, &mut self.sealer);
            let (start, body) = (frame.at as usize, frame.at as usize + head.encode().len());
            image[start..body].copy_from_slice(&head.encode());
            image[body..body + payload.len()].copy_from_slice(&payload);
            if frame.at == SEGMENT_HEADER_BYTES as u32 {
                header.first_crc = head.crc;
            }
            link = head.crc;
        }
        header.moved = Some(Moved { until_id, chain: end_chain, last_crc: link });
        image[..SEGMENT_HEADER_BYTES].copy_from_slice(&header.encode());

        let slot = self.erased_slot(is_cold, u64::from(packed.end))?;
        let base = self.geometry.base(slot);
        let programmed = self.medium.write(base, &image);
        self.or_full(programmed, u64::from(packed.end), "write a copy")?;
        self.sync()?;
        self.last_sequence += 1;
        self.slots[slot as usize] = Slot::Used;
        self.used_bytes += u64::from(packed.end);
        for frame in &packed.frames {
            self.relocate(base + frame.at, &items[frame.items.clone()]);
            self.count_removals(base + frame.at, frame.removed.len());
        }
        Ok(Segment { slot, used_bytes: packed.end, ..place })
    }

    /// Puts `copy`, which answers up to `until_id`, in the place of the segments from this position on, and erases those.
    fn replace(
        &mut self,
        at: usize,
        until_id: u64,
        copy: Segment,
        report: &mut CompactReport,
    ) -> Result<(), ReplayError<M::Error>> {
        let mut end = at;
        while end < self.segments.len() && self.until_id(end) <= until_id {
            end += 1;
        }
        if let Some(rest) = self.segments.get_mut(end).filter(|rest| rest.from_id < until_id) {
            (rest.from_id, rest.chain) = (until_id, copy.end_chain);
        }
        if end == self.segments.len() {
            // The log goes on in a new segment.
            self.active = None;
            self.coding.iter_mut().for_each(|coding| coding.in_force = InForce::none());
        }
        let replaced: Vec<Segment> = self.segments.splice(at..end, [copy]).collect();
        self.used_bytes -= replaced.iter().map(|segment| u64::from(segment.used_bytes)).sum::<u64>();
        report.segments_freed += replaced.len() as u32;
        let slots: Vec<u32> = replaced.iter().map(|segment| segment.slot).collect();
        self.erase(&slots)
    }

    fn relocate(&mut self, frame_at: u32, items: &[Item<'_>]) {
        for (nth, item) in items.iter().enumerate() {
            let tokens = item.tokens.len() as u32;
            self.release(item.id, tokens);
            self.count_record(frame_at, tokens);
            self.index.relocate(item.id, frame_at, nth as u16);
            self.replayed.remove(&item.id);
        }
    }
}

impl Gathered {
    /// Puts the removals of a frame that ends at `end_id` with the first of its events behind the removed record: not before
    /// it, where they would hit another record if the log was cut between and its id given out again.
    fn place_removals(&mut self, first_event: usize, removed: &[u64], end_id: u64) {
        for &id in removed {
            let events = &mut self.events[first_event..];
            let behind = events.partition_point(|event| event.id <= id);
            // No writer notes a removal before the record, but an image can.
            let last = events.len().checked_sub(1).filter(|&last| events[last].id + 1 >= end_id);
            match events.get_mut(last.map_or(behind, |last| last.min(behind))) {
                Some(event) => event.removed.push(id),
                None => self.events.push(Event { id: end_id - 1, example: None, removed: alloc::vec![id] }),
            }
        }
    }

    /// Where a copy of the first `count` events ends, and what the log links to there.
    fn end_after(&self, count: usize) -> Place {
        let Some(next) = self.events.get(count) else {
            return Place { id: self.until_id, chain: self.end_chain };
        };
        let mark = self.marks.partition_point(|mark| mark.first_id <= next.id).checked_sub(1);
        let chain = mark.map(|at| &self.marks[at]).map_or(self.end_chain, |mark| match mark.first_id == next.id {
            true => mark.before,
            false => mark.crc,
        });
        Place { id: next.id, chain }
    }
}

impl PackedFrame {
    fn batch<'a>(&'a self, items: &'a [Item<'a>]) -> Batch<'a> {
        let Self { first_id, span, removed, .. } = self;
        Batch { first_id: *first_id, span: *span, items: &items[self.items.clone()], removed }
    }
}

fn items_of(events: &[Event]) -> Vec<Item<'_>> {
    let examples = events.iter().filter_map(|event| event.example.as_ref().map(|example| (event.id, example)));
    examples.map(|(id, (example, score, replays))| Item { replays: *replays, ..item(id, example, *score) }).collect()
}

/// Events that may share a frame.
fn batch_len(events: &[Event]) -> usize {
    let mut tokens = 0;
    let fits = |event: &&Event| {
        tokens += event.example.as_ref().map_or(0, |(example, ..)| example.tokens().len()) + event.removed.len();
        tokens <= MOVED_TOKENS
    };
    let count = events.iter().take(MOVED_RECORDS).take_while(fits).count();
    count.max(events.len().min(1))
}
