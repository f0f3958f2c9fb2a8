//! What decoding asks of the allocator.

use std::alloc::System;

use mynah_models::{ComputeDevice, Model, Precision, Stop};
use mynah_tests::stories;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Tokens after which every buffer has its size.
const WARM_UP: u32 = 16;
/// Tokens that are counted; all of them fit the room that a cache begins with.
const COUNTED: u32 = 32;
/// Most allocations of a token in each decoder layer: burn puts the bytes of every tensor into a box and a shared pointer, and every
/// operation lists what it works on.
const PER_LAYER: usize = 150;
/// The same beside the layers: embedding, turns, final norm, logits.
const BESIDE: usize = 50;

#[test]
fn a_token_leaves_nothing_behind_and_allocates_a_bounded_number_of_times() {
    let device = ComputeDevice::cpu().with_precision(Precision::Fast);
    let model = Model::load(&stories::gguf(), &device).unwrap();
    let (mut cache, stop) = (model.new_cache(64), Stop::new());
    let mut decode = |id: u32| drop(model.decode(&mut cache, &[id], None, &stop).unwrap());
    (3..3 + WARM_UP).for_each(&mut decode);
    let region = Region::new(ALLOCATOR);
    (3..3 + COUNTED).for_each(&mut decode);
    let change = region.change();
    let layers = model.config().num_hidden_layers;
    let per_token = change.allocations / COUNTED as usize;
    eprintln!(
        "{per_token} allocations a token of {layers} layers, {} bytes",
        change.bytes_allocated / COUNTED as usize
    );
    assert!(per_token <= layers * PER_LAYER + BESIDE, "{per_token} allocations a token");
    let left = change.bytes_allocated as i64 + change.bytes_reallocated as i64 - change.bytes_deallocated as i64;
    assert!(left <= 4096, "{left} bytes are left of {COUNTED} tokens");
}
