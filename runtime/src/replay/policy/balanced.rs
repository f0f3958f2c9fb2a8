//! The class-balanced reservoir: tasks share the memory, each holding a uniform sample of its own.
//!
//! Every example gets a random key when it comes, and a task that must lose one loses the one with the highest key. So
//! what it holds are the lowest keys of all it was ever shown: a uniform sample, whatever happened in which order.

use super::ranks::Ranks;
use super::{Insertion, Memory, Purpose, Slot, bits};

/// The order within each task.
pub(super) fn ranks(slots: &[Slot]) -> Ranks {
    Ranks::of(slots, |slot| slot.task)
}

impl Memory {
    pub(super) fn insert_balanced(&mut self, newcomer: Slot, nth: u64, seed: u64, floor: u32) -> Insertion {
        let newcomer = Slot { key: (bits(seed, nth, Purpose::Accept) >> 32) as u32, ..newcomer };
        let own = newcomer.task;
        let largest = self.ranks.largest().filter(|_| self.is_full());
        let Some((largest, most)) = largest else {
            let place = self.add(newcomer);
            self.ranks.insert(own, &newcomer, place);
            return Insertion::Added;
        };
        self.tasks[largest as usize].was_largest = true;
        self.tasks[own as usize].was_largest |= self.ranks.held(own) == most;
        let loser = if !self.tasks[own as usize].was_largest && most > floor { largest } else { own };
        match self.ranks.first_to_go(loser) {
            // Within its own task the higher key loses; among equal ones, one pair in 2^32, the newcomer does.
            Some((key, place)) if loser != own || newcomer.key < key => self.take_place(place, newcomer),
            _ => Insertion::Skipped,
        }
    }

    fn take_place(&mut self, place: usize, newcomer: Slot) -> Insertion {
        let old = self.replace(place, newcomer);
        self.ranks.remove(old.task, &old);
        self.ranks.insert(newcomer.task, &newcomer, place);
        Insertion::Replaced(old.id)
    }
}
