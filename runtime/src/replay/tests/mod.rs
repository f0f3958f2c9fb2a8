//! The log against a plain model: a list of what was appended and removed, in order.

mod api;
mod compaction;
mod damage;
mod power_cut;

use std::collections::{BTreeMap, BTreeSet};

use super::{Compact, LogConfig, RecoveryReport, ReplayError, ReplayLog, Seal};
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
    Stage(Vec<Example>),
    Flush,
    /// Removes the live record at this position, counted modulo the number of live records.
    Remove(usize),
    /// As `Remove`, and erases every byte of it.
    Forget(usize),
    CompactWasteful,
    CompactAll,
    Reopen,
}

/// What happened to one record id.
#[derive(Debug, Clone, PartialEq)]
enum Event {
    Stored(ExampleId, Example),
    Removed(ExampleId),
}

/// All that was asked of the log, in order, acknowledged or not.
#[derive(Debug, Clone, Default)]
struct Model {
    events: Vec<Event>,
    acknowledged: usize,
    /// Records whose removal was asked for and lost: a copy without them may be what is left of them.
    lost_removals: BTreeSet<ExampleId>,
}

/// What is asked of the medium's sync.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Sync {
    Honest,
    /// It lies, so that acknowledged events may be lost, the last ones first.
    Lies,
    /// It lies, and segments were compacted: records whose removal was lost may be gone all the same.
    LiesToCompaction,
}

impl Model {
    /// The live records after the first `count` events.
    fn live(&self, count: usize) -> BTreeMap<ExampleId, &Example> {
        let mut live = BTreeMap::new();
        for event in &self.events[..count] {
            match event {
                Event::Stored(id, example) => live.insert(*id, example),
                Event::Removed(id) => live.remove(id),
            };
        }
        live
    }

    /// Does `op` to the log and to the model. `Err` is what the log said; the op is then in flight: its events are
    /// there, not acknowledged. An op for which there is no room leaves no events.
    fn run<M: Medium>(&mut self, log: &mut ReplayLog<M>, op: &Op) -> Result<(), ReplayError<M::Error>> {
        let before = self.events.len();
        match self.try_run(log, op) {
            Err(ReplayError::Full { .. }) => self.events.truncate(before.max(self.acknowledged)),
            Err(error) => return Err(error),
            Ok(()) => {}
        }
        // What is staged is at the end.
        let is_staged = |event: &&Event| matches!(event, Event::Stored(id, _) if id.0 >= log.next_id);
        self.acknowledged = self.events.len() - self.events.iter().rev().take_while(is_staged).count();
        Ok(())
    }

    fn try_run<M: Medium>(&mut self, log: &mut ReplayLog<M>, op: &Op) -> Result<(), ReplayError<M::Error>> {
        let ids = (log.next_id().0..).map(ExampleId);
        match op {
            Op::Append(batch) => {
                self.events.extend(ids.clone().zip(batch).map(|(id, example)| Event::Stored(id, example.clone())));
                let expected: Vec<_> = ids.take(batch.len()).collect();
                assert_eq!(log.append(batch)?, expected);
            }
            Op::Stage(batch) => {
                for (id, example) in ids.zip(batch) {
                    self.events.push(Event::Stored(id, example.clone()));
                    match log.stage(example) {
                        Ok(staged) => assert_eq!(staged, id),
                        Err(error) => {
                            if matches!(error, ReplayError::Full { .. }) {
                                self.events.pop();
                            }
                            return Err(error);
                        }
                    }
                }
            }
            Op::Flush => log.flush()?,
            Op::Remove(position) => _ = self.remove(log, *position)?,
            Op::Forget(position) => {
                if let Some(id) = self.remove(log, *position)? {
                    log.compact(Compact::Holding(&[id]))?;
                }
            }
            Op::CompactWasteful => _ = log.compact(Compact::Wasteful)?,
            Op::CompactAll => _ = log.compact(Compact::All)?,
            Op::Reopen => {}
        }
        Ok(())
    }

    fn remove<M: Medium>(
        &mut self,
        log: &mut ReplayLog<M>,
        position: usize,
    ) -> Result<Option<ExampleId>, ReplayError<M::Error>> {
        let live: Vec<ExampleId> = self.live(self.acknowledged).into_keys().collect();
        let Some(&id) = live.get(position % live.len().max(1)) else {
            return Ok(None);
        };
        // A full log removes by compaction, before what is staged: that would be another order.
        log.flush()?;
        self.acknowledged = self.events.len();
        self.events.push(Event::Removed(id));
        log.remove(id)?;
        self.acknowledged = self.events.len();
        Ok(Some(id))
    }

