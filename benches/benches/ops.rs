//! Criterion benches of each operation of a training step and of decoding, in SmolLM2's shapes.
//!
//! `cargo bench -p mynah-benches --features criterion --bench ops`; `-- --save-baseline NAME` and `-- --baseline NAME` compare two states.

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mynah_benches::ops::{Pass, ops};
use mynah_models::{ComputeDevice, Precision};

fn all(criterion: &mut Criterion) {
    let device = ComputeDevice::cpu().with_precision(Precision::Fast);
    for (pass, tokens) in [(Pass::Infer, 1), (Pass::Train, 128)] {
        let mut group = criterion.benchmark_group(format!("{tokens} tokens"));
        group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2)).sample_size(20);
        let ops = ops(pass, tokens, &device).expect("memory for a matrix");
        for mut op in ops {
            group.throughput(Throughput::Elements(op.flop as u64));
            // Going backwards is timed without the forward pass that it needs.
            group.bench_function(op.name.clone(), |bencher| {
                bencher.iter_custom(|rounds| (0..rounds).map(|_| op.run()).sum());
            });
        }
        group.finish();
    }
}

criterion_group!(benches, all);
criterion_main!(benches);
