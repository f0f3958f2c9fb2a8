//! Compaction: what is live stays, what is removed goes, and places wear evenly.

use super::*;
use crate::replay::{Compact, DropReason, Dropped, Eviction, Seal, SegmentState};
use crate::storage::sim::Tear;

/// A log of `count` examples in batches of `batch`, of which all but every `kept`th are removed.
fn with_removals(
    blocks: usize,
    count: u64,
    batch: u64,
    kept: u64,
) -> (ReplayLog<SimFlash<8, 512>>, BTreeMap<ExampleId, Example>) {
    let (mut log, _) = open(SimFlash::<8, 512>::new(blocks), 1);
    let mut live = BTreeMap::new();
    for first in (0..count).step_by(batch as usize) {
        let examples: Vec<Example> = (first..first + batch).map(example).collect();
        let ids = log.append(&examples).unwrap();
        live.extend(ids.into_iter().zip(examples));
    }
    let removed: Vec<ExampleId> = live.keys().copied().filter(|id| id.0 % kept != 0).collect();
    for ids in removed.chunks(10) {
        log.remove_all(ids).unwrap();
    }
    live.retain(|id, _| !removed.contains(id));
    (log, live)
}

fn check(log: &mut ReplayLog<SimFlash<8, 512>>, live: &BTreeMap<ExampleId, Example>) {
    check_contents(log, &live.iter().map(|(&id, example)| (id, example)).collect());
    let report = log.verify().unwrap();
    assert!(report.problems.is_empty() && report.missing.is_empty(), "{report:?}");
}

#[test]
fn live_records_keep_their_ids_and_the_rest_gives_its_room_back() {
    for what in [Compact::All, Compact::Wasteful] {
        let (mut log, live) = with_removals(40, 120, 4, 5);
        let report = log.compact(what).unwrap();
        assert!(report.segments_freed > report.segments_written && report.bytes_after < report.bytes_before / 2);
        check(&mut log, &live);
        let next = log.next_id();
        assert_eq!(log.append(&[example(5000)]).unwrap(), [next]);
        let (mut log, report) = open(log.into_medium(), 1);
        assert!(report.dropped.is_empty(), "{report:?}");
        let mut live = live;
        live.insert(next, example(5000));
        check(&mut log, &live);
        // Once more, from what compaction wrote.
        log.compact(what).unwrap();
        log.compact(Compact::All).unwrap();
        let (mut log, _) = open(log.into_medium(), 1);
        check(&mut log, &live);
    }
}

#[test]
fn a_full_log_makes_room_for_as_long_as_records_are_removed() {
    // Fewer under Miri, which is a thousand times slower.
    const APPENDS: u64 = if cfg!(miri) { 60 } else { 2000 };
    let (mut log, _) = open(SimFlash::<8, 512>::new(8), 1);
    let mut live = BTreeMap::new();
    for nth in 0..APPENDS {
        let id = log.append(&[example(nth)]).unwrap()[0];
        live.insert(id, example(nth));
        if live.len() > 15 {
            let victim = *live.keys().nth(mix(nth) as usize % live.len()).unwrap();
            log.remove(victim).unwrap();
            live.remove(&victim);
        }
        if nth % 100 == 0 {
            log = open(log.into_medium(), 1).0;
            check(&mut log, &live);
        }
    }
    check(&mut log, &live);
    let (mut log, _) = open(log.into_medium(), 1);
    check(&mut log, &live);
}

#[test]
fn a_full_log_of_live_records_refuses_more_and_can_still_remove() {
    let (mut log, _) = open(SimFlash::<8, 512>::new(5), 1);
    let mut live = BTreeMap::new();
    let refused = loop {
        let nth = live.len() as u64;
        match log.append(&[example(nth)]) {
            Ok(ids) => _ = live.insert(ids[0], example(nth)),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, ReplayError::Full { .. }), "{refused}");
    check(&mut log, &live);
    while let Some((&id, _)) = live.iter().nth(live.len() / 2) {
        log.remove(id).unwrap();
        live.remove(&id);
        check(&mut log, &live);
    }
    for nth in 0..5 {
        live.insert(log.append(&[example(nth)]).unwrap()[0], example(nth));
    }
    let (mut log, _) = open(log.into_medium(), 1);
    check(&mut log, &live);
}

