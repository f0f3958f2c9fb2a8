//! What learning has come to, beside the adapters: the run in hand, which examples were learned, which are remembered.
//!
//! Everything here is small, goes into every revision, and together with the examples decides every later step. Knows
//! examples only by their ids.

use serde::{Deserialize, Serialize};

use super::batch::Schedule;
use super::methods::{ContinualMethod, Method, Moment};
use super::rng::{Purpose, below, stream};
use super::trainer::TrainerConfig;
use crate::example::ExampleId;

/// A set of example ids as ranges, which stays small where ids come in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// First and last id of each range; ascending, neither overlapping nor touching.
    ranges: Vec<(u64, u64)>,
}

impl Lineage {
    /// Adds an id.
    pub fn insert(&mut self, id: ExampleId) {
        let ExampleId(id) = id;
        let at = self.ranges.partition_point(|&(_, last)| last.saturating_add(1) < id);
        match self.ranges.get_mut(at) {
            Some((first, last)) if *first <= id.saturating_add(1) => {
                *first = id.min(*first);
                *last = id.max(*last);
            }
            _ => self.ranges.insert(at, (id, id)),
        }
        let Some(&(next, end)) = self.ranges.get(at + 1) else { return };
        if self.ranges[at].1.saturating_add(1) >= next {
            self.ranges[at].1 = end;
            self.ranges.remove(at + 1);
        }
    }

    /// Whether an id is in it.
    pub fn contains(&self, id: ExampleId) -> bool {
        let at = self.ranges.partition_point(|&(_, last)| last < id.0);
        self.ranges.get(at).is_some_and(|&(first, _)| first <= id.0)
    }

    /// How many ids are in it.
    pub fn len(&self) -> u64 {
        self.ranges.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// First and last id of each range, ascending.
    pub fn ranges(&self) -> &[(u64, u64)] {
        &self.ranges
    }
}

/// The examples that are replayed: a reservoir sample of everything learned in earlier runs.
///
/// Each of `seen` examples is in it with the same probability. An example is offered once, when the run that first
/// learned it is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    capacity: usize,
    seen: u64,
    slots: Vec<u64>,
}

impl Memory {
    /// An empty memory of at most `capacity` examples.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, seen: 0, slots: Vec::new() }
    }

    /// The remembered ids, in the order of their slots.
    pub fn ids(&self) -> impl ExactSizeIterator<Item = ExampleId> + '_ {
        self.slots.iter().map(|id| ExampleId(*id))
    }

    /// How many examples were offered so far.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// Examples it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Changes the room; of too many examples those in the last slots go.
    pub fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity;
        self.slots.truncate(capacity);
    }

    /// Offers examples after run `run`, in this order.
    ///
    /// # Source
    /// Vitter, "Random Sampling with a Reservoir" (1985), algorithm R.
    pub fn offer(&mut self, ids: impl IntoIterator<Item = ExampleId>, seed: u64, run: u64) {
        let mut rng = stream(seed, Purpose::Memory, run, 0);
        for ExampleId(id) in ids {
            self.seen += 1;
            if self.slots.len() < self.capacity {
                self.slots.push(id);
                continue;
            }
            let slot = below(&mut rng, self.seen) as usize;
            if let Some(replaced) = self.slots.get_mut(slot) {
                *replaced = id;
            }
        }
    }

    /// `count` different remembered examples, or as many as there are, none for which `is_excluded`. Pure in the memory,
    /// the seed, the run and the step.
    pub fn draw(
        &self,
        count: usize,
        is_excluded: impl Fn(ExampleId) -> bool,
        seed: u64,
        run: u64,
        step: u64,
    ) -> Vec<ExampleId> {
        let mut rng = stream(seed, Purpose::Replay, run, step);
        let mut left: Vec<ExampleId> = self.ids().filter(|id| !is_excluded(*id)).collect();
        let count = count.min(left.len());
        for drawn in 0..count {
            let other = drawn + below(&mut rng, (left.len() - drawn) as u64) as usize;
            left.swap(drawn, other);
        }
        left.truncate(count);
        left
    }
}

/// Which examples a run is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Examples {
    /// Those stored by the time the run begins that no run has learned yet: of one task, or of all.
    NotYetLearned(Option<String>),
    /// These, learned before or not.
    These(Vec<ExampleId>),
}

