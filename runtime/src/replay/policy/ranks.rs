//! Which held example of a group goes first: the one with the highest key.

use alloc::collections::{BTreeMap, BTreeSet};

use super::Slot;
use crate::example::ExampleId;

/// An order over the held examples, by group and key. A group whose members get random keys, and which loses its highest
/// one whenever it has too many, holds a uniform sample of all that it was ever offered.
///
/// A function of the slots alone: built from them in one go it is the same as grown step by step.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Ranks {
    places: BTreeMap<(u32, u32, ExampleId), u32>,
    /// How many each group has, the largest last.
    sizes: BTreeSet<(u32, u32)>,
    held: BTreeMap<u32, u32>,
}

impl Ranks {
    /// The order of `slots` under the groups that `group_of` tells.
    pub(super) fn of(slots: &[Slot], group_of: impl Fn(&Slot) -> u32) -> Self {
        let mut ranks = Self::default();
        for (place, slot) in slots.iter().enumerate() {
            ranks.insert(group_of(slot), slot, place);
        }
        ranks
    }

    pub(super) fn insert(&mut self, group: u32, slot: &Slot, place: usize) {
        self.places.insert((group, slot.key, slot.id), place as u32);
        self.resize(group, |held| held + 1);
    }

    pub(super) fn remove(&mut self, group: u32, slot: &Slot) {
        if self.places.remove(&(group, slot.key, slot.id)).is_some() {
            self.resize(group, |held| held - 1);
        }
    }

    /// Key and place of who goes first in `group`.
    pub(super) fn first_to_go(&self, group: u32) -> Option<(u32, usize)> {
        let range = (group, 0, ExampleId(0))..=(group, u32::MAX, ExampleId(u64::MAX));
        let last = self.places.range(range).next_back();
        last.map(|((_, key, _), place)| (*key, *place as usize))
    }

    /// How many `group` has.
    pub(super) fn held(&self, group: u32) -> u32 {
        self.held.get(&group).copied().unwrap_or(0)
    }

    /// The group that has most, of several the one with the highest number; and how many it has.
    pub(super) fn largest(&self) -> Option<(u32, u32)> {
        self.sizes.last().map(|&(held, group)| (group, held))
    }

    fn resize(&mut self, group: u32, change: impl Fn(u32) -> u32) {
        let before = self.held(group);
        let after = change(before);
        self.sizes.remove(&(before, group));
        if after == 0 {
            self.held.remove(&group);
        } else {
            self.held.insert(group, after);
            self.sizes.insert((after, group));
        }
    }
}