#[test]
#[cfg_attr(miri, ignore = "takes hours under Miri")]
fn eviction_drops_what_its_rule_names_and_never_comes_back() {
    for rule in [Eviction::Oldest, Eviction::LowestScore] {
        let config = LogConfig { eviction: Some(rule), quota_bytes: Some(8 * 512), ..config(1) };
        let (mut log, _) = ReplayLog::open(SimFlash::<8, 512>::new(12), &config).unwrap();
        let score = |id: u64| (mix(id) % 97) as f32;
        for nth in 0..1000_u64 {
            let id = log.append_scored(&[(&example(nth), score(nth + 1))]).unwrap()[0];
            assert_eq!(id, ExampleId(nth + 1));
        }
        let used = log.segments().filter(|segment| segment.state == SegmentState::Used).count();
        assert!(used <= 8 && log.len() > 20, "{used} segments, {} records", log.len());
        let kept: Vec<ExampleId> = log.iter().map(|info| info.id).collect();
        let mean = log.iter().map(|info| info.score.unwrap()).sum::<f32>() / kept.len() as f32;
        match rule {
            Eviction::Oldest => assert!(kept.iter().map(|id| id.0).eq(1001 - kept.len() as u64..=1000)),
            Eviction::LowestScore => assert!(mean > 80.0, "{mean}"),
        }
        let (mut log, _) = ReplayLog::open(log.into_medium(), &config).unwrap();
        assert!(log.iter().map(|info| info.id).eq(kept.iter().copied()));
        for id in kept {
            assert_eq!(log.read(id).unwrap(), example(id.0 - 1));
        }
    }
}

#[test]
fn no_byte_of_a_forgotten_record_stays() {
    // Ids that no table and no other record has, so that plain bytes of it can be searched for in the uncoded sense:
    // the frame that held it must be gone, wherever copies of it are.
    let (mut log, mut live) = with_removals(60, 120, 4, 1);
    log.compact(Compact::All).unwrap();
    let secret = ExampleId(50);
    log.remove(secret).unwrap();
    live.remove(&secret);
    log.compact(Compact::Holding(&[secret])).unwrap();
    check(&mut log, &live);
    let segments = log.segments.clone();
    for segment in segments {
        assert!(!log.ids_in(&segment).unwrap().contains(&secret.0));
    }
    let used: Vec<u32> = log.segments.iter().map(|segment| segment.slot).collect();
    for (slot, bytes) in log.medium().image().chunks(512).enumerate() {
        assert!(used.contains(&(slot as u32)) || bytes[..504].iter().all(|&byte| byte == 0xFF), "slot {slot}");
    }
    let (mut log, _) = open(log.into_medium(), 1);
    check(&mut log, &live);
}

#[test]
fn replays_are_counted_and_written_with_the_next_copy() {
    let (mut log, live) = with_removals(40, 120, 4, 5);
    let ids: Vec<ExampleId> = live.keys().copied().collect();
    let (often, once, never) = (ids[0], ids[1], ids[2]);
    let counts = |log: &mut ReplayLog<SimFlash<8, 512>>| [often, once, never].map(|id| log.replays(id).unwrap());
    log.count_replays(&[often, once]);
    log.count_replays(&[often, ExampleId(u64::MAX)]);
    assert_eq!(counts(&mut log), [2, 1, 0]);
    log.compact(Compact::All).unwrap();
    assert_eq!(counts(&mut log), [2, 1, 0], "each is counted once, in the copy or beside it");
    let (mut log, _) = open(log.into_medium(), 1);
    assert_eq!(counts(&mut log), [2, 1, 0], "what was copied is kept");
    log.count_replays(&[never]);
    assert_eq!(counts(&mut log), [2, 1, 1]);
    let (mut log, _) = open(log.into_medium(), 1);
    assert_eq!(counts(&mut log), [2, 1, 0], "what was not is lost");
    log.remove(often).unwrap();
    assert!(matches!(log.replays(often), Err(ReplayError::NotFound { .. })));
    let staged = log.stage(&example(7)).unwrap();
    assert_eq!(log.replays(staged).unwrap(), 0);
    log.flush().unwrap();
    check(&mut log, &live.into_iter().filter(|(id, _)| *id != often).chain([(staged, example(7))]).collect());
}