/// Everything that decides a run's steps, besides the examples themselves and the memory. A run continues only under
/// the same settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunSettings {
    /// What is learned.
    pub examples: Examples,
    /// How forgetting is fought.
    pub method: Method,
    /// How gradients are used.
    pub trainer: TrainerConfig,
    /// New examples of one step.
    pub batch_rows: usize,
    /// Seed of the order, of the replay draws and of the memory.
    pub seed: u64,
}

/// One run: so many steps over some examples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Its number, from 1.
    pub number: u64,
    /// What decides its steps.
    pub settings: RunSettings,
    /// The examples, as they were chosen when it began.
    pub ids: Vec<ExampleId>,
    /// Steps in all.
    pub steps_total: u64,
    /// Steps behind it.
    pub steps_done: u64,
}

impl Run {
    /// Whether it has all its steps.
    pub fn is_finished(&self) -> bool {
        self.steps_done >= self.steps_total
    }

    /// Where it is once the next step is done.
    pub fn next_moment(&self) -> Moment {
        Moment { steps_done: self.steps_done + 1, steps_total: self.steps_total }
    }

    /// The new examples of step `step`, counted from 0.
    pub fn ids_of_step(&self, step: u64) -> Vec<ExampleId> {
        let RunSettings { batch_rows, seed, .. } = self.settings;
        let schedule = Schedule { examples: self.ids.len(), batch_rows, seed, run: self.number };
        schedule.examples_of_step(step).into_iter().map(|index| self.ids[index]).collect()
    }

    /// How many examples are replayed beside `new` ones.
    pub fn replayed_beside(&self, new: usize) -> usize {
        (self.settings.method.replay_ratio() * new as f64).round() as usize
    }
}

/// What learning has come to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// Steps of all runs.
    pub steps: u64,
    /// The newest run, finished or not.
    pub run: Option<Run>,
    /// Every example that a step has trained on.
    pub lineage: Lineage,
    /// Learned in the newest run for the first time, and so not yet offered to the memory.
    pub fresh: Lineage,
    /// What is replayed.
    pub memory: Memory,
}

impl History {
    /// Nothing learned.
    pub fn new(memory_examples: usize) -> Self {
        Self {
            steps: 0,
            run: None,
            lineage: Lineage::default(),
            fresh: Lineage::default(),
            memory: Memory::new(memory_examples),
        }
    }

    /// Number of the newest run, 0 before the first.
    pub fn run_number(&self) -> u64 {
        self.run.as_ref().map_or(0, |run| run.number)
    }

    /// The run in hand, if it goes on under these settings to the same length.
    pub fn resumable(&self, settings: &RunSettings, steps_total: impl Fn(usize) -> u64) -> Option<&Run> {
        let run = self.run.as_ref().filter(|run| !run.is_finished())?;
        (run.settings == *settings && run.steps_total == steps_total(run.ids.len())).then_some(run)
    }

    /// Begins a run over `ids`. What the run before it learned, finished or given up, can be replayed from now on.
    pub fn begin(&mut self, settings: RunSettings, ids: Vec<ExampleId>, steps_total: u64) {
        self.remember();
        let number = self.run_number() + 1;
        self.run = Some(Run { number, settings, ids, steps_total, steps_done: 0 });
    }

    /// Counts a step of the run in hand that trained on `new`.
    pub fn step_done(&mut self, new: &[ExampleId]) {
        self.steps += 1;
        for id in new {
            if !self.lineage.contains(*id) {
                self.fresh.insert(*id);
            }
            self.lineage.insert(*id);
        }
        if let Some(run) = &mut self.run {
            run.steps_done += 1;
        }
    }

    /// Ends the run in hand where it is.
    pub fn give_up(&mut self) {
        if let Some(run) = &mut self.run {
            run.steps_total = run.steps_done;
        }
    }

