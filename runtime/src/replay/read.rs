//! Reading a log: one record, the frames of a segment, everything.

use alloc::vec;
use alloc::vec::Vec;

use super::batch::{Head, Heads, TableRef};
use super::codec::TokenTable;
use super::config::VerifyReport;
use super::error::{DropReason, Dropped, ReplayError};
use super::frame::{Opened, StoredFrame};
use super::index::Entry;
use super::log::ReplayLog;
use super::record::{Record, RecordError};
use super::recover::{Scan, Segment, scan};
use super::repair::repair_frame;
use super::segment::{FRAME_HEADER_BYTES, FrameHeader, SegmentSeal};
use super::tally::Found;
use crate::example::{Example, ExampleId};
use crate::storage::Medium;

impl<M: Medium> ReplayLog<M> {
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

    /// The frame at `offset`, repaired if it must be; `None` if it cannot be.
    pub(super) fn read_frame(&mut self, offset: u32) -> Result<Option<StoredFrame>, ReplayError<M::Error>> {
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

    pub(super) fn frame_times(&mut self, offset: u32) -> Result<Option<Vec<u64>>, ReplayError<M::Error>> {
        self.with_frame(offset, |opened| {
            let (heads, _) = opened.heads()?;
            Some(heads.examples.iter().map(|head| head.time_unix_s).collect())
        })
    }

    /// The table that the frame at `offset` brings.
    pub(super) fn brought_table(&mut self, offset: u32) -> Result<Option<TokenTable>, ReplayError<M::Error>> {
        self.with_frame(offset, |opened| opened.table())
    }

    /// What `look` finds in the frame at `offset`; nothing if it cannot be read.
    pub(super) fn with_frame<T>(
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
    pub(super) fn sealing(&self, offset: u32) -> (u64, Option<SegmentSeal>) {
        let slot = self.geometry.slot_of(offset);
        let segment = self.segments.iter().find(|segment| segment.slot == slot);
        segment.map_or((0, None), |segment| (segment.sequence, segment.seal))
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

    /// Ids of all examples in the bytes of a segment, removed and replaced ones included, ascending.
    pub(super) fn ids_in(&mut self, segment: &Segment) -> Result<Vec<u64>, ReplayError<M::Error>> {
        let mut ids = Vec::new();
        for (_, frame) in self.frames_of(segment)? {
            let opened = frame.open(segment.seal, segment.sequence, self.sealer.as_ref());
            if let Some((heads, _)) = opened.as_ref().and_then(Opened::heads) {
                ids.extend(heads.examples.iter().map(|head| head.id));
            }
        }
        Ok(ids)
    }

    /// The frames of a segment and their offsets in it.
    pub(super) fn frames_of(&mut self, segment: &Segment) -> Result<Vec<(u32, StoredFrame)>, ReplayError<M::Error>> {
        let mut bytes = alloc::vec![0; segment.used_bytes.next_multiple_of(self.geometry.word_bytes) as usize];
        let doing = "read a segment";
        let base = self.geometry.base(segment.slot);
        let read = self.medium.read(base, &mut bytes);
        read.map_err(|source| ReplayError::Medium { doing, source })?;
        let mut frames = Vec::new();
        let mut at = segment.header_bytes();
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let repaired;
            let parsed = match FrameHeader::parse(rest) {
                Some(parsed) => Some(parsed),
                None => {
                    repaired = repair_frame(rest);
                    repaired.as_deref().and_then(FrameHeader::parse)
                }
            };
            let Some((frame, payload)) = parsed else {
                let offset = base + at as u32;
                let id = self.index.iter().find(|entry| entry.frame_at >= offset).map_or(segment.from_id, |e| e.id);
                return Err(ReplayError::Damaged { id: ExampleId(id), offset });
            };
            frames.push((at as u32, StoredFrame { header: frame, payload: payload.to_vec() }));
            at += self.geometry.frame_bytes(frame.payload_bytes) as usize;
        }
        Ok(frames)
    }
}

/// Where a frame's table is.
enum TableAt {
    Untrained,
    /// In the cache under this offset, if it could be read.
    Cached(u32),
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
