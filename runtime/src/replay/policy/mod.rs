//! Who stays in a bounded memory of examples, and who is drawn from it for replay. One policy a file.
//!
//! A [`Memory`] holds ids, not examples, and no state of a random generator: every choice is a hash of the seed and of a
//! counter that the caller can name. So the memory after `n` inserts is a function of seed, ids and scores, whether it was
//! built in one go, rebuilt from the log, or stored in a revision half way.
//!
//! An insert takes O(log n), a draw of `k` examples O(k log k) and no longer for a larger memory; removing walks all of it.
//! In RAM, a held example takes 16 bytes. Policies that ask who goes first, the balanced one and surprise, keep 25 to 40 more
//! for that order.

mod balanced;
mod ranks;
mod reservoir;
mod ring;
mod stored;
mod surprise;
#[cfg(test)]
mod tests;

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::example::{ExampleId, mix};
use ranks::Ranks;
pub use stored::MemoryV1;
use stored::Stored;
use surprise::Scores;

/// Which examples a full memory keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Policy {
    /// Every example seen so far is held with the same probability, capacity / seen.
    ///
    /// # Source
    /// Vitter, *Random Sampling with a Reservoir* (ACM TOMS 1985), algorithm R; the buffer of experience replay in
    /// Chaudhry et al., *On Tiny Episodic Memories in Continual Learning* (2019).
    Reservoir,
    /// Tasks share the memory as evenly as their sizes allow: a newcomer takes a place of the task that holds most, of
    /// several such the one that came last. A newcomer of a task that holds most, or once did, competes within its own
    /// task, so that each example of it seen so far stays equally likely. A task is not pushed below `floor` by others.
    ///
    /// # Source
    /// Chrysakis and Moens, *Online Continual Learning from Imbalanced Data* (ICML 2020), class-balancing reservoir
    /// sampling, with tasks for classes; the floor is ours.
    BalancedReservoir {
        /// Examples each task keeps at least, once it has them; 0 for none.
        floor: u32,
    },
    /// The newest examples.
    ///
    /// # Source
    /// The FIFO buffer of Lopez-Paz and Ranzato, *Gradient Episodic Memory for Continual Learning* (NeurIPS 2017), over all
    /// tasks together.
    Ring,
    /// The examples that surprised the model most when it first met them, and beside them a uniform sample of all others.
    /// What is surprising beyond the 95th percentile of what was seen so far counts as no more than that, so that a handful
    /// of garbled examples does not fill the memory.
    ///
    /// # Source
    /// Prioritized replay by loss, with the mix of random ones against its bias: Schaul et al., *Prioritized Experience
    /// Replay* (ICLR 2016); the clipping is ours.
    Surprise {
        /// Share of the places that the uniform sample has, in percent, rounded up; at most 100.
        random_percent: u8,
    },
}

impl Default for Policy {
    /// Tasks share the room, none has less than ten.
    fn default() -> Self {
        Self::BalancedReservoir { floor: 10 }
    }
}

/// An example as a memory meets it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Newcomer<'a> {
    /// Its id. An id is shown to a memory once.
    pub id: ExampleId,
    /// Its task.
    pub task: &'a str,
    /// How little the model expected it: the mean negative log likelihood of its answer's tokens in nats, before it was
    /// trained on; 0 where that is not known.
    pub nll: f32,
}

/// What an insert did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Insertion {
    /// The example took a free place.
    Added,
    /// The example was taken in, and this one is held no more.
    Replaced(ExampleId),
    /// The example was not kept.
    Skipped,
}

/// A bounded memory of examples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(into = "Stored", try_from = "Stored")]
pub struct Memory {
    policy: Policy,
    capacity: u32,
    seen: u64,
    slots: Vec<Slot>,
    tasks: Vec<Task>,
    numbers: BTreeMap<String, u32>,
    /// Ring: the place of the oldest example; 0 while a place is free.
    oldest: u32,
    /// Balanced and surprise: who goes first.
    ranks: Ranks,
    /// Surprise: what was seen so far.
    scores: Scores,
}

/// A held example: 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Slot {
    id: ExampleId,
    task: u32,
    /// Rank in its group, where the policy has groups: the highest goes first.
    key: u32,
}

/// What the memory knows of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Task {
    name: String,
    held: u32,
    /// It held most once, while the memory was full.
    was_largest: bool,
}

/// What a hash is for, so that two uses of the same counter differ.
#[derive(Clone, Copy)]
enum Purpose {
    Accept = 1,
    Draw = 3,
}

impl Memory {
    /// An empty memory for `capacity` examples.
    pub fn new(policy: Policy, capacity: u32) -> Self {
        Self {
            policy,
            capacity,
            seen: 0,
            slots: Vec::new(),
            tasks: Vec::new(),
            numbers: BTreeMap::new(),
            oldest: 0,
            ranks: Ranks::default(),
            scores: Scores::default(),
        }
    }

