//! A memory as revisions hold it: what cannot be worked out from the rest, in the order of the fields.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

use super::ranks::Ranks;
use super::surprise::{self, BINS, Scores};
use super::{Memory, Policy, Purpose, Slot, Task, bits};
use crate::example::ExampleId;

/// The stored form. Another order or another field is another version.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Stored {
    policy: Policy,
    capacity: u32,
    seen: u64,
    slots: Vec<Slot>,
    tasks: Vec<StoredTask>,
    /// Ring: the place of the oldest example.
    oldest: u32,
    /// Surprise: the counts of the scores.
    scores: Vec<u32>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct StoredTask {
    name: String,
    was_largest: bool,
}

/// The stored form of version 1 of revisions' `state`: reservoirs only, without keys.
#[derive(Debug, Clone, Deserialize)]
pub struct MemoryV1 {
    policy: Policy,
    capacity: u32,
    seen: u64,
    slots: Vec<SlotV1>,
    tasks: Vec<TaskV1>,
}

#[derive(Debug, Clone, Deserialize)]
struct SlotV1 {
    id: ExampleId,
    task: u32,
}

#[derive(Debug, Clone, Deserialize)]
struct TaskV1 {
    name: String,
    seen: u64,
    held: u32,
    was_largest: bool,
}

/// A stored memory contradicts itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsound;

impl fmt::Display for Unsound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the memory contradicts itself")
    }
}

impl From<Memory> for Stored {
    fn from(memory: Memory) -> Self {
        let stored = |task: Task| StoredTask { name: task.name, was_largest: task.was_largest };
        Self {
            policy: memory.policy,
            capacity: memory.capacity,
            seen: memory.seen,
            slots: memory.slots,
            tasks: memory.tasks.into_iter().map(stored).collect(),
            oldest: memory.oldest,
            scores: memory.scores.counts,
        }
    }
}

impl Stored {
    fn is_sound(&self) -> bool {
        let ids: BTreeSet<ExampleId> = self.slots.iter().map(|slot| slot.id).collect();
        let is_full = self.slots.len() == self.capacity as usize;
        self.seen < u64::MAX / 2
            && self.slots.len() <= self.capacity as usize
            && ids.len() == self.slots.len()
            && self.slots.iter().all(|slot| (slot.task as usize) < self.tasks.len())
            && (self.oldest == 0 || self.policy == Policy::Ring && is_full && self.oldest < self.capacity)
            && (self.scores.is_empty() || self.scores.len() == BINS)
            && self.fits_its_groups()
    }

    fn fits_its_groups(&self) -> bool {
        let Policy::Surprise { random_percent } = self.policy else { return true };
        let (surprising, random) = surprise::places(self.capacity, random_percent);
        let in_random = self.slots.iter().filter(|slot| surprise::group_of(slot) > 0).count();
        in_random <= random as usize && self.slots.len() - in_random <= surprising as usize
    }
}

impl TryFrom<Stored> for Memory {
    type Error = Unsound;

    fn try_from(stored: Stored) -> Result<Self, Unsound> {
        if !stored.is_sound() {
            return Err(Unsound);
        }
        let numbers: BTreeMap<String, u32> =
            (0..).zip(&stored.tasks).map(|(at, task)| (task.name.clone(), at)).collect();
        let task = |task: StoredTask| Task { name: task.name, held: 0, was_largest: task.was_largest };
        let mut memory = Self {
            policy: stored.policy,
            capacity: stored.capacity,
            seen: stored.seen,
            slots: stored.slots,
            tasks: stored.tasks.into_iter().map(task).collect(),
            numbers,
            oldest: stored.oldest,
            ranks: Ranks::default(),
            scores: Scores { counts: stored.scores },
        };
        memory.count_again();
        Ok(memory)
    }
}

impl TryFrom<MemoryV1> for Memory {
    type Error = Unsound;

    /// Gives each held example the key that it may have had: a task that holds `h` of `s` examples holds those whose keys
    /// are below about `h / s` of all.
    fn try_from(old: MemoryV1) -> Result<Self, Unsound> {
        let is_known = matches!(old.policy, Policy::Reservoir | Policy::BalancedReservoir { .. });
        let has_task = |slot: &SlotV1| (slot.task as usize) < old.tasks.len();
        if !is_known || !old.slots.iter().all(has_task) {
            return Err(Unsound);
        }
        let key = |slot: &SlotV1| {
            let TaskV1 { seen, held, .. } = &old.tasks[slot.task as usize];
            let chance = bits(slot.id.0, 0, Purpose::Accept) >> 32;
            ((u128::from(chance) * u128::from(*held)) / u128::from((*seen).max(u64::from(*held)).max(1))) as u32
        };
        let key = |slot: &SlotV1| if old.policy == Policy::Reservoir { 0 } else { key(slot) };
        let slots = old.slots.iter().map(|slot| Slot { id: slot.id, task: slot.task, key: key(slot) }).collect();
        let task = |task: &TaskV1| StoredTask { name: task.name.clone(), was_largest: task.was_largest };
        let tasks = old.tasks.iter().map(task).collect();
        let (policy, capacity, seen) = (old.policy, old.capacity, old.seen);
        Self::try_from(Stored { policy, capacity, seen, slots, tasks, oldest: 0, scores: Vec::new() })
    }
}
