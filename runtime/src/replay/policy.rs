//! Who stays in a bounded memory of examples, and who is drawn from it for replay.
//!
//! A [`Memory`] holds ids, not examples, and no state of a random generator: every choice is a hash of the seed and of a
//! counter that the caller can name. So the memory after `n` inserts is a function of seed and ids, whether it was built
//! in one go, rebuilt from the log, or stored in a revision half way.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::example::{ExampleId, mix};

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
    /// Tasks share the memory as evenly as their sizes allow: a newcomer takes a place of the task that holds most.
    /// A newcomer of a task that holds most, or once did, competes within its own task, so that each example of it seen
    /// so far stays equally likely. A task is not pushed below `floor` by others.
    ///
    /// # Source
    /// Chrysakis and Moens, *Online Continual Learning from Imbalanced Data* (ICML 2020), class-balancing reservoir
    /// sampling, with tasks for classes; the floor is ours.
    BalancedReservoir {
        /// Examples each task keeps at least, once it has them; 0 for none.
        floor: u32,
    },
}

/// What an insert did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Insertion {
    /// The example took a free place.
    Added,
    /// The example took the place of this one.
    Replaced(ExampleId),
    /// The example was not kept.
    Skipped,
}

/// A bounded memory of examples.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    policy: Policy,
    capacity: u32,
    seen: u64,
    slots: Vec<Slot>,
    tasks: Vec<Task>,
}

/// A held example.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Slot {
    id: ExampleId,
    task: u32,
}

/// What the memory knows of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Task {
    name: String,
    seen: u64,
    held: u32,
    /// It held most once, while the memory was full.
    was_largest: bool,
}

/// What a hash is for, so that two uses of the same counter differ.
#[derive(Clone, Copy)]
enum Purpose {
    Accept = 1,
    Evict = 2,
    Draw = 3,
}

impl Memory {
    /// An empty memory for `capacity` examples.
    pub fn new(policy: Policy, capacity: u32) -> Self {
        Self { policy, capacity, seen: 0, slots: Vec::new(), tasks: Vec::new() }
    }

    /// The memory after all of `examples`, ids with their task, were inserted in order.
    pub fn rebuild<'a>(
        policy: Policy,
        capacity: u32,
        seed: u64,
        examples: impl IntoIterator<Item = (ExampleId, &'a str)>,
    ) -> Self {
        let mut memory = Self::new(policy, capacity);
        for (id, task) in examples {
            memory.insert(id, task, seed);
        }
        memory
    }

    /// Shows the memory one more example. What happens depends on `seed` and on what was shown before, on nothing else.
    pub fn insert(&mut self, id: ExampleId, task: &str, seed: u64) -> Insertion {
        let nth = self.seen;
        self.seen += 1;
        let task = self.task_number(task);
        self.tasks[task].seen += 1;
        let newcomer = Slot { id, task: task as u32 };
        if self.capacity == 0 {
            return Insertion::Skipped;
        }
        match self.policy {
            Policy::Reservoir => self.insert_uniform(newcomer, nth, seed),
            Policy::BalancedReservoir { floor } => self.insert_balanced(newcomer, nth, seed, floor),
        }
    }

    /// Forgets an example. Its place is free for the next one that is accepted; says whether it was held.
    pub fn remove(&mut self, id: ExampleId) -> bool {
        let Some(at) = self.slots.iter().position(|slot| slot.id == id) else {
            return false;
        };
        let slot = self.slots.remove(at);
        self.tasks[slot.task as usize].held -= 1;
        true
    }

