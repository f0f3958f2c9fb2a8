//! Distributions against exact expectations, and each policy against a plain model of it.

use alloc::collections::BTreeSet;
use core::cell::Cell;

use super::surprise::places;
use super::*;

const BALANCED: Policy = Policy::BalancedReservoir { floor: 0 };
const SURPRISE: Policy = Policy::Surprise { random_percent: 50 };
const ALL: [Policy; 6] = [
    Policy::Reservoir,
    BALANCED,
    Policy::BalancedReservoir { floor: 3 },
    Policy::Ring,
    SURPRISE,
    Policy::Surprise { random_percent: 20 },
];

fn stream(tasks: &[(&'static str, u64)]) -> Vec<Newcomer<'static>> {
    let tasks = tasks.iter().flat_map(|&(task, count)| core::iter::repeat_n(task, count as usize));
    let newcomer = |(id, task)| Newcomer { id: ExampleId(id), task, nll: nll_of(id) };
    (1..).zip(tasks).map(newcomer).collect()
}

/// Scores from 0 to 6 nats that look random, and an outlier now and then.
fn nll_of(id: u64) -> f32 {
    let bits = mix(id);
    if bits.is_multiple_of(40) { 50.0 } else { (bits % 6000) as f32 / 1000.0 }
}

/// Pearson's statistic of `counts` against equal expectation.
fn chi_square(counts: &[u64]) -> f64 {
    let expected = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
    let deviation = |&count: &u64| (count as f64 - expected).powi(2) / expected;
    counts.iter().map(deviation).sum()
}

fn held(memory: &Memory) -> BTreeSet<u64> {
    memory.ids().map(|id| id.0).collect()
}

fn none(_: ExampleId) -> bool {
    false
}

#[test]
fn each_example_is_held_as_often_as_any_other() {
    let examples = stream(&[("a", 100)]);
    let mut counts = [0; 100];
    for seed in 0..20_000 {
        let memory = Memory::rebuild(Policy::Reservoir, 10, seed, examples.iter().copied());
        assert_eq!(memory.len(), 10);
        memory.ids().for_each(|id| counts[id.0 as usize - 1] += 1);
    }
    // 99 degrees of freedom: 134.6 is exceeded once in a hundred; seeds are fixed.
    assert!(chi_square(&counts) < 134.6, "{}", chi_square(&counts));
}

#[test]
fn within_a_task_the_balanced_memory_is_uniform_too() {
    let examples = stream(&[("a", 30), ("b", 10), ("a", 30)]);
    let mut counts = [0; 70];
    for seed in 0..20_000 {
        let memory = Memory::rebuild(BALANCED, 12, seed, examples.iter().copied());
        memory.ids().for_each(|id| counts[id.0 as usize - 1] += 1);
    }
    let of_a: Vec<u64> = counts[..30].iter().chain(&counts[40..]).copied().collect();
    // 59 and 9 degrees of freedom at one in a hundred.
    assert!(chi_square(&of_a) < 87.2, "{}", chi_square(&of_a));
    assert!(chi_square(&counts[30..40]) < 21.7, "{}", chi_square(&counts[30..40]));
}

#[test]
fn the_random_places_are_a_uniform_sample_of_what_has_no_surprising_place() {
    // Too few for anything to be clipped; the last four are the most surprising.
    let newcomer = |id: u64| Newcomer { id: ExampleId(id), task: "a", nll: id as f32 / 4.0 };
    let mut counts = [0; 15];
    for seed in 0..20_000 {
        let memory = Memory::rebuild(SURPRISE, 8, seed, (1..=19).map(newcomer));
        let held = held(&memory);
        assert!(held.range(16..).eq(&[16, 17, 18, 19]), "{held:?}");
        held.range(..16).for_each(|id| counts[*id as usize - 1] += 1);
    }
    assert_eq!(counts.iter().sum::<u64>(), 4 * 20_000);
    // 14 degrees of freedom at one in a hundred.
    assert!(chi_square(&counts) < 29.1, "{}", chi_square(&counts));
}

#[test]
fn outliers_count_as_the_percentile_and_do_not_fill_the_memory() {
    // One in fifty is garbled and as surprising as can be; the hardest of the sound ones are 111.
    let nll = |id: u64| if id.is_multiple_of(50) { 90.0 } else { 0.5 + (id % 9) as f32 / 4.0 };
    let examples = (1..=1000).map(|id| Newcomer { id: ExampleId(id), task: "a", nll: nll(id) });
    let memory = Memory::rebuild(Policy::Surprise { random_percent: 0 }, 60, 3, examples);
    let garbled = held(&memory).iter().filter(|id| id.is_multiple_of(50)).count();
    assert!((1..=16).contains(&garbled), "{garbled} of the 20 garbled ones, where chance alone gives nine");
    assert!(held(&memory).iter().all(|id| id.is_multiple_of(50) || id % 9 == 8));
}

#[test]
fn draws_are_even_different_and_repeatable() {
    for policy in ALL {
        let memory = Memory::rebuild(policy, 20, 1, stream(&[("a", 20)]));
        let is_excluded = |id: ExampleId| id.0 == 3 || id.0 == 4;
        let mut drawn = [0; 20];
        for step in 0..20_000 {
            let draw = memory.draw(5, 7, step, is_excluded);
            assert_eq!(draw, memory.draw(5, 7, step, is_excluded));
            assert_eq!(draw.iter().collect::<BTreeSet<_>>().len(), 5);
            draw.iter().for_each(|id| drawn[id.0 as usize - 1] += 1);
        }
        assert_eq!((drawn[2], drawn[3]), (0, 0));
        let allowed: Vec<u64> = drawn.iter().copied().filter(|&count| count > 0).collect();
        // 17 degrees of freedom at one in a hundred.
        assert_eq!(allowed.len(), 18);
        assert!(chi_square(&allowed) < 33.4, "{policy:?}: {}", chi_square(&allowed));
        let all: BTreeSet<ExampleId> = memory.draw(50, 7, 0, is_excluded).into_iter().collect();
        assert_eq!(all.len(), 18, "no more than there are");
    }
}

#[test]
fn a_draw_looks_at_as_many_examples_of_a_large_memory_as_of_a_small_one() {
    for size in [1000, 1_000_000] {
        let memory = Memory::rebuild(Policy::Reservoir, size, 1, stream(&[("a", u64::from(size))]));
        let asked = Cell::new(0);
        for step in 0..100 {
            memory.draw(16, 5, step, |_| {
                asked.set(asked.get() + 1);
                false
            });
        }
        assert_eq!(asked.get(), 1600);
    }
}

/// `cargo test --release -p mynah --no-default-features --lib -- --ignored --nocapture time_of`
#[test]
#[ignore = "measures, and decides nothing"]
fn time_of_draws_and_inserts() {
    extern crate std;
    use std::time::Instant;
    for policy in ALL {
        for size in [1000_u32, 1_000_000] {
            let examples = stream(&[("a", u64::from(size)), ("b", u64::from(size) / 2)]);
            let start = Instant::now();
            let memory = Memory::rebuild(policy, size, 1, examples.iter().copied());
            let insert = start.elapsed() / examples.len() as u32;
            let best = (0..200).map(|step| {
                let start = Instant::now();
                (0..50).for_each(|k| drop(core::hint::black_box(memory.draw(16, 5, 50 * step + k, none))));
                start.elapsed() / 50
            });
            std::eprintln!("{policy:?}, {size} held: insert {insert:?}, draw of 16 {:?}", best.min().unwrap());
        }
    }
}

#[test]
fn built_in_one_go_or_resumed_after_any_prefix_is_the_same_memory() {
    let examples = stream(&[("a", 40), ("b", 5), ("a", 10), ("c", 30)]);
    for policy in ALL {
        let whole = Memory::rebuild(policy, 9, 5, examples.iter().copied());
        for cut in 0..examples.len() {
            let memory = Memory::rebuild(policy, 9, 5, examples[..cut].iter().copied());
            let mut buffer = [0; 2048];
            let stored = postcard::to_slice(&memory, &mut buffer).unwrap();
            let mut memory: Memory = postcard::from_bytes(stored).unwrap();
            for &newcomer in &examples[cut..] {
                memory.insert(newcomer, 5);
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
        memory.insert(Newcomer { id: ExampleId(id), task: "a", nll: 0.0 }, 1);
    }
    assert!(memory.contains(ExampleId(id)));
    for policy in ALL {
        let mut memory = Memory::rebuild(policy, 7, 1, stream(&[("a", 12), ("b", 9)]));
        let before = memory.clone();
        assert_eq!((memory.retain(|_| true), &memory), (0, &before), "what removes nothing changes nothing");
        let mut none_held = Memory::new(policy, 0);
        assert_eq!(none_held.insert(Newcomer { id: ExampleId(1), task: "a", nll: 1.0 }, 1), Insertion::Skipped);
        assert!(none_held.draw(3, 0, 0, none).is_empty());
    }
}

/// What a memory would be if nothing had to be fast: a list that is searched from end to end.
#[derive(Default)]
struct Model {
    held: Vec<(Newcomer<'static>, u32)>,
    largest_once: BTreeSet<&'static str>,
}

impl Model {
    fn of_task(&self, task: &str) -> usize {
        self.held.iter().filter(|(held, _)| held.task == task).count()
    }

    fn drop_highest_of(&mut self, task: &str) {
        let of_task = self.held.iter().filter(|(held, _)| held.task == task);
        let (worst, _) = of_task.max_by_key(|(held, key)| (*key, held.id)).copied().unwrap();
        self.held.retain(|(held, _)| held.id != worst.id);
    }

    fn insert_newest(&mut self, newcomer: Newcomer<'static>, capacity: usize) {
        if self.held.len() == capacity {
            self.held.remove(0);
        }
        self.held.push((newcomer, 0));
    }

    /// `order` are the tasks as they first came.
    fn insert_balanced(
        &mut self,
        newcomer: Newcomer<'static>,
        key: u32,
        capacity: usize,
        floor: usize,
        order: &[&'static str],
    ) {
        if self.held.len() < capacity {
            self.held.push((newcomer, key));
            return;
        }
        let most = order.iter().map(|task| self.of_task(task)).max().unwrap();
        let largest = *order.iter().rfind(|task| self.of_task(task) == most).unwrap();
        self.largest_once.insert(largest);
        if self.of_task(newcomer.task) == most {
            self.largest_once.insert(newcomer.task);
        }
        if !self.largest_once.contains(newcomer.task) && most > floor {
            self.drop_highest_of(largest);
            self.held.push((newcomer, key));
        } else if self.of_task(newcomer.task) > 0 {
            self.held.push((newcomer, key));
            self.drop_highest_of(newcomer.task);
        }
    }
}

#[test]
fn ring_and_balanced_memories_follow_a_plain_list() {
    let tasks = ["a", "b", "c", "d", "e"];
    for seed in 0..300 {
        for (policy, floor) in [(Policy::Ring, 0), (BALANCED, 0), (Policy::BalancedReservoir { floor: 3 }, 3)] {
            let capacity = 1 + below(12, seed, 0, Purpose::Draw) as u32;
            let (mut memory, mut model) = (Memory::new(policy, capacity), Model::default());
            let mut order = Vec::new();
            for nth in 0..80_u64 {
                let random = mix(seed * 1000 + nth);
                if random.is_multiple_of(9) && !model.held.is_empty() {
                    let at = (random >> 8) as usize % model.held.len();
                    let (gone, _) = model.held.remove(at);
                    assert!(memory.remove(gone.id));
                    continue;
                }
                // Task by task at first, then mixed.
                let task = tasks[if nth < 40 { nth as usize / 10 } else { (random >> 20) as usize % 5 }];
                if !order.contains(&task) {
                    order.push(task);
                }
                let newcomer = Newcomer { id: ExampleId(nth + 1), task, nll: 0.0 };
                let key = (bits(seed, memory.seen(), Purpose::Accept) >> 32) as u32;
                memory.insert(newcomer, seed);
                match policy {
                    Policy::Ring => model.insert_newest(newcomer, capacity as usize),
                    _ => model.insert_balanced(newcomer, key, capacity as usize, floor, &order),
                }
                let expected: BTreeSet<u64> = model.held.iter().map(|(held, _)| held.id.0).collect();
                assert_eq!(held(&memory), expected, "{policy:?}, seed {seed}, insert {nth}");
                assert!(memory.tasks().all(|(task, held)| model.of_task(task) == held as usize));
            }
        }
    }
}

#[test]
fn the_surprising_places_hold_the_highest_scores_of_all_that_was_seen() {
    for seed in 0..200 {
        let capacity = 2 + below(12, seed, 0, Purpose::Draw) as u32;
        let (surprising, random) = places(capacity, 50);
        let mut memory = Memory::new(SURPRISE, capacity);
        let (mut seen, mut clipped) = (Vec::new(), Vec::new());
        for id in 1..=60 {
            let nll = nll_of(mix(seed) ^ id);
            seen.push(nll);
            seen.sort_by(f32::total_cmp);
            let percentile = seen[(seen.len() * 95).div_ceil(100) - 1];
            let highest = if id < 20 { nll } else { nll.min((percentile * 16.0).floor().min(255.0) / 16.0) };
            clipped.push(((highest * 1024.0) as u32, id));
            let outcome = memory.insert(Newcomer { id: ExampleId(id), task: "a", nll }, seed);
            let held = held(&memory);
            assert_eq!(held.len(), (id as usize).min((surprising + random) as usize));
            assert_eq!(outcome == Insertion::Skipped, !held.contains(&id));
            clipped.sort_by_key(|(score, _)| core::cmp::Reverse(*score));
            let (least, _) = clipped[(surprising as usize).min(clipped.len()) - 1];
            let above = clipped.iter().take_while(|(score, _)| *score > least);
            assert!(above.clone().all(|(_, id)| held.contains(id)), "seed {seed}, {id}: {clipped:?}, {held:?}");
        }
    }
}

#[test]
fn a_stored_memory_that_contradicts_itself_is_refused() {
    for policy in ALL {
        let memory = Memory::rebuild(policy, 9, 5, stream(&[("a", 20), ("b", 5)]));
        let mut buffer = [0; 2048];
        let stored = postcard::to_slice(&memory, &mut buffer).unwrap().to_vec();
        for at in 0..stored.len() {
            for byte in 0..=255 {
                let mut changed = stored.clone();
                changed[at] = byte;
                let Ok(mut memory) = postcard::from_bytes::<Memory>(&changed) else { continue };
                // What was let in can be used.
                memory.draw(4, 1, 1, none);
                memory.insert(Newcomer { id: ExampleId(1000), task: "c", nll: 2.0 }, 1);
                memory.retain(|id| id.0 % 2 == 0);
            }
        }
    }
}

#[test]
fn a_memory_of_version_1_goes_on_with_keys_of_its_own() {
    // Policy, capacity 4, seen 9, slots (id, task), tasks (name, seen, held, was_largest).
    let slots = [(1_u64, 0_u32), (7, 0), (8, 1), (9, 1)];
    let tasks = [("a", 7_u64, 2_u32, true), ("b", 2, 2, false)];
    for policy in [Policy::Reservoir, BALANCED] {
        let mut buffer = [0; 256];
        let stored = postcard::to_slice(&(policy, 4_u32, 9_u64, &slots[..], &tasks[..]), &mut buffer).unwrap();
        let old: MemoryV1 = postcard::from_bytes(stored).unwrap();
        let mut memory = Memory::try_from(old).unwrap();
        assert_eq!(memory.ids().map(|id| id.0).collect::<Vec<_>>(), [1, 7, 8, 9]);
        assert_eq!(memory.tasks().collect::<Vec<_>>(), [("a", 2), ("b", 2)]);
        let mut kept = 0;
        for id in 10..40 {
            kept +=
                u32::from(memory.insert(Newcomer { id: ExampleId(id), task: "a", nll: 0.0 }, 1) != Insertion::Skipped);
        }
        // Two places of a task that has seen 37 change hands about 2 ln(37/7) times, four of all about 4 ln(39/9).
        assert!((1..=14).contains(&kept), "{policy:?}: {kept}");
    }
    let mut buffer = [0; 256];
    let ring = postcard::to_slice(&(Policy::Ring, 4_u32, 0_u64, &slots[..0], &tasks[..0]), &mut buffer).unwrap();
    assert!(Memory::try_from(postcard::from_bytes::<MemoryV1>(ring).unwrap()).is_err());
}