#[test]
fn removals_are_dropped_when_their_records_are_gone_and_the_log_was_opened_again() {
    let (mut log, live) = with_removals(40, 120, 4, 40);
    log.compact(Compact::All).unwrap();
    let (mut log, _) = open(log.into_medium(), 1);
    let before = log.bytes();
    log.compact(Compact::All).unwrap();
    assert!(log.bytes() < before, "{} of {before}", log.bytes());
    let (mut log, _) = open(log.into_medium(), 1);
    check(&mut log, &live);
    let removals = log.segments.clone().iter().map(|segment| log.frames_of(segment).unwrap().len()).sum::<usize>();
    assert!(removals <= 2, "{removals} frames for {} records", live.len());
}

#[test]
#[cfg_attr(miri, ignore = "takes hours under Miri")]
fn erases_are_spread_although_most_records_never_change() {
    let (mut log, _) = open(SimFlash::<8, 512>::new(16), 1);
    let cold: Vec<Example> = (0..60).map(example).collect();
    for batch in cold.chunks(4) {
        log.append(batch).unwrap();
    }
    for nth in 0..12_000_u64 {
        let id = log.append(&[example(1000 + nth)]).unwrap()[0];
        log.remove(id).unwrap();
        if nth % 1500 == 0 {
            log = open(log.into_medium(), 1).0;
        }
    }
    let erases: Vec<u64> = log.medium().wear().iter().map(|wear| wear.erases).collect();
    let (least, most) = (erases.iter().min().unwrap(), erases.iter().max().unwrap());
    assert!(*most > 100 && most - least < 100, "{erases:?}");
    assert_eq!(log.len(), 60);
    for (at, example) in cold.iter().enumerate() {
        assert_eq!(&log.read(ExampleId(at as u64 + 1)).unwrap(), example);
    }
}

#[test]
fn a_sealed_log_opens_with_its_key_only_and_shows_nothing() {
    let seal = |key: u8, entropy: u8| Some(Seal::new([key; 32], [entropy; 24]));
    let plain: Vec<Example> = (0..3).map(example).collect();
    let (mut log, _) = open(SimFlash::<8, 512>::new(20), 1);
    log.append(&plain).unwrap();
    let sealed = |entropy| LogConfig { seal: seal(1, entropy), ..config(1) };
    let (mut log, _) = ReplayLog::open(log.into_medium(), &sealed(1)).unwrap();
    let secret: Vec<Example> = (3..40).map(example).collect();
    for batch in secret.chunks(5) {
        log.append(batch).unwrap();
    }
    assert!(log.active.is_some());
    let mut live: BTreeMap<ExampleId, Example> =
        (1..).map(ExampleId).zip(plain.iter().chain(&secret).cloned()).collect();
    check(&mut log, &live);
    let flash = log.into_medium();
    let refused = ReplayLog::open(flash.clone(), &config(1));
    assert!(matches!(refused, Err(ReplayError::KeyRequired)));
    let refused = ReplayLog::open(flash.clone(), &LogConfig { seal: seal(2, 2), ..config(1) });
    assert!(matches!(refused, Err(ReplayError::WrongKey)));
    // The plain records are sealed when they are moved.
    let (mut log, _) = ReplayLog::open(flash, &sealed(3)).unwrap();
    log.remove(ExampleId(7)).unwrap();
    live.remove(&ExampleId(7));
    log.compact(Compact::All).unwrap();
    check(&mut log, &live);
    assert!(log.segments.iter().all(|segment| segment.seal.is_some()));
    let (mut log, report) = ReplayLog::open(log.into_medium(), &sealed(4)).unwrap();
    assert!(report.dropped.is_empty(), "{report:?}");
    check(&mut log, &live);
    // One flipped bit of what is sealed is put right as any other.
    let frame_at = log.index.iter().next().unwrap().frame_at as usize;
    log.medium.flip_bit((frame_at + 40) * 8);
    assert_eq!(&log.read(ExampleId(1)).unwrap(), &plain[0]);
}

