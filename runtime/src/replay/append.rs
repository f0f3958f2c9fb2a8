//! The writing half of the log: records become frames, frames fill segments, one sync acknowledges them.
//!
//! At most one frame is ever written and not yet synced, so a cut leaves at most one torn frame and one empty segment.

use alloc::vec;
use alloc::vec::Vec;

use super::error::ReplayError;
use super::log::ReplayLog;
use super::record::Pending;
use super::recover::{Active, Slot};
use super::segment::{
    FRAME_HEADER_BYTES, FRAME_PLAIN, FrameHeader, MAX_WORD_BYTES, SEGMENT_HEADER_BYTES, SegmentHeader, is_erased,
};
use crate::storage::Medium;

/// Bytes gathered before they are programmed: a frame up to this size is one call to the medium.
pub(super) const STAGING_BYTES: usize = 4096;

impl<M: Medium> ReplayLog<M> {
    /// Writes records in as few frames as they fit; returns the id of the first.
    pub(super) fn commit(&mut self, records: &[Pending<'_>]) -> Result<u64, ReplayError<M::Error>> {
        let first = self.next_id;
        if records.is_empty() {
            return Ok(first);
        }
        if self.is_dead {
            return Err(ReplayError::Dead);
        }
        if self.next_id.checked_add(records.len() as u64).is_none() {
            return Err(ReplayError::IdsExhausted);
        }
        let frames = self.plan(records)?;
        self.check_room(&frames)?;
        let mut rest = records;
        for &(count, payload_bytes) in &frames {
            let (now, later) = rest.split_at(count);
            rest = later;
            self.write_frame(now, payload_bytes)?;
        }
        Ok(first)
    }

    /// Cuts `records` into frames of (records, payload bytes), each within a segment.
    fn plan(&self, records: &[Pending<'_>]) -> Result<Vec<(usize, u32)>, ReplayError<M::Error>> {
        let limit_bytes = self.geometry.payload_limit_bytes();
        let mut frames: Vec<(usize, u32)> = Vec::new();
        for (position, record) in records.iter().enumerate() {
            let bytes = record.encoded_bytes();
            if bytes > limit_bytes {
                return Err(ReplayError::TooLarge { position, bytes, limit_bytes });
            }
            match frames.last_mut() {
                Some((count, payload_bytes))
                    if *payload_bytes + bytes <= limit_bytes && *count < usize::from(u16::MAX) =>
                {
                    *count += 1;
                    *payload_bytes += bytes;
                }
                _ => frames.push((1, bytes)),
            }
        }
        Ok(frames)
    }

    /// Refuses what will not fit before the first byte of it is written.
    fn check_room(&self, frames: &[(usize, u32)]) -> Result<(), ReplayError<M::Error>> {
        let segment_bytes = self.geometry.segment_bytes;
        let mut at = self.active.map_or(segment_bytes, |active| active.at);
        let mut free = self.slots.iter().filter(|slot| is_free(**slot)).count();
        let mut needed_bytes = 0;
        let mut fits = true;
        for &(_, payload_bytes) in frames {
            let frame_bytes = self.geometry.frame_bytes(payload_bytes);
            needed_bytes += u64::from(frame_bytes);
            if frame_bytes > segment_bytes - at {
                fits &= free > 0;
                free = free.saturating_sub(1);
                at = SEGMENT_HEADER_BYTES as u32;
            }
            at += frame_bytes;
        }
        if fits {
            return Ok(());
        }
        Err(ReplayError::Full { needed_bytes, capacity_bytes: self.capacity_bytes() })
    }

    /// Writes one frame, syncs, and only then lets the index know.
    fn write_frame(&mut self, records: &[Pending<'_>], payload_bytes: u32) -> Result<(), ReplayError<M::Error>> {
        let frame_bytes = self.geometry.frame_bytes(payload_bytes);
        let active = self.segment_with_room(frame_bytes)?;
        let mut frame = FrameHeader {
            codec: FRAME_PLAIN,
            records: records.len() as u16,
            payload_bytes,
            crc: 0,
            previous_crc: active.link,
            first_id: self.next_id,
        };
        let mut digest = frame.start_crc();
        for record in records {
            let summed: Result<(), core::convert::Infallible> = record.encode(&mut |part| {
                digest.update(part);
                Ok(())
            });
            match summed {
                Ok(()) => {}
            }
        }
        frame.crc = digest.finalize();

        let frame_at = self.geometry.base(active.slot) + active.at;
        let programmed = self.program(frame_at, &frame, records);
        self.or_die(programmed, "program a frame")?;
        let synced = self.medium.sync();
        self.or_die(synced, "sync")?;

        self.active = Some(Active { at: active.at + frame_bytes, link: frame.crc, ..active });
        self.chain = frame.crc;
        self.used_bytes += u64::from(frame_bytes);
        self.acknowledge(records, frame_at);
        Ok(())
    }

    fn acknowledge(&mut self, records: &[Pending<'_>], frame_at: u32) {
        let mut record_at = 0;
        for record in records {
            match record {
                Pending::Example(example) => self.index.insert(
                    self.next_id,
                    example.key(),
                    example.task(),
                    example.tokens().len() as u32,
                    frame_at,
                    record_at,
                ),
                Pending::Tombstone(id) => {
                    self.index.remove(id.0);
                }
            }
            self.next_id += 1;
            record_at += record.encoded_bytes();
        }
        self.end_id = self.next_id;
    }

    /// The active segment, or a new one if `frame_bytes` do not fit it.
    fn segment_with_room(&mut self, frame_bytes: u32) -> Result<Active, ReplayError<M::Error>> {
        if let Some(active) = self.active
            && frame_bytes <= self.geometry.segment_bytes - active.at
        {
            return Ok(active);
        }
        let full = ReplayError::Full { needed_bytes: u64::from(frame_bytes), capacity_bytes: self.capacity_bytes() };
        let Some(slot) = self.free_slot() else {
            return Err(full);
        };
        self.erase_unless_erased(slot)?;
        let header = SegmentHeader {
            word_bytes: self.geometry.word_bytes,
            segment_bytes: self.geometry.segment_bytes,
            sequence: self.last_sequence + 1,
            end_id: self.end_id,
            first_id: self.next_id,
            chain: self.chain,
            tokenizer_digest: self.tokenizer_digest,
        };
        // Not synced alone: a header without frames and frames without a header are both an interrupted start.
        let programmed = self.medium.write(self.geometry.base(slot), &header.encode());
        if let Err(error) = &programmed
            && M::is_full(error)
        {
            return Err(full);
        }
        self.or_die(programmed, "start a segment")?;
        self.last_sequence += 1;
        self.slots[slot as usize] = Slot::Used;
        self.used_bytes += SEGMENT_HEADER_BYTES as u64;
        let active = Active { slot, at: SEGMENT_HEADER_BYTES as u32, link: header.crc() };
        self.active = Some(active);
        Ok(active)
    }

    /// The next slot to use: remains of an interrupted start first, then round and round, then what was given up.
    fn free_slot(&self) -> Option<u32> {
        let after = self.active.map_or(0, |active| active.slot as usize + 1);
        let find = |wanted| {
            let turn = (after..self.slots.len()).chain(0..after);
            turn.into_iter().find(|&slot| self.slots[slot] == wanted)
        };
        let slot = find(Slot::Torn).or_else(|| find(Slot::Erased));
        slot.or_else(|| find(Slot::Orphan)).map(|slot| slot as u32)
    }

    fn erase_unless_erased(&mut self, slot: u32) -> Result<(), ReplayError<M::Error>> {
        let base = self.geometry.base(slot);
        let end = base + self.geometry.segment_bytes;
        let mut bytes = vec![0; self.geometry.segment_bytes as usize];
        let doing = "read a segment";
        let read = self.medium.read(base, &mut bytes);
        read.map_err(|source| ReplayError::Medium { doing, source })?;
        if is_erased(&bytes) {
            return Ok(());
        }
        let erased = self.medium.erase(base, end);
        self.or_die(erased, "erase a segment")?;
        // Before anything is programmed: an old frame must not come back behind a new one.
        let synced = self.medium.sync();
        self.or_die(synced, "sync")
    }

    fn program(&mut self, mut at: u32, frame: &FrameHeader, records: &[Pending<'_>]) -> Result<(), M::Error> {
        let Self { medium, staging, .. } = self;
        staging.clear();
        let mut push = |mut bytes: &[u8]| -> Result<(), M::Error> {
            while !bytes.is_empty() {
                let (now, later) = bytes.split_at(bytes.len().min(STAGING_BYTES - staging.len()));
                staging.extend(now.iter().copied());
                bytes = later;
                if staging.is_full() {
                    medium.write(at, staging)?;
                    at += STAGING_BYTES as u32;
                    staging.clear();
                }
            }
            Ok(())
        };
        push(&frame.encode())?;
        for record in records {
            record.encode(&mut push)?;
        }
        let content_bytes = FRAME_HEADER_BYTES as u32 + frame.payload_bytes;
        let padding = self.geometry.pad(content_bytes) - content_bytes;
        push(&[0xFF; MAX_WORD_BYTES][..padding as usize])?;
        if self.staging.is_empty() {
            return Ok(());
        }
        self.medium.write(at, &self.staging)
    }

    /// Turns a failed write into an error and the log into one that only reads.
    fn or_die(&mut self, result: Result<(), M::Error>, doing: &'static str) -> Result<(), ReplayError<M::Error>> {
        result.map_err(|source| {
            self.is_dead = true;
            ReplayError::WriteFailed { doing, source }
        })
    }
}

fn is_free(slot: Slot) -> bool {
    matches!(slot, Slot::Erased | Slot::Torn | Slot::Orphan)
}
