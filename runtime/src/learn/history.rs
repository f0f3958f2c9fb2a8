//! What learning has come to, beside the adapters: the run in hand, which examples were learned, which are remembered.
//!
//! Everything here is small, goes into every revision, and together with the examples decides every later step. Knows
//! examples only by their ids.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::batch::Schedule;
use super::methods::{ContinualMethod, Method, Moment};
use super::probe::ProbeScore;
use super::trainer::TrainerConfig;
use crate::example::{ExampleId, mix};
use crate::replay::{Memory, Newcomer, Policy};

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

    /// Whether an id is in both.
    pub fn intersects(&self, other: &Self) -> bool {
        let meets = |&(first, last): &(u64, u64)| {
            let at = self.ranges.partition_point(|&(_, end)| end < first);
            self.ranges.get(at).is_some_and(|&(begin, _)| begin <= last)
        };
        other.ranges.iter().any(meets)
    }

    /// How many ids are in it.
    pub fn len(&self) -> u64 {
        self.ranges.iter().fold(0, |sum: u64, (first, last)| sum.saturating_add((last - first).saturating_add(1)))
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether the ranges are as promised; of what was read from a file.
    pub(crate) fn is_sound(&self) -> bool {
        let are_apart = |pair: &[(u64, u64)]| pair[0].1 < u64::MAX && pair[0].1 + 1 < pair[1].0;
        self.ranges.iter().all(|(first, last)| first <= last) && self.ranges.windows(2).all(are_apart)
    }

    /// Every id, ascending.
    pub fn ids(&self) -> impl Iterator<Item = ExampleId> + '_ {
        self.ranges.iter().flat_map(|&(first, last)| first..=last).map(ExampleId)
    }

    /// First and last id of each range, ascending.
    pub fn ranges(&self) -> &[(u64, u64)] {
        &self.ranges
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

impl RunSettings {
    /// Whether the examples are named one by one, so that the same settings always mean the same run.
    pub fn is_of_given_examples(&self) -> bool {
        matches!(self.examples, Examples::These(_))
    }
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

    /// What the next step replays from `memory` beside `new` examples, nothing that is excluded.
    pub fn draw(&self, memory: &Memory, new: usize, is_excluded: impl Fn(ExampleId) -> bool) -> Vec<ExampleId> {
        let count = (self.settings.method.replay_ratio() * new as f64).round() as usize;
        // Runs of one session draw independently.
        memory.draw(count, mix(self.settings.seed ^ mix(self.number)), self.steps_done, is_excluded)
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
    /// Learned in the newest run for the first time, and so not yet offered to the memory; each with its mean negative log
    /// likelihood in nats before it was trained on.
    pub fresh: BTreeMap<ExampleId, f32>,
    /// What is replayed.
    pub memory: Memory,
    /// How well each task was known when the newest finished run ended. Not decisive for any step; has a section of its own.
    #[serde(skip)]
    pub probes: Vec<ProbeScore>,
}

impl History {
    /// Nothing learned.
    pub fn new(policy: Policy, memory_examples: u32) -> Self {
        Self {
            steps: 0,
            run: None,
            lineage: Lineage::default(),
            fresh: BTreeMap::new(),
            memory: Memory::new(policy, memory_examples),
            probes: Vec::new(),
        }
    }

    /// Number of the newest run, 0 before the first.
    pub fn run_number(&self) -> u64 {
        self.run.as_ref().map_or(0, |run| run.number)
    }

    /// The newest run, finished or not, if it is one under these settings and of this length.
    pub fn same_run(&self, settings: &RunSettings, steps_total: impl Fn(usize) -> u64) -> Option<&Run> {
        let run = self.run.as_ref()?;
        (run.settings == *settings && run.steps_total == steps_total(run.ids.len())).then_some(run)
    }

    /// Begins a run over `ids`. What the run before it learned, finished or given up, can be replayed from now on.
    ///
    /// `task_of` tells the task of an example that is still stored.
    pub fn begin<'a>(
        &mut self,
        settings: RunSettings,
        ids: Vec<ExampleId>,
        steps_total: u64,
        task_of: impl Fn(ExampleId) -> Option<&'a str>,
    ) {
        let seed = settings.seed;
        for (id, nll) in std::mem::take(&mut self.fresh) {
            if let Some(task) = task_of(id) {
                self.memory.insert(Newcomer { id, task, nll }, seed);
            }
        }
        let number = self.run_number() + 1;
        self.run = Some(Run { number, settings, ids, steps_total, steps_done: 0 });
    }

    /// Counts a step of the run in hand that trained on `new`, whose mean negative log likelihoods were `nll` before.
    pub fn step_done(&mut self, new: &[ExampleId], nll: &[f32]) {
        self.steps += 1;
        for (id, nll) in new.iter().zip(nll) {
            if !self.lineage.contains(*id) {
                self.fresh.insert(*id, *nll);
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

    /// Takes leave of examples that are not stored any more: they are replayed no more, and a run that was to learn one is
    /// given up.
    pub fn drop_missing(&mut self, is_stored: impl Fn(ExampleId) -> bool) {
        self.memory.retain(&is_stored);
        self.fresh.retain(|id, _| is_stored(*id));
        if self.run.as_ref().is_some_and(|run| !run.is_finished() && !run.ids.iter().all(|id| is_stored(*id))) {
            self.give_up();
        }
    }

    /// Gives the memory another policy or capacity: of the `stored` examples, oldest first, it then holds what it would if
    /// they had been learned in this order under the new one, as far as that is known: what surprised once counts as expected.
    pub fn set_memory<'a>(
        &mut self,
        policy: Policy,
        capacity: u32,
        seed: u64,
        stored: impl IntoIterator<Item = (ExampleId, &'a str)>,
    ) {
        if (self.memory.policy(), self.memory.capacity()) != (policy, capacity) {
            let is_offered = |id| self.lineage.contains(id) && !self.fresh.contains_key(&id);
            let offered = stored.into_iter().filter(|(id, _)| is_offered(*id));
            let offered = offered.map(|(id, task)| Newcomer { id, task, nll: 0.0 });
            self.memory = Memory::rebuild(policy, capacity, seed, offered);
        }
    }

    /// Whether its parts agree with each other; of what was read from a file.
    ///
    /// # Errors
    /// Names the part that is wrong.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let unless = |holds: bool, what| if holds { Ok(()) } else { Err(what) };
        unless(self.lineage.is_sound(), "ranges of examples")?;
        unless(self.fresh.keys().all(|id| self.lineage.contains(*id)), "what is fresh was never learned")?;
        let ids = self.run.as_ref().map_or(0, |run| run.ids.len());
        unless(self.fresh.len() <= ids, "more examples learned than the run has")?;
        let Some(run) = &self.run else { return Ok(()) };
        let RunSettings { method, trainer, batch_rows, .. } = &run.settings;
        unless(!run.ids.is_empty() && *batch_rows > 0, "a run without examples")?;
        unless(run.steps_done <= run.steps_total && run.number < u64::MAX, "more steps done than there are")?;
        unless(method.check().is_ok() && trainer.check().is_ok(), "settings out of range")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand_chacha::rand_core::Rng;

    use super::*;
    use crate::learn::Er;
    use crate::learn::rng::{Purpose, stream};

    #[test]
    fn ranges_are_the_set_that_was_inserted() {
        let mut rng = stream(3, Purpose::Test, 0, 0);
        for _ in 0..300 {
            let (mut ranges, mut set) = (Lineage::default(), BTreeSet::new());
            for _ in 0..rng.next_u32() % 40 {
                let id = u64::from(rng.next_u32() % 30);
                ranges.insert(ExampleId(id));
                set.insert(id);
            }
            assert!((0..31).all(|id| ranges.contains(ExampleId(id)) == set.contains(&id)), "{ranges:?}, {set:?}");
            assert_eq!(ranges.len(), set.len() as u64);
            let (mut others, mut other_set) = (Lineage::default(), BTreeSet::new());
            for _ in 0..rng.next_u32() % 4 {
                let id = u64::from(rng.next_u32() % 30);
                others.insert(ExampleId(id));
                other_set.insert(id);
            }
            assert_eq!(ranges.intersects(&others), !set.is_disjoint(&other_set));
            assert!(ranges.ranges().windows(2).all(|pair| pair[0].1 + 1 < pair[1].0), "{ranges:?}");
        }
        let mut ends = Lineage::default();
        ends.insert(ExampleId(u64::MAX));
        ends.insert(ExampleId(0));
        assert!(ends.contains(ExampleId(u64::MAX)) && !ends.contains(ExampleId(1)));
    }

    fn settings(examples: Examples) -> RunSettings {
        let (method, trainer) = (Method::Er(Er::DEFAULT), TrainerConfig::default());
        RunSettings { examples, method, trainer, batch_rows: 2, seed: 1 }
    }

    fn task(id: ExampleId) -> Option<&'static str> {
        (id.0 != 9).then_some("task")
    }

    #[test]
    fn what_a_run_learned_is_remembered_when_the_next_begins_even_if_it_was_given_up() {
        let mut history = History::new(Policy::Reservoir, 10);
        let ids: Vec<ExampleId> = (1..=4).map(ExampleId).collect();
        history.begin(settings(Examples::NotYetLearned(None)), ids, 2, task);
        history.step_done(&[ExampleId(3), ExampleId(1)], &[2.0, 1.0]);
        assert_eq!(history.memory.seen(), 0, "a run does not replay its own examples");
        history.begin(settings(Examples::NotYetLearned(None)), vec![ExampleId(2), ExampleId(3)], 1, task);
        assert_eq!(history.memory.ids().collect::<Vec<_>>(), [ExampleId(1), ExampleId(3)]);
        history.step_done(&[ExampleId(2), ExampleId(3)], &[3.0, 0.5]);
        history.begin(settings(Examples::NotYetLearned(None)), vec![ExampleId(5)], 1, task);
        assert_eq!(history.memory.ids().collect::<Vec<_>>(), [ExampleId(1), ExampleId(3), ExampleId(2)]);
        let remembered = history.memory.clone();
        let stored = || (1..=5).map(|id| (ExampleId(id), "task"));
        history.set_memory(Policy::Reservoir, 10, 1, stored());
        assert_eq!(history.memory, remembered, "the same settings change nothing");
        history.set_memory(Policy::Reservoir, 2, 1, stored());
        assert_eq!((history.memory.len(), history.memory.seen()), (2, 3));
        assert_eq!((history.run_number(), history.steps, history.lineage.len()), (3, 2, 3));
    }

    #[test]
    fn a_step_replays_neither_what_it_learns_nor_what_is_gone() {
        let mut history = History::new(Policy::Reservoir, 10);
        history.begin(settings(Examples::NotYetLearned(None)), (1..=9).map(ExampleId).collect(), 5, task);
        (1..=9).for_each(|id| history.step_done(&[ExampleId(id)], &[1.0]));
        history.begin(settings(Examples::NotYetLearned(None)), vec![ExampleId(20)], 5, task);
        let run = history.run.clone().unwrap();
        let is_new = |id| id == ExampleId(1);
        let drawn = run.draw(&history.memory, 20, is_new);
        assert_eq!(drawn.len(), 7, "of nine, one is learned now and one is stored no more");
        assert!(!drawn.contains(&ExampleId(1)) && !drawn.contains(&ExampleId(9)));
        let later = Run { steps_done: 1, ..run.clone() };
        let next = Run { number: 3, ..run.clone() };
        assert_eq!(drawn, run.draw(&history.memory, 20, is_new));
        assert_ne!(drawn, later.draw(&history.memory, 20, is_new));
        assert_ne!(drawn, next.draw(&history.memory, 20, is_new));
    }

    #[test]
    fn what_is_not_stored_any_more_is_neither_replayed_nor_waited_for() {
        let mut history = History::new(Policy::Reservoir, 10);
        history.begin(settings(Examples::NotYetLearned(None)), (1..=4).map(ExampleId).collect(), 4, task);
        (1..=4).for_each(|id| history.step_done(&[ExampleId(id)], &[1.0]));
        history.begin(settings(Examples::NotYetLearned(None)), vec![ExampleId(5), ExampleId(6)], 5, task);
        history.step_done(&[ExampleId(5)], &[1.0]);
        let before = history.clone();
        history.drop_missing(|_| true);
        assert_eq!(history, before);
        history.drop_missing(|id| id.0 != 2 && id.0 != 5);
        assert_eq!(history.memory.ids().map(|id| id.0).collect::<Vec<_>>(), [1, 3, 4]);
        assert!(history.fresh.is_empty() && history.run.as_ref().is_some_and(Run::is_finished));
        history.check().unwrap();
    }

    #[test]
    fn a_run_is_known_by_its_settings_and_its_length() {
        let mut history = History::new(Policy::Reservoir, 10);
        let these = || settings(Examples::These(vec![ExampleId(1)]));
        history.begin(these(), vec![ExampleId(1)], 5, task);
        assert!(history.same_run(&these(), |_| 5).is_some());
        assert!(history.same_run(&these(), |_| 6).is_none());
        assert!(history.same_run(&RunSettings { seed: 2, ..these() }, |_| 5).is_none());
        assert!(history.same_run(&settings(Examples::These(vec![ExampleId(2)])), |_| 5).is_none());
        (0..5).for_each(|_| history.step_done(&[ExampleId(1)], &[1.0]));
        assert!(history.same_run(&these(), |_| 5).is_some_and(Run::is_finished));
    }
}
