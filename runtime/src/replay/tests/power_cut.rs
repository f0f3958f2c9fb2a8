//! Power fails at every byte; nothing acknowledged is lost, nothing unknown appears, and the log goes on.

use super::*;
use crate::storage::sim::Tear;

/// A workload on flash of one geometry.
struct Case<const W: usize, const B: usize> {
    blocks: usize,
    blocks_per_segment: u32,
    is_sealed: bool,
    script: Vec<Op>,
}

/// Where a run was when the power failed.
struct Interrupted<const W: usize, const B: usize> {
    flash: SimFlash<W, B>,
    model: Model,
    /// Ops that are done, or in flight and recovered.
    done: usize,
}

impl<const W: usize, const B: usize> Case<W, B> {
    /// Runs the ops from `from` on until they are done or the power fails.
    fn run(
        &self,
        flash: SimFlash<W, B>,
        mut model: Model,
        from: usize,
    ) -> Result<SimFlash<W, B>, Box<Interrupted<W, B>>> {
        let mut log = self.open(flash).0;
        for (at, op) in self.script.iter().enumerate().skip(from) {
            if let Op::Reopen = op {
                log.flush().or_else(|error| if is_power_cut(&error) { Ok(()) } else { Err(error) }).unwrap();
                let flash = log.into_medium();
                if !flash.is_powered() {
                    return Err(Box::new(self.recover(flash, model, at)));
                }
                model.acknowledged = model.events.len();
                log = self.open(flash).0;
            }
            if let Err(error) = model.run(&mut log, op) {
                assert!(is_power_cut(&error), "{error}");
                let flash = log.into_medium();
                return Err(Box::new(self.recover(flash, model, at)));
            }
        }
        if log.flush().is_err() {
            return Err(Box::new(self.recover(log.into_medium(), model, self.script.len())));
        }
        check_contents(&mut log, &model.live(model.events.len()));
        let report = log.verify().unwrap();
        assert!(report.is_ok(), "{report:?}");
        Ok(log.into_medium())
    }

    /// Turns the power on, checks what is left, and says where to go on.
    fn recover(&self, mut flash: SimFlash<W, B>, mut model: Model, at: usize) -> Interrupted<W, B> {
        flash.power_on();
        let before = model.acknowledged;
        let (mut log, report) = self.open(flash);
        for dropped in &report.dropped {
            assert!(dropped.reason.is_interruption(), "{dropped}");
        }
        model.check_recovered(&mut log, Sync::Honest);
        // A batch within a segment is stored whole or not at all; these scripts have no larger one.
        let is_stored = model.acknowledged > before;
        Interrupted { flash: log.into_medium(), model, done: at + usize::from(is_stored) }
    }

    fn open(&self, flash: SimFlash<W, B>) -> (ReplayLog<SimFlash<W, B>>, RecoveryReport) {
        let opening = flash.wear().iter().map(|wear| wear.reads).sum();
        let config = match self.is_sealed {
            true => sealed_config(self.blocks_per_segment, opening),
            false => config(self.blocks_per_segment),
        };
        ReplayLog::open(flash, &config).unwrap()
    }

    fn fresh(&self) -> SimFlash<W, B> {
        SimFlash::new(self.blocks)
    }

    fn work_bytes(&self) -> u64 {
        let done = self.run(self.fresh(), Model::default(), 0);
        let Ok(flash) = done else { panic!("the power failed without a cut") };
        flash.worked_bytes()
    }

    /// Cuts at every byte and finishes the script afterwards. Returns the number of runs.
    fn check_every_cut(&self, tear: Tear) -> u64 {
        self.check_cuts(tear, 1)
    }

    /// Cuts at every `step`th byte and finishes the script afterwards. Returns the number of runs.
    fn check_cuts(&self, tear: Tear, step: usize) -> u64 {
        let work_bytes = self.work_bytes();
        for cut in (0..work_bytes).step_by(step) {
            let mut flash = self.fresh();
            flash.cut_after(cut, tear);
            let Err(interrupted) = self.run(flash, Model::default(), 0) else { panic!("no cut at {cut}") };
            let Interrupted { flash, model, done } = *interrupted;
            assert!(self.run(flash, model, done).is_ok());
        }
        work_bytes.div_ceil(step as u64)
    }

    /// Cuts at every byte, and in what follows at every byte again. Returns the number of runs.
    fn check_every_two_cuts(&self, tear: Tear) -> u64 {
        let mut runs = 0;
        for cut in 0..self.work_bytes() {
            let mut flash = self.fresh();
            flash.cut_after(cut, tear);
            let Err(first) = self.run(flash, Model::default(), 0) else { panic!("no cut at {cut}") };
            for second in 0.. {
                let mut flash = first.flash.clone();
                flash.cut_after(second, tear);
                runs += 1;
                match self.run(flash, first.model.clone(), first.done) {
                    Ok(_) => break,
                    Err(interrupted) => {
                        let Interrupted { flash, model, done } = *interrupted;
                        assert!(self.run(flash, model, done).is_ok());
                    }
                }
            }
        }
        runs
    }
}

