//! The log against a plain model: a list of what was appended and removed, in order.

mod api;
mod compaction;
mod damage;
mod power_cut;

use std::collections::BTreeMap;

use super::{LogConfig, RecoveryReport, ReplayError, ReplayLog};
use crate::example::{Example, ExampleId, mix};
use crate::storage::Medium;
use crate::storage::sim::{SimError, SimFlash};

const DIGEST: [u8; 32] = [0xD1; 32];

fn config(blocks_per_segment: u32) -> LogConfig {
    LogConfig { blocks_per_segment, ..LogConfig::new(DIGEST) }
}

/// An example whose content depends on `seed` only: 3 to 12 tokens, three tasks.
fn example(seed: u64) -> Example {
    let noise = mix(seed ^ 0xE8A3);
    let prompt: Vec<u32> = (0..1 + noise % 5).map(|at| mix(noise ^ at) as u32 % 50_000).collect();
    let answer: Vec<u32> = (0..1 + (noise >> 8) % 5).map(|at| mix(noise ^ at ^ 0x55) as u32).collect();
    let task = ["math", "code", "talk"][(noise >> 16) as usize % 3];
    Example::new(&prompt, &answer, 2, task, 1_700_000_000 + seed).unwrap()
}

/// What a user of the log does.
#[derive(Debug, Clone)]
enum Op {
    Append(Vec<Example>),
    /// Removes the live record at this position, counted modulo the number of live records.
    Remove(usize),
    Reopen,
}

/// What happened to one record id.
#[derive(Debug, Clone, PartialEq)]
enum Event {
    Stored(Example),
    Removed(ExampleId),
}

/// All that was asked of the log, in order, acknowledged or not.
#[derive(Debug, Clone, Default)]
struct Model {
    events: Vec<(ExampleId, Event)>,
    acknowledged: usize,
}

impl Model {
    /// The live records after the first `count` events.
    fn live(&self, count: usize) -> BTreeMap<ExampleId, &Example> {
        let mut live = BTreeMap::new();
        for (id, event) in &self.events[..count] {
            match event {
                Event::Stored(example) => live.insert(*id, example),
                Event::Removed(id) => live.remove(id),
            };
        }
        live
    }

    /// Does `op` to the log and to the model. `Err` is what the log said; the op is then in flight: its events are
    /// there, not acknowledged.
    fn run<M: Medium>(&mut self, log: &mut ReplayLog<M>, op: &Op) -> Result<(), ReplayError<M::Error>> {
        let ids = (log.next_id().0..).map(ExampleId);
        match op {
            Op::Append(batch) => {
                let stored = batch.iter().cloned().map(Event::Stored);
                self.events.extend(ids.clone().zip(stored));
                let expected: Vec<_> = ids.take(batch.len()).collect();
                assert_eq!(log.append(batch)?, expected);
            }
            Op::Remove(position) => {
                let live: Vec<ExampleId> = self.live(self.acknowledged).into_keys().collect();
                if let Some(&id) = live.get(position % live.len().max(1)) {
                    self.events.extend(ids.zip([Event::Removed(id)]));
                    log.remove(id)?;
                }
            }
            Op::Reopen => {}
        }
        self.acknowledged = self.events.len();
        Ok(())
    }

    /// Takes what `log` recovered for the truth, after checking that it is a prefix: with everything acknowledged, or
    /// with what `allows_loss` of it.
    fn check_recovered<M: Medium>(&mut self, log: &mut ReplayLog<M>, allows_loss: bool) {
        let found: Vec<ExampleId> = log.iter().map(|info| info.id).collect();
        let least = if allows_loss { 0 } else { self.acknowledged };
        let count =
            (least..=self.events.len()).rev().find(|&count| self.live(count).into_keys().eq(found.iter().copied()));
        let Some(count) = count else {
            panic!("{found:?} is no prefix of {:?} after {least} events", self.events);
        };
        check_contents(log, &self.live(count));
        if !allows_loss {
            assert_eq!(log.next_id().0, count as u64 + 1);
        }
        self.events.truncate(count);
        self.acknowledged = count;
    }
}

/// The log holds exactly `live`, whichever way it is asked.
fn check_contents<M: Medium>(log: &mut ReplayLog<M>, live: &BTreeMap<ExampleId, &Example>) {
    let listed: Vec<(ExampleId, String, u32)> =
        log.iter().map(|info| (info.id, info.task.to_string(), info.tokens)).collect();
    let expected: Vec<(ExampleId, String, u32)> =
        live.iter().map(|(&id, e)| (id, e.task().to_string(), e.tokens().len() as u32)).collect();
    assert_eq!(listed, expected);
    assert_eq!(log.len(), live.len());
    assert_eq!(log.tokens(), live.values().map(|e| e.tokens().len() as u64).sum::<u64>());
    assert_eq!(log.tasks().map(|count| count.records).sum::<u64>(), live.len() as u64);
    for (&id, &example) in live {
        assert_eq!(&log.read(id).unwrap(), example);
        let lowest = live.iter().find(|(_, other)| other.key() == example.key()).map(|(&id, _)| id);
        assert_eq!(log.contains(example.key()).unwrap(), lowest);
    }
}

fn open<const W: usize, const B: usize>(
    flash: SimFlash<W, B>,
    blocks_per_segment: u32,
) -> (ReplayLog<SimFlash<W, B>>, RecoveryReport) {
    ReplayLog::open(flash, &config(blocks_per_segment)).unwrap()
}

/// Appends of one to four examples, removals and reopenings, as drawn from `seed`.
fn script(seed: u64, ops: usize) -> Vec<Op> {
    let mut next = seed << 20;
    (0..ops as u64)
        .map(|at| match mix(seed ^ mix(at)) % 8 {
            0 => Op::Reopen,
            1 => Op::Remove(mix(seed ^ at) as usize % 1000),
            noise => {
                let batch = (0..1 + noise % 4).map(|nth| example(next + nth)).collect();
                next += 4;
                Op::Append(batch)
            }
        })
        .collect()
}

fn is_power_cut(error: &ReplayError<SimError>) -> bool {
    use ReplayError::{Medium, WriteFailed};
    matches!(
        error,
        Medium { source, .. } | WriteFailed { source, .. } if *source == SimError::PowerCut
    )
}
