//! The forgetting meter: how well the served learner still knows a few examples of each task that it learned.
//!
//! The examples are a fixed sample: chosen by a hash of their ids among all that were learned, so that from one run to the
//! next they stay the same ones, but for newcomers of the same task that hash lower. They were trained on and may be
//! replayed: a score tells what was forgotten, not how well a task generalizes; for that, evaluate a suite.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::example::{ExampleId, mix};

/// Examples of a task that are scored, at most.
const EXAMPLES_PER_TASK: usize = 4;
/// Tasks that are scored, at most: of more, those whose examples hash lowest.
const TASKS: usize = 16;
/// A longer example is never scored: together they must not take longer than a few steps.
const LONGEST_TOKENS: u32 = 512;

/// How well one task was known when a run ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeScore {
    /// The task.
    pub task: String,
    /// Its examples that were scored.
    pub examples: u32,
    /// Mean over them of the mean negative log likelihood of an answer's tokens, in nats: 0 is known by heart.
    pub nll: f32,
    /// The same when the run before ended; none for a task that is new since.
    pub nll_before: Option<f32>,
}

impl ProbeScore {
    /// What was forgotten in the newest run, in nats; negative where it is known better than before.
    pub fn forgotten(&self) -> Option<f32> {
        self.nll_before.map(|before| self.nll - before)
    }
}

/// Which examples a probe scores: of each task some, by task. `learned` are id, task and tokens of everything that was
/// learned and is still stored.
pub fn choose<'a>(learned: impl IntoIterator<Item = (ExampleId, &'a str, u32)>) -> BTreeMap<&'a str, Vec<ExampleId>> {
    let mut lowest: BTreeMap<&str, Vec<(u64, ExampleId)>> = BTreeMap::new();
    for (id, task, tokens) in learned {
        if tokens > LONGEST_TOKENS {
            continue;
        }
        let chosen = lowest.entry(task).or_default();
        let hashed = (mix(id.0), id);
        chosen.insert(chosen.partition_point(|other| *other < hashed), hashed);
        chosen.truncate(EXAMPLES_PER_TASK);
    }
    let mut firsts: Vec<(u64, ExampleId)> = lowest.values().map(|chosen| chosen[0]).collect();
    firsts.sort_unstable();
    if let Some(limit) = firsts.get(TASKS) {
        lowest.retain(|_, chosen| chosen[0] < *limit);
    }
    let ids = |chosen: Vec<(u64, ExampleId)>| chosen.into_iter().map(|(_, id)| id).collect();
    lowest.into_iter().map(|(task, chosen)| (task, ids(chosen))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learned(ids: std::ops::Range<u64>, task: &str) -> Vec<(ExampleId, &str, u32)> {
        ids.map(|id| (ExampleId(id), task, 20)).collect()
    }

    #[test]
    fn of_each_task_some_are_chosen_and_they_stay_chosen() {
        let (cats, dogs) = (learned(0..100, "cat"), learned(100..103, "dog"));
        let before = choose(cats.clone());
        assert_eq!(before["cat"].len(), EXAMPLES_PER_TASK);
        let after = choose(dogs.into_iter().chain(cats.into_iter().rev()));
        assert_eq!(after["cat"], before["cat"], "neither their order nor other tasks matter");
        assert_eq!(after["dog"].len(), 3);
        let more = choose(learned(0..101, "cat"));
        let kept = more["cat"].iter().filter(|id| before["cat"].contains(id)).count();
        assert!(kept >= EXAMPLES_PER_TASK - 1, "one newcomer displaces one at the most");
    }

    #[test]
    fn neither_many_tasks_nor_long_examples_make_a_probe_long() {
        let names: Vec<String> = (0..100).map(|number| format!("task {number}")).collect();
        let all: Vec<_> = names.iter().enumerate().map(|(id, name)| (ExampleId(id as u64), name.as_str(), 9)).collect();
        let chosen = choose(all.clone());
        assert_eq!(chosen.len(), TASKS);
        assert!(choose(all[1..].to_vec()).keys().filter(|task| chosen.contains_key(*task)).count() >= TASKS - 1);
        assert!(choose([(ExampleId(1), "long", LONGEST_TOKENS + 1)]).is_empty());
    }
}