    /// The memory after all of `examples` were inserted in order.
    pub fn rebuild<'a>(
        policy: Policy,
        capacity: u32,
        seed: u64,
        examples: impl IntoIterator<Item = Newcomer<'a>>,
    ) -> Self {
        let mut memory = Self::new(policy, capacity);
        for newcomer in examples {
            memory.insert(newcomer, seed);
        }
        memory
    }

    /// Shows the memory one more example. What happens depends on `seed` and on what was shown before, on nothing else.
    pub fn insert(&mut self, newcomer: Newcomer<'_>, seed: u64) -> Insertion {
        let nth = self.seen;
        self.seen += 1;
        let task = self.task_number(newcomer.task);
        if self.capacity == 0 {
            return Insertion::Skipped;
        }
        let slot = Slot { id: newcomer.id, task, key: 0 };
        match self.policy {
            Policy::Reservoir => self.insert_uniform(slot, nth, seed),
            Policy::BalancedReservoir { floor } => self.insert_balanced(slot, nth, seed, floor),
            Policy::Ring => self.insert_newest(slot),
            Policy::Surprise { random_percent } => {
                self.insert_surprising(slot, newcomer.nll, nth, seed, random_percent)
            }
        }
    }

    /// Forgets an example. Its place is free for the next one that is accepted; says whether it was held.
    pub fn remove(&mut self, id: ExampleId) -> bool {
        self.retain(|held| held != id) > 0
    }

    /// Forgets every example of which `keeps` says no; gives how many those were.
    pub fn retain(&mut self, keeps: impl Fn(ExampleId) -> bool) -> usize {
        let before = self.slots.len();
        if self.slots.iter().all(|slot| keeps(slot.id)) {
            return 0;
        }
        self.slots.rotate_left(self.oldest as usize);
        self.oldest = 0;
        self.slots.retain(|slot| keeps(slot.id));
        self.count_again();
        before - self.slots.len()
    }

    /// Up to `count` different examples that are not excluded, in drawn order: a function of the memory, `seed` and `step`.
    /// Fewer if the memory does not hold so many.
    ///
    /// `is_excluded` is asked about the examples it comes by, and about no other.
    pub fn draw(&self, count: usize, seed: u64, step: u64, is_excluded: impl Fn(ExampleId) -> bool) -> Vec<ExampleId> {
        let seed = mix(seed ^ mix(step));
        let mut drawn = Vec::with_capacity(count.min(self.slots.len()));
        // The shuffle of Fisher and Yates, of which only the places that were exchanged exist.
        let mut moved: BTreeMap<usize, usize> = BTreeMap::new();
        for at in 0..self.slots.len() {
            if drawn.len() == count {
                break;
            }
            let left = (self.slots.len() - at) as u64;
            let chosen = at + below(left, seed, at as u64, Purpose::Draw) as usize;
            let first = moved.remove(&at).unwrap_or(at);
            let place = if chosen == at { first } else { moved.insert(chosen, first).unwrap_or(chosen) };
            let id = self.slots[place].id;
            if !is_excluded(id) {
                drawn.push(id);
            }
        }
        drawn
    }

    /// The policy.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Most examples it can hold.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Examples shown to it so far.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// Examples it holds.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The held examples, by place.
    pub fn ids(&self) -> impl ExactSizeIterator<Item = ExampleId> {
        self.slots.iter().map(|slot| slot.id)
    }

    /// Whether `id` is held; looks at each held example.
    pub fn contains(&self, id: ExampleId) -> bool {
        self.slots.iter().any(|slot| slot.id == id)
    }

    /// How many examples of each task are held.
    pub fn tasks(&self) -> impl Iterator<Item = (&str, u32)> {
        self.tasks.iter().map(|task| (task.name.as_str(), task.held))
    }

    fn is_full(&self) -> bool {
        self.slots.len() >= self.capacity as usize
    }

    /// Puts `slot` into a free place; gives the place.
    fn add(&mut self, slot: Slot) -> usize {
        self.tasks[slot.task as usize].held += 1;
        self.slots.push(slot);
        self.slots.len() - 1
    }

    /// Puts `slot` into an occupied place; gives who was there.
    fn replace(&mut self, place: usize, slot: Slot) -> Slot {
        let old = core::mem::replace(&mut self.slots[place], slot);
        self.tasks[old.task as usize].held -= 1;
        self.tasks[slot.task as usize].held += 1;
        old
    }

    /// Everything that follows from the slots.
    fn count_again(&mut self) {
        self.tasks.iter_mut().for_each(|task| task.held = 0);
        for slot in &self.slots {
            self.tasks[slot.task as usize].held += 1;
        }
        self.ranks = match self.policy {
            Policy::BalancedReservoir { .. } => balanced::ranks(&self.slots),
            Policy::Surprise { .. } => surprise::ranks(&self.slots),
            Policy::Reservoir | Policy::Ring => Ranks::default(),
        };
    }

    fn task_number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = self.tasks.len() as u32;
        self.numbers.insert(String::from(name), number);
        self.tasks.push(Task { name: String::from(name), held: 0, was_largest: false });
        number
    }
}

/// 64 bits from the hash of seed, counter and purpose.
fn bits(seed: u64, counter: u64, purpose: Purpose) -> u64 {
    // Two rounds of the finalizer of SplitMix64 over an odd-constant Weyl step, as its generator does. These bits
    // decide what revisions hold, so they never change.
    let weyl = counter.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mix(mix(seed ^ (purpose as u64) << 56).wrapping_add(weyl))
}

/// A number below `bound` (0 if that is 0) from [`bits`]. The bias of the reduction is below `bound / 2^64`.
fn below(bound: u64, seed: u64, counter: u64, purpose: Purpose) -> u64 {
    ((u128::from(bits(seed, counter, purpose)) * u128::from(bound)) >> 64) as u64
}
