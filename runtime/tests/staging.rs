//! Staging an example does not touch the allocator.

use std::alloc::System;

use mynah::example::{Example, ExampleId};
use mynah::replay::{LogConfig, ReplayLog};
use mynah::storage::sim::SimFlash;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

// The only test of this file: others would allocate meanwhile.
#[test]
fn staging_until_the_buffer_is_full_allocates_nothing() {
    let flash = SimFlash::<8, 4096>::new(8);
    let (mut log, _) = ReplayLog::open(flash, &LogConfig::new([1; 32])).unwrap();
    let answer: Vec<u32> = (0..20).map(|at| 300 * at).collect();
    let examples: Vec<Example> = (0..40).map(|nth| Example::new(&[nth], &answer, 2, "talk", 7).unwrap()).collect();
    let syncs = log.medium().syncs();
    let region = Region::new(ALLOCATOR);
    for (example, id) in examples.iter().zip(1..) {
        assert_eq!(log.stage(example).unwrap(), ExampleId(id));
    }
    assert_eq!(region.change().allocations, 0);
    assert_eq!((log.len(), log.medium().syncs()), (0, syncs), "nothing is written yet");
    log.flush().unwrap();
    assert!(region.change().allocations > 0, "the counter counts");
    assert_eq!((log.len(), log.medium().syncs()), (40, syncs + 1));
}
