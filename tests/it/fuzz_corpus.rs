//! What the fuzzers found interesting, run without them: one input a line, in hexadecimal, in `fuzz/corpus/`.

use mynah_tests::fuzz;

fn run(corpus: &str, body: fn(&[u8])) {
    let inputs = corpus.lines().map(|line| {
        let byte = |at| u8::from_str_radix(&line[at..at + 2], 16).expect("two hexadecimal digits");
        (0..line.len()).step_by(2).map(byte).collect::<Vec<u8>>()
    });
    assert!(inputs.clone().count() >= 10, "a corpus is there");
    inputs.for_each(|input| body(&input));
}

#[test]
fn log_images() {
    run(include_str!("../fuzz/corpus/log_image.hex"), fuzz::log_image);
}

#[test]
fn records() {
    run(include_str!("../fuzz/corpus/record.hex"), fuzz::record);
}

#[test]
fn revisions() {
    run(include_str!("../fuzz/corpus/revision.hex"), fuzz::revision);
}

#[test]
fn operations() {
    run(include_str!("../fuzz/corpus/operations.hex"), fuzz::operations);
}

/// Long sequences, which a fuzzer reaches late.
#[test]
fn long_sequences_of_operations() {
    for seed in 0..100_u64 {
        // Knuth's multiplier (MMIX); the high bits are the good ones.
        let mut state = seed;
        let mut byte = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        let input: Vec<u8> = (0..180).map(|_| byte()).collect();
        fuzz::operations(&input);
    }
}