    /// Offers to the memory what the run in hand has learned for the first time.
    fn remember(&mut self) {
        let Some(run) = &self.run else { return };
        let fresh = std::mem::take(&mut self.fresh);
        let ids = fresh.ranges().iter().flat_map(|&(first, last)| first..=last).map(ExampleId);
        self.memory.offer(ids, run.settings.seed, run.number);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand_chacha::rand_core::Rng;

    use super::*;
    use crate::learn::Er;

    #[test]
    fn ranges_are_the_set_that_was_inserted() {
        let mut rng = stream(3, Purpose::Memory, 0, 0);
        for _ in 0..300 {
            let (mut ranges, mut set) = (Lineage::default(), BTreeSet::new());
            for _ in 0..rng.next_u32() % 40 {
                let id = u64::from(rng.next_u32() % 30);
                ranges.insert(ExampleId(id));
                set.insert(id);
            }
            assert!((0..31).all(|id| ranges.contains(ExampleId(id)) == set.contains(&id)), "{ranges:?}, {set:?}");
            assert_eq!(ranges.len(), set.len() as u64);
            assert!(ranges.ranges().windows(2).all(|pair| pair[0].1 + 1 < pair[1].0), "{ranges:?}");
        }
        let mut ends = Lineage::default();
        ends.insert(ExampleId(u64::MAX));
        ends.insert(ExampleId(0));
        assert!(ends.contains(ExampleId(u64::MAX)) && !ends.contains(ExampleId(1)));
    }

    #[test]
    fn every_example_is_remembered_as_likely_as_any_other() {
        let mut counts = [0u32; 12];
        for seed in 0..3000 {
            let mut memory = Memory::new(4);
            memory.offer((0..5).map(ExampleId), seed, 1);
            memory.offer((5..12).map(ExampleId), seed, 2);
            assert_eq!((memory.slots.len(), memory.seen()), (4, 12));
            memory.ids().for_each(|id| counts[id.0 as usize] += 1);
        }
        // 3000 memories of a third of all: the standard deviation of a count is 26; five of them.
        assert!(counts.iter().all(|count| count.abs_diff(1000) < 130), "{counts:?}");
    }

    #[test]
    fn a_draw_has_no_example_twice_and_none_that_is_excluded() {
        let mut memory = Memory::new(10);
        memory.offer((0..10).map(ExampleId), 1, 1);
        for step in 0..50 {
            let drawn = memory.draw(6, |id| id.0 < 3, 1, 2, step);
            assert_eq!(drawn.iter().collect::<BTreeSet<_>>().len(), 6);
            assert!(drawn.iter().all(|id| id.0 >= 3));
            assert_eq!(drawn, memory.draw(6, |id| id.0 < 3, 1, 2, step));
        }
        assert_eq!(memory.draw(20, |_| false, 1, 2, 0).len(), 10);
        assert_ne!(memory.draw(6, |_| false, 1, 2, 0), memory.draw(6, |_| false, 1, 2, 1));
        assert_eq!(Memory::new(0).draw(3, |_| false, 1, 1, 1), []);
    }

    fn settings(examples: Examples) -> RunSettings {
        let (method, trainer) = (Method::Er(Er::DEFAULT), TrainerConfig::default());
        RunSettings { examples, method, trainer, batch_rows: 2, seed: 1 }
    }

    #[test]
    fn what_a_run_learned_is_remembered_when_the_next_begins_even_if_it_was_given_up() {
        let mut history = History::new(10);
        let ids: Vec<ExampleId> = (1..=4).map(ExampleId).collect();
        history.begin(settings(Examples::NotYetLearned(None)), ids, 2);
        history.step_done(&[ExampleId(3), ExampleId(1)]);
        assert_eq!(history.memory.seen(), 0, "a run does not replay its own examples");
        history.begin(settings(Examples::NotYetLearned(None)), vec![ExampleId(2), ExampleId(3)], 1);
        assert_eq!(history.memory.ids().collect::<Vec<_>>(), [ExampleId(1), ExampleId(3)]);
        history.step_done(&[ExampleId(2), ExampleId(3)]);
        history.begin(settings(Examples::NotYetLearned(None)), vec![ExampleId(5)], 1);
        assert_eq!(history.memory.ids().collect::<Vec<_>>(), [ExampleId(1), ExampleId(3), ExampleId(2)]);
        assert_eq!((history.run_number(), history.steps, history.lineage.len()), (3, 2, 3));
    }

    #[test]
    fn a_run_resumes_only_under_its_own_settings() {
        let mut history = History::new(10);
        let these = || settings(Examples::These(vec![ExampleId(1)]));
        history.begin(these(), vec![ExampleId(1)], 5);
        assert!(history.resumable(&these(), |_| 5).is_some());
        assert!(history.resumable(&these(), |_| 6).is_none());
        assert!(history.resumable(&RunSettings { seed: 2, ..these() }, |_| 5).is_none());
        assert!(history.resumable(&settings(Examples::These(vec![ExampleId(2)])), |_| 5).is_none());
        (0..5).for_each(|_| history.step_done(&[ExampleId(1)]));
        assert!(history.resumable(&these(), |_| 5).is_none(), "it is finished");
    }
}