    /// Takes what `log` recovered for the truth, after checking that it is a prefix, with everything acknowledged or with
    /// what `sync` allows to be lost of it, and that no id in that prefix would be given out again.
    ///
    /// Several prefixes may leave the same records, if some were stored and removed at once: any of them will do.
    fn check_recovered<M: Medium>(&mut self, log: &mut ReplayLog<M>, sync: Sync) {
        let found: Vec<ExampleId> = log.iter().map(|info| info.id).collect();
        let least = if sync == Sync::Honest { self.acknowledged } else { 0 };
        let is_state_after = |count: &usize| {
            let live = self.live(*count);
            let is_gone = |id: &ExampleId| found.binary_search(id).is_err();
            let is_removed = |id: &ExampleId| self.events[*count..].contains(&Event::Removed(*id));
            let was_removed = |id: &ExampleId| is_removed(id) || self.lost_removals.contains(id);
            let allowed = |id: &ExampleId| sync == Sync::LiesToCompaction && was_removed(id);
            let is_given = |event: &Event| !matches!(event, Event::Stored(id, _) if *id >= log.next_id());
            self.events[..*count].iter().all(is_given)
                && found.iter().all(|id| live.contains_key(id))
                && live.keys().all(|id| !is_gone(id) || allowed(id))
        };
        let Some(count) = (least..=self.events.len()).rev().find(is_state_after) else {
            let live = self.live(self.events.len());
            let missing: Vec<_> = live.keys().filter(|id| !found.contains(id)).collect();
            let unknown: Vec<_> = found.iter().filter(|id| !live.contains_key(id)).collect();
            let ids = (self.events.len(), self.acknowledged, log.next_id());
            panic!("no prefix: {missing:?} missing, {unknown:?} too many, events, acknowledged and next id {ids:?}");
        };
        let removed: Vec<ExampleId> = self.live(count).into_keys().filter(|id| !found.contains(id)).collect();
        let lost = self.events[count..].iter();
        self.lost_removals.extend(lost.filter_map(|event| match event {
            Event::Removed(id) => Some(*id),
            Event::Stored(..) => None,
        }));
        // Ids from here on are given out again, for other records.
        self.lost_removals.retain(|id| *id < log.next_id());
        self.events.truncate(count);
        self.events.extend(removed.into_iter().map(Event::Removed));
        self.acknowledged = self.events.len();
        check_contents(log, &self.live(self.acknowledged));
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

/// As [`script`], with all that a log can be asked.
fn full_script(seed: u64, ops: usize) -> Vec<Op> {
    let mut next = seed << 20;
    let mut batch = |count: u64| {
        next += count;
        (next - count..next).map(example).collect()
    };
    (0..ops as u64)
        .map(|at| match mix(seed ^ mix(at)) % 16 {
            0 => Op::Reopen,
            1..=3 => Op::Remove(mix(seed ^ at) as usize % 1000),
            4 => Op::Forget(mix(seed ^ at) as usize % 1000),
            5 => Op::CompactWasteful,
            6 => Op::CompactAll,
            7 => Op::Flush,
            8..=9 => Op::Stage(batch(2)),
            noise => Op::Append(batch(1 + noise % 4)),
        })
        .collect()
}

/// Opens with a key, and with entropy that was not used before.
fn sealed_config(blocks_per_segment: u32, opening: u64) -> LogConfig {
    let mut entropy = [0; 24];
    for (at, bytes) in entropy.chunks_mut(8).enumerate() {
        bytes.copy_from_slice(&mix(opening ^ mix(at as u64)).to_le_bytes());
    }
    LogConfig { seal: Some(Seal::new([0x5E; 32], entropy)), ..config(blocks_per_segment) }
}

/// Seeds from `MYNAH_SEED` alone if it is set, to see a failure again; else from `seeds`.
fn seeds(seeds: core::ops::Range<u64>) -> core::ops::Range<u64> {
    let asked = std::env::var("MYNAH_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    asked.map_or(seeds, |seed| seed..seed + 1)
}

fn is_power_cut(error: &ReplayError<SimError>) -> bool {
    use ReplayError::{Medium, WriteFailed};
    matches!(
        error,
        Medium { source, .. } | WriteFailed { source, .. } if *source == SimError::PowerCut
    )
}
