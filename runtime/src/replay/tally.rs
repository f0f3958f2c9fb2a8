//! How much of each segment is live, and what a scan lists as live.

use alloc::vec;
use alloc::vec::Vec;

use super::batch::Head;
use super::index::{Index, Listed};
use super::log::ReplayLog;
use super::recover::SeenFrame;
use super::segment::Geometry;
use crate::storage::Medium;

/// What a record weighs beside its tokens when the live share of a segment is estimated, in tokens.
const RECORD_WEIGHT: u64 = 5;
/// What a removal weighs.
const REMOVAL_WEIGHT: u64 = 2;

/// What the records in a segment weigh: tokens, and a bit for each record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Usage {
    pub(super) total: u64,
    pub(super) live: u64,
}

impl<M: Medium> ReplayLog<M> {
    /// The part of `used_bytes` of a segment that its live records take, by what they weigh.
    pub(super) fn live_bytes(&self, slot: u32, used_bytes: u32) -> u32 {
        let Usage { total, live } = self.usage[slot as usize];
        let share = u64::from(used_bytes) * live / total.max(1);
        share as u32
    }

    pub(super) fn count_record(&mut self, frame_at: u32, tokens: u32) {
        let usage = &mut self.usage[self.geometry.slot_of(frame_at) as usize];
        usage.total += weight(tokens);
        usage.live += weight(tokens);
    }

    pub(super) fn count_removals(&mut self, frame_at: u32, count: usize) {
        let usage = &mut self.usage[self.geometry.slot_of(frame_at) as usize];
        usage.total += REMOVAL_WEIGHT * count as u64;
        usage.live += REMOVAL_WEIGHT * count as u64;
    }

    /// Takes a record out of the index; says whether it was in.
    pub(super) fn drop_record(&mut self, id: u64) -> bool {
        let Some(entry) = self.index.remove(id) else {
            return false;
        };
        self.replayed.remove(&id);
        self.usage[self.geometry.slot_of(entry.frame_at) as usize].live -= weight(entry.tokens.into());
        true
    }

    /// A record no longer weighs where it was.
    pub(super) fn release(&mut self, id: u64, tokens: u32) {
        if let Some(entry) = self.index.get(id) {
            self.usage[self.geometry.slot_of(entry.frame_at) as usize].live -= weight(tokens);
        }
    }
}

/// The live records as a scan finds them.
pub(super) struct Found {
    geometry: Geometry,
    pub(super) index: Index,
    pub(super) usage: Vec<Usage>,
}

impl Found {
    pub(super) fn new(geometry: &Geometry) -> Self {
        let usage = vec![Usage::default(); geometry.segments as usize];
        Self { geometry: *geometry, index: Index::default(), usage }
    }

    pub(super) fn admit(&mut self, frame: &SeenFrame<'_>) {
        let slot = self.geometry.slot_of(frame.at) as usize;
        for (nth, head) in frame.heads.examples.iter().enumerate() {
            self.usage[slot].total += weight(head.tokens);
            if head.id < frame.from_id {
                continue;
            }
            self.usage[slot].live += weight(head.tokens);
            let Head { id, task, tokens, tag, score, .. } = *head;
            let task = frame.heads.tasks[task];
            self.index.insert(Listed { id, task, tokens, tag, score, frame_at: frame.at, nth: nth as u16 });
        }
        let removals = REMOVAL_WEIGHT * frame.heads.removed.len() as u64;
        self.usage[slot].total += removals;
        self.usage[slot].live += removals;
        for &id in &frame.heads.removed {
            if let Some(entry) = self.index.remove(id) {
                self.usage[self.geometry.slot_of(entry.frame_at) as usize].live -= weight(entry.tokens.into());
            }
        }
    }
}

fn weight(tokens: u32) -> u64 {
    u64::from(tokens) + RECORD_WEIGHT
}
