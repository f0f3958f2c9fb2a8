//! The reservoir: every example seen so far is held with the same probability.

use super::{Insertion, Memory, Purpose, Slot, below};

impl Memory {
    pub(super) fn insert_uniform(&mut self, newcomer: Slot, nth: u64, seed: u64) -> Insertion {
        let place = below(nth + 1, seed, nth, Purpose::Accept);
        if nth >= u64::from(self.capacity) && place >= u64::from(self.capacity) {
            return Insertion::Skipped;
        }
        if !self.is_full() {
            self.add(newcomer);
            return Insertion::Added;
        }
        // The memory is full, so the place exists.
        Insertion::Replaced(self.replace(place as usize, newcomer).id)
    }
}
