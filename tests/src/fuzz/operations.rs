//! Any sequence of operations and power cuts, against a list in memory.

use std::collections::BTreeMap;

use mynah::example::{Example, ExampleId};
use mynah::replay::{Compact, LogConfig, ReplayLog};
use mynah::storage::sim::{SimFlash, Tear};

use super::TOKENIZER;

const BLOCK_BYTES: usize = 1024;
const BLOCKS: usize = 5;
type Flash = SimFlash<8, BLOCK_BYTES>;
type Live = BTreeMap<ExampleId, Example>;

/// Takes three bytes per operation: which one, and two operands.
///
/// # Panics
/// If the log ever differs from a list of what was acknowledged: after a cut it may hold the operation in hand or not.
pub fn operations(data: &[u8]) {
    let mut log = open(Flash::new(BLOCKS));
    let mut live = Live::new();
    for (at, operation) in data.chunks_exact(3).enumerate() {
        let [kind, a, b] = [operation[0], operation[1], operation[2]];
        // Every other operation runs with a cut somewhere ahead of it.
        if kind & 0x80 != 0 {
            let mut flash = log.into_medium();
            flash.cut_after(u64::from(u16::from_le_bytes([a, b])) % 700, tear(a));
            log = open(flash);
        }
        let mut after = live.clone();
        let is_done = match kind % 8 {
            0..=3 => append(&mut log, &mut after, at as u32, a, b),
            4 | 5 => remove(&mut log, &mut after, a, b),
            6 => stage(&mut log, &mut after, at as u32, a),
            _ => compact(&mut log, a),
        };
        if is_done {
            live = after.clone();
        }
        let mut flash = log.into_medium();
        flash.power_on();
        log = open(flash);
        let found = contents(&mut log);
        assert!(found == live || found == after, "operation {at}: {found:?}, expected {live:?} or {after:?}");
        live = found;
    }
}

fn open(flash: Flash) -> ReplayLog<Flash> {
    ReplayLog::open(flash, &LogConfig::new(TOKENIZER)).expect("what this log wrote can be opened").0
}

fn tear(byte: u8) -> Tear {
    if byte & 1 == 0 { Tear::InOrder } else { Tear::Scattered(byte.into()) }
}

fn contents(log: &mut ReplayLog<Flash>) -> Live {
    let ids: Vec<ExampleId> = log.iter().map(|info| info.id).collect();
    ids.into_iter().map(|id| (id, log.read(id).expect("a listed record"))).collect()
}

fn example(at: u32, number: u32, a: u8, b: u8) -> Example {
    let prompt: Vec<u32> = (0..1 + u32::from(b % 40)).map(|token| (token * token) ^ at).collect();
    let task = ["one", "two", "three"][usize::from(a % 3)];
    Example::new(&prompt, &[number, at], 0, task, at.into()).expect("within all limits")
}

/// Appends up to four examples; `after` is what the log holds if that is done.
fn append(log: &mut ReplayLog<Flash>, after: &mut Live, at: u32, a: u8, b: u8) -> bool {
    let examples: Vec<Example> = (0..=u32::from(a % 4)).map(|number| example(at, number, a, b)).collect();
    let first = log.next_id().0;
    let ids = (first..).map(ExampleId).take(examples.len());
    after.extend(ids.zip(examples.iter().cloned()));
    log.append(&examples).is_ok()
}

/// Removes one or two records that are there.
fn remove(log: &mut ReplayLog<Flash>, after: &mut Live, a: u8, b: u8) -> bool {
    let mut ids: Vec<ExampleId> =
        [a, b].iter().filter_map(|&at| after.keys().nth(usize::from(at) % after.len().max(1))).copied().collect();
    ids.dedup();
    ids.iter().for_each(|id| drop(after.remove(id)));
    log.remove_all(&ids).is_ok()
}

/// Stages an example and flushes it.
fn stage(log: &mut ReplayLog<Flash>, after: &mut Live, at: u32, a: u8) -> bool {
    let staged = example(at, 9, a, a);
    let Ok(id) = log.stage(&staged) else { return false };
    after.insert(id, staged);
    log.flush().is_ok()
}

/// Copies live records out of segments and erases those; whatever a cut leaves, the records are the same.
fn compact(log: &mut ReplayLog<Flash>, a: u8) -> bool {
    let removed: Vec<ExampleId> = (1..log.next_id().0).map(ExampleId).filter(|&id| log.info(id).is_none()).collect();
    let what = match a % 3 {
        0 => Compact::All,
        1 => Compact::Wasteful,
        _ => Compact::Holding(&removed),
    };
    log.compact(what).is_ok()
}