    /// Up to `count` different examples that are not in `exclude`, in drawn order: a function of the memory, `seed` and
    /// `step`. Fewer if the memory does not hold so many.
    pub fn draw(&self, count: usize, seed: u64, step: u64, exclude: &[ExampleId]) -> Vec<ExampleId> {
        let ids = self.slots.iter().map(|slot| slot.id);
        let mut pool: Vec<ExampleId> = ids.filter(|id| !exclude.contains(id)).collect();
        let count = count.min(pool.len());
        let seed = mix(seed ^ mix(step));
        for at in 0..count {
            let left = (pool.len() - at) as u64;
            let chosen = at + below(left, seed, at as u64, Purpose::Draw) as usize;
            pool.swap(at, chosen);
        }
        pool.truncate(count);
        pool
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

    /// Whether `id` is held.
    pub fn contains(&self, id: ExampleId) -> bool {
        self.slots.iter().any(|slot| slot.id == id)
    }

    /// Whether its parts agree with each other. Asked of what was read from a file before it is used.
    pub fn is_sound(&self) -> bool {
        let held = |number| self.slots.iter().filter(|slot| slot.task as usize == number).count();
        self.seen < u64::MAX / 2
            && self.tasks.iter().all(|task| task.seen <= self.seen)
            && self.slots.len() <= self.capacity as usize
            && self.slots.iter().all(|slot| (slot.task as usize) < self.tasks.len())
            && self.tasks.iter().enumerate().all(|(at, task)| task.held as usize == held(at))
    }

    /// How many examples of each task are held.
    pub fn tasks(&self) -> impl Iterator<Item = (&str, u32)> {
        self.tasks.iter().map(|task| (task.name.as_str(), task.held))
    }

    fn insert_uniform(&mut self, newcomer: Slot, nth: u64, seed: u64) -> Insertion {
        let place = below(nth + 1, seed, nth, Purpose::Accept);
        if nth >= u64::from(self.capacity) && place >= u64::from(self.capacity) {
            return Insertion::Skipped;
        }
        if self.slots.len() < self.capacity as usize {
            return self.add(newcomer);
        }
        // The memory is full, so the place exists.
        self.replace(place as usize, newcomer)
    }

    fn insert_balanced(&mut self, newcomer: Slot, nth: u64, seed: u64, floor: u32) -> Insertion {
        if self.slots.len() < self.capacity as usize {
            return self.add(newcomer);
        }
        let most = self.tasks.iter().map(|task| task.held).max().unwrap_or(0);
        for task in &mut self.tasks {
            task.was_largest |= task.held == most;
        }
        let own = &self.tasks[newcomer.task as usize];
        if !own.was_largest && most > floor {
            let of_largest = |slot: &Slot| self.tasks[slot.task as usize].held == most;
            let place = self.choose_place(of_largest, nth, seed);
            return self.replace_or_skip(place, newcomer);
        }
        if below(own.seen, seed, nth, Purpose::Accept) >= u64::from(own.held) {
            return Insertion::Skipped;
        }
        let place = self.choose_place(|slot| slot.task == newcomer.task, nth, seed);
        self.replace_or_skip(place, newcomer)
    }

    /// A place among those `is_candidate` names, each as likely as the others.
    fn choose_place(&self, is_candidate: impl Fn(&Slot) -> bool, nth: u64, seed: u64) -> Option<usize> {
        let candidates = self.slots.iter().filter(|slot| is_candidate(slot)).count();
        let chosen = below(candidates as u64, seed, nth, Purpose::Evict) as usize;
        let places = self.slots.iter().enumerate();
        let mut places = places.filter(|(_, slot)| is_candidate(slot));
        places.nth(chosen).map(|(place, _)| place)
    }

    fn replace_or_skip(&mut self, place: Option<usize>, newcomer: Slot) -> Insertion {
        match place {
            Some(place) => self.replace(place, newcomer),
            None => Insertion::Skipped,
        }
    }

    fn add(&mut self, newcomer: Slot) -> Insertion {
        self.tasks[newcomer.task as usize].held += 1;
        self.slots.push(newcomer);
        Insertion::Added
    }

    fn replace(&mut self, place: usize, newcomer: Slot) -> Insertion {
        let old = core::mem::replace(&mut self.slots[place], newcomer);
        self.tasks[old.task as usize].held -= 1;
        self.tasks[newcomer.task as usize].held += 1;
        Insertion::Replaced(old.id)
    }

    fn task_number(&mut self, name: &str) -> usize {
        let known = self.tasks.iter().position(|task| task.name == name);
        known.unwrap_or_else(|| {
            self.tasks.push(Task { name: String::from(name), seen: 0, held: 0, was_largest: false });
            self.tasks.len() - 1
        })
    }
}

/// A number below `bound` (0 if that is 0) from the hash of seed, counter and purpose. The bias of the reduction is
/// below `bound / 2^64`.
fn below(bound: u64, seed: u64, counter: u64, purpose: Purpose) -> u64 {
    // Two rounds of the finalizer of SplitMix64 over an odd-constant Weyl step, as its generator does. These bits
    // decide what revisions hold, so they never change.
    let weyl = counter.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let bits = mix(mix(seed ^ (purpose as u64) << 56).wrapping_add(weyl));
    ((u128::from(bits) * u128::from(bound)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const BALANCED: Policy = Policy::BalancedReservoir { floor: 0 };

    fn stream(tasks: &[(&'static str, u64)]) -> Vec<(ExampleId, &'static str)> {
        let mut next = 0;
        let mut examples = Vec::new();
        for &(task, count) in tasks {
            for _ in 0..count {
                next += 1;
                examples.push((ExampleId(next), task));
            }
        }
        examples
    }

    /// Pearson's statistic of `counts` against equal expectation.
    fn chi_square(counts: &[u64]) -> f64 {
        let expected = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
        let deviation = |&count: &u64| (count as f64 - expected).powi(2) / expected;
        counts.iter().map(deviation).sum()
    }

    #[test]
    fn each_example_is_held_as_often_as_any_other() {
        let examples = stream(&[("a", 100)]);
        let mut held = [0; 100];
        for seed in 0..20_000 {
            let memory = Memory::rebuild(Policy::Reservoir, 10, seed, examples.iter().copied());
            assert_eq!(memory.len(), 10);
            memory.ids().for_each(|id| held[id.0 as usize - 1] += 1);
        }
        // 99 degrees of freedom: 134.6 is exceeded once in a hundred; seeds are fixed.
        assert!(chi_square(&held) < 134.6, "{}", chi_square(&held));
    }

    #[test]
    fn within_a_task_the_balanced_memory_is_uniform_too() {
        let examples = stream(&[("a", 60), ("b", 10)]);
        let mut held = [0; 60];
        for seed in 0..20_000 {
            let memory = Memory::rebuild(BALANCED, 12, seed, examples.iter().copied());
            let of_a = memory.ids().filter(|id| id.0 <= 60);
            of_a.for_each(|id| held[id.0 as usize - 1] += 1);
        }
        // 59 degrees of freedom at one in a hundred.
        assert!(chi_square(&held) < 87.2, "{}", chi_square(&held));
    }

    #[test]
    fn draws_are_even_different_and_repeatable() {
        let memory = Memory::rebuild(Policy::Reservoir, 20, 1, stream(&[("a", 20)]));
        let excluded = [ExampleId(3), ExampleId(4)];
        let mut drawn = [0; 20];
        for step in 0..20_000 {
            let draw = memory.draw(5, 7, step, &excluded);
            assert_eq!(draw, memory.draw(5, 7, step, &excluded));
            let mut sorted = draw.clone();
            sorted.sort();
            sorted.dedup();
            assert_eq!(sorted.len(), 5);
            draw.iter().for_each(|id| drawn[id.0 as usize - 1] += 1);
        }
        assert_eq!((drawn[2], drawn[3]), (0, 0));
        let allowed: Vec<u64> = drawn.iter().copied().filter(|&count| count > 0).collect();
        // 17 degrees of freedom at one in a hundred.
        assert_eq!(allowed.len(), 18);
        assert!(chi_square(&allowed) < 33.4, "{}", chi_square(&allowed));
        assert_eq!(memory.draw(50, 7, 0, &excluded).len(), 18, "no more than there are");
    }

    #[test]
    fn built_in_one_go_or_resumed_after_any_prefix_is_the_same_memory() {
        let examples = stream(&[("a", 40), ("b", 5), ("a", 10), ("c", 30)]);
        for policy in [Policy::Reservoir, BALANCED, Policy::BalancedReservoir { floor: 3 }] {
            let whole = Memory::rebuild(policy, 9, 5, examples.iter().copied());
            for cut in 0..examples.len() {
                let memory = Memory::rebuild(policy, 9, 5, examples[..cut].iter().copied());
                let mut buffer = [0; 1024];
                let stored = postcard::to_slice(&memory, &mut buffer).unwrap();
                let mut memory: Memory = postcard::from_bytes(stored).unwrap();
                for &(id, task) in &examples[cut..] {
                    memory.insert(id, task, 5);
                }
                assert_eq!(memory, whole);
            }
        }
    }

    #[test]
    fn tasks_share_a_balanced_memory() {
        let examples = stream(&[("big", 1000), ("small", 50), ("tiny", 3)]);
        for seed in 0..50 {
            let memory = Memory::rebuild(BALANCED, 30, seed, examples.iter().copied());
            let held: Vec<u32> = memory.tasks().map(|(_, held)| held).collect();
            assert_eq!(held.iter().sum::<u32>(), 30);
            assert_eq!(held[2], 3, "a small task is kept whole");
            assert!(held[0].abs_diff(held[1]) <= 2, "{held:?}");
            let plain = Memory::rebuild(Policy::Reservoir, 30, seed, examples.iter().copied());
            assert!(plain.tasks().all(|(name, held)| name == "big" || held < 8));
        }
    }

    #[test]
    fn a_floor_keeps_old_tasks_from_being_pushed_out() {
        let tasks = ["a", "b", "c", "d", "e", "f"].map(|task| (task, 20));
        let floor = Policy::BalancedReservoir { floor: 4 };
        let memory = Memory::rebuild(floor, 12, 9, stream(&tasks));
        let held: Vec<u32> = memory.tasks().map(|(_, held)| held).collect();
        assert_eq!(held, [4, 4, 4, 0, 0, 0]);
        let memory = Memory::rebuild(BALANCED, 12, 9, stream(&tasks));
        assert!(memory.tasks().all(|(_, held)| held == 2));
    }

    #[test]
    fn a_removed_example_is_gone_and_its_place_is_filled_again() {
        let mut memory = Memory::rebuild(Policy::Reservoir, 4, 1, stream(&[("a", 4)]));
        assert!(memory.remove(ExampleId(2)));
        assert!(!memory.remove(ExampleId(2)));
        assert_eq!(memory.ids().map(|id| id.0).collect::<Vec<_>>(), [1, 3, 4]);
        let mut id = 4;
        while memory.len() < 4 {
            id += 1;
            memory.insert(ExampleId(id), "a", 1);
        }
        assert!(memory.contains(ExampleId(id)));
        let mut none = Memory::new(Policy::Reservoir, 0);
        assert_eq!(none.insert(ExampleId(1), "a", 1), Insertion::Skipped);
        assert!(none.draw(3, 0, 0, &[]).is_empty());
    }
}