/// No byte on the medium but those of the log's own frames, of which none holds `forgotten`.
fn check_forgotten(log: &mut ReplayLog<SimFlash<8, 512>>, forgotten: ExampleId) {
    let segments = log.segments.clone();
    for segment in &segments {
        assert!(!log.ids_in(segment).unwrap().contains(&forgotten.0));
    }
    for (slot, bytes) in log.medium().image().chunks(512).enumerate() {
        let used = segments.iter().find(|segment| segment.slot as usize == slot);
        let used_bytes = used.map_or(0, |segment| segment.used_bytes as usize);
        assert!(bytes[used_bytes..504].iter().all(|&byte| byte == 0xFF), "slot {slot} from {used_bytes}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes hours under Miri")]
fn no_byte_of_a_forgotten_record_stays_after_power_cuts_and_damage() {
    let (mut forgotten, mut empty_ends) = (0, 0);
    for seed in seeds(0..1000) {
        let noise = |nth: u64| mix(seed ^ mix(nth));
        let (page_bytes, lies) = ([64, 512][seed as usize % 2], noise(0) % 2 == 0);
        let mut flash = SimFlash::<8, 512>::new(16).with_cache(page_bytes, seed, lies);
        flash.cut_after(noise(1) % 5000, Tear::Scattered(seed));
        let mut model = Model::default();
        let (mut log, _) = open(flash, 1);
        for op in full_script(noise(2), 24) {
            if model.run(&mut log, &op).is_err() {
                break;
            }
        }
        let mut flash = log.into_medium();
        flash.cut_now();
        flash.power_on();
        let (log, _) = open(flash, 1);
        // The first frame of the last segment decays, so that whole ones behind it tell of lost ids.
        let last = log.segments.last().map(|segment| segment.slot * 512 + 128);
        let mut image = log.into_medium().image().to_vec();
        if let Some(at) = last.filter(|_| seed % 3 == 0) {
            image[at as usize + 8] ^= 0x5A;
        }
        let (mut log, _) = open(SimFlash::<8, 512>::from_image(image), 1);
        empty_ends +=
            usize::from(log.segments.last().is_some_and(|last| last.has_remains && last.from_id == log.end_id));
        let Some(id) = log.iter().map(|info| info.id).nth(noise(3) as usize % log.len().max(1)) else { continue };
        let (len, next_id) = (log.len(), log.next_id());
        let is_removed = noise(4) % 2 == 0;
        if is_removed {
            match log.remove(id) {
                Ok(()) => {}
                Err(ReplayError::Full { .. }) => continue,
                Err(error) => panic!("{error}"),
            }
        }
        match log.compact(Compact::Holding(&[id])) {
            Ok(_) => {}
            Err(ReplayError::Full { .. }) => continue,
            Err(error) => panic!("{error}"),
        }
        if is_removed {
            check_forgotten(&mut log, id);
            forgotten += 1;
        }
        let is_appended = log.append(&[example(seed)]).is_ok();
        let (log, report) = open(log.into_medium(), 1);
        let is_known = |dropped: &Dropped| dropped.reason == DropReason::LostBefore || dropped.records == Some(0);
        assert!(report.dropped.iter().all(is_known), "seed {seed}: {report:?}");
        assert_eq!(log.len(), len - usize::from(is_removed) + usize::from(is_appended), "seed {seed}");
        assert!(log.next_id() >= next_id, "seed {seed}: lost ids would be given out again");
    }
    assert!(forgotten > 150 && empty_ends > 5, "{forgotten} forgotten, {empty_ends} empty ends");
}