fn case<const W: usize, const B: usize>(blocks: usize, blocks_per_segment: u32, seed: u64, ops: usize) -> Case<W, B> {
    Case { blocks, blocks_per_segment, is_sealed: false, script: script(seed, ops) }
}

/// A workload with staging, compaction and forgetting, on flash that is too small for it without them.
fn full_case<const W: usize, const B: usize>(blocks: usize, is_sealed: bool, seed: u64, ops: usize) -> Case<W, B> {
    Case { blocks, blocks_per_segment: 1, is_sealed, script: full_script(seed, ops) }
}

#[test]
fn a_power_cut_at_any_byte_keeps_every_acknowledged_record() {
    if cfg!(miri) {
        // A few cuts show what Miri is for, and take minutes there.
        case::<8, 256>(30, 1, 1, 6).check_cuts(Tear::Scattered(1), 401);
        return;
    }
    for tear in [Tear::InOrder, Tear::Scattered(1), Tear::Scattered(2)] {
        case::<8, 256>(30, 1, 1, 12).check_every_cut(tear);
        case::<16, 512>(16, 1, 2, 12).check_every_cut(tear);
        case::<32, 512>(16, 1, 3, 12).check_every_cut(tear);
        case::<8, 128>(60, 3, 4, 12).check_every_cut(tear);
        case::<1, 256>(30, 1, 5, 12).check_every_cut(tear);
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes hours under Miri")]
fn two_power_cuts_at_any_bytes_keep_every_acknowledged_record() {
    let runs = case::<8, 256>(4, 1, 11, 1).check_every_two_cuts(Tear::InOrder)
        + case::<16, 256>(4, 1, 12, 1).check_every_two_cuts(Tear::InOrder)
        + case::<32, 256>(4, 1, 13, 1).check_every_two_cuts(Tear::InOrder)
        + case::<8, 256>(4, 1, 14, 1).check_every_two_cuts(Tear::Scattered(3));
    assert!(runs > 50_000, "only {runs} runs");
}

#[test]
#[cfg_attr(miri, ignore = "takes hours under Miri")]
fn a_power_cut_at_any_byte_of_compaction_keeps_every_acknowledged_record() {
    for seed in seeds(20..23) {
        for tear in [Tear::InOrder, Tear::Scattered(seed)] {
            full_case::<8, 512>(7, false, seed, 20).check_cuts(tear, 37);
            full_case::<16, 512>(7, true, seed, 20).check_cuts(tear, 37);
            full_case::<32, 512>(8, false, seed, 20).check_cuts(tear, 37);
        }
    }
}

/// Every cut in three workloads with compaction: minutes.
#[test]
#[ignore = "takes minutes"]
fn power_cuts_of_compaction_exhaustive() {
    let mut runs = 0;
    for seed in seeds(20..23) {
        for tear in [Tear::InOrder, Tear::Scattered(seed)] {
            runs += full_case::<8, 512>(7, false, seed, 30).check_every_cut(tear);
            runs += full_case::<16, 512>(7, true, seed, 30).check_every_cut(tear);
            runs += full_case::<32, 512>(8, false, seed, 30).check_every_cut(tear);
            eprintln!("seed {seed}, {tear:?}: {runs} runs so far");
        }
    }
    eprintln!("{runs} runs of one cut each, nothing lost");
}

/// Several million runs: minutes. `cargo test --release -- --ignored power_cuts_exhaustive --nocapture`
#[test]
#[ignore = "takes minutes"]
fn power_cuts_exhaustive() {
    let mut runs = 0;
    for seed in seeds(0..4) {
        for tear in [Tear::InOrder, Tear::Scattered(seed)] {
            runs += full_case::<8, 512>(5, seed % 2 == 1, seed, 6).check_every_two_cuts(tear);
            runs += case::<8, 256>(12, 1, seed, 5).check_every_two_cuts(tear);
            runs += case::<16, 256>(12, 1, seed, 5).check_every_two_cuts(tear);
            runs += case::<32, 256>(12, 1, seed, 5).check_every_two_cuts(tear);
            eprintln!("seed {seed}, {tear:?}: {runs} runs so far");
        }
    }
    eprintln!("{runs} runs of two cuts each, nothing lost");
}

/// A random schedule behind a page cache: six cuts, each page torn on its own.
fn check_cached_schedule(seed: u64, page_bytes: usize, sync: Sync, blocks: usize) {
    let is_full = sync == Sync::LiesToCompaction || blocks < 40;
    let mut flash = SimFlash::<8, 512>::new(blocks).with_cache(page_bytes, seed, sync != Sync::Honest);
    let mut model = Model::default();
    for life in 0..7_u64 {
        let noise = mix(seed ^ mix(life));
        if life < 6 {
            flash.cut_after(noise % if is_full { 6000 } else { 1500 }, Tear::Scattered(noise));
        }
        let is_sealed = seed % 3 == 2;
        let config = if is_sealed { sealed_config(1, noise) } else { config(1) };
        let (mut log, _) = ReplayLog::open(flash, &config).unwrap();
        model.check_recovered(&mut log, sync);
        let ops = if is_full { full_script(noise >> 20, 24) } else { script(noise >> 20, 12) };
        for op in &ops {
            if let Err(error) = model.run(&mut log, op) {
                assert!(is_power_cut(&error), "{error}");
                break;
            }
        }
        flash = log.into_medium();
        if flash.is_powered() {
            flash.cut_now();
        }
        flash.power_on();
    }
    let (mut log, _) = ReplayLog::open(flash, &sealed_config(1, seed)).unwrap();
    model.check_recovered(&mut log, sync);
}

/// Runs schedules for many seeds; one that fails says its seed.
fn check_schedules(range: core::ops::Range<u64>, pages: &[usize], sync: Sync, blocks: usize) {
    for seed in seeds(range) {
        for &page_bytes in pages {
            let run = std::panic::catch_unwind(|| check_cached_schedule(seed, page_bytes, sync, blocks));
            if let Err(panic) = run {
                eprintln!("MYNAH_SEED={seed}, pages of {page_bytes} bytes, {sync:?}, {blocks} blocks");
                std::panic::resume_unwind(panic);
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes hours under Miri")]
fn pages_written_back_in_any_order_keep_every_acknowledged_record() {
    check_schedules(0..400, &[64, 512, 4096], Sync::Honest, 40);
}

#[test]
#[cfg_attr(miri, ignore = "takes hours under Miri")]
fn a_sync_that_lies_still_leaves_an_exact_prefix() {
    check_schedules(0..400, &[64, 512, 4096], Sync::Lies, 40);
}

#[test]
#[cfg_attr(miri, ignore = "takes hours under Miri")]
fn compaction_behind_a_page_cache_keeps_every_acknowledged_record() {
    check_schedules(0..100, &[64, 512, 4096], Sync::Honest, 12);
    // A copy that ends inside a segment behind which another shares a frame with it.
    check_schedules(10_300..10_301, &[64], Sync::Honest, 12);
}

#[test]
#[cfg_attr(miri, ignore = "takes hours under Miri")]
fn compaction_behind_a_sync_that_lies_leaves_a_prefix_and_brings_nothing_back() {
    check_schedules(0..100, &[64, 512, 4096], Sync::LiesToCompaction, 12);
    for (seed, page_bytes) in LIES {
        check_schedules(seed..seed + 1, &[page_bytes], Sync::LiesToCompaction, 12);
    }
}

/// Schedules and page sizes where it is hard to keep the prefix, and what comes together there.
const LIES: [(u64, usize); 8] = [
    // A copy without a removed record is found, the note is lost, and what the copy replaced comes back later.
    (10_290, 512),
    (10_775, 512),
    // A segment whose ids are all answered for by a copy outlives it, after its removals were compacted.
    (11_723, 512),
    // The log is cut inside a copied frame that holds a note, and the id of its record is given out again.
    (12_426, 1024),
    // A copy comes back after the removals in it were lost.
    (18_658, 1024),
    (20_642, 1024),
    (27_547, 512),
    (28_015, 1024),
];

/// 100,000 schedules of six cuts with honest syncs and 150,000 with lying ones: minutes.
#[test]
#[ignore = "takes minutes"]
fn cached_schedules_many() {
    check_schedules(10_000..35_000, &[64, 512], Sync::Honest, 40);
    check_schedules(10_000..35_000, &[64, 512], Sync::Honest, 12);
    check_schedules(10_000..35_000, &[64, 512], Sync::Lies, 40);
    check_schedules(10_000..35_000, &[64, 128, 512, 1024], Sync::LiesToCompaction, 12);
}

#[test]
fn an_interrupted_start_gives_its_segment_back() {
    let mut flash = SimFlash::<8, 256>::new(2);
    for life in 0..10 {
        let (mut log, report) = open(flash, 1);
        assert_eq!(report.dropped.len(), usize::from(life > 0));
        log.medium.cut_after(if life == 0 { 130 } else { 256 + 130 }, Tear::InOrder);
        let error = log.append(&[example(7)]).unwrap_err();
        assert!(is_power_cut(&error));
        let again = log.append(&[example(7)]).unwrap_err();
        assert!(matches!(again, ReplayError::Dead));
        flash = log.into_medium();
        flash.power_on();
    }
    let (mut log, report) = open(flash, 1);
    assert!(report.dropped[0].reason.is_interruption());
    assert_eq!(log.append(&[example(7)]).unwrap(), [ExampleId(1)]);
    assert_eq!(log.read(ExampleId(1)).unwrap(), example(7));
    assert_eq!(log.medium().wear()[1].programmed_words, 0);
}
