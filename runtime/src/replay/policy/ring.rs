//! The ring: the newest examples.

use super::{Insertion, Memory, Slot};

impl Memory {
    pub(super) fn insert_newest(&mut self, newcomer: Slot) -> Insertion {
        if !self.is_full() {
            self.add(newcomer);
            return Insertion::Added;
        }
        let old = self.replace(self.oldest as usize, newcomer);
        self.oldest = (self.oldest + 1) % self.capacity;
        Insertion::Replaced(old.id)
    }
}
