//! What a step takes, against what was said that it takes.

use std::process::Command;

use mynah::budget::estimate;
use mynah_models::ModelConfig;
use mynah_models::adapter::{AdapterLayout, LoraConfig};
use mynah_models::weights::Gguf;
use mynah_tests::{cached_smollm2, skip};

/// Bytes that a process had resident at the most that took steps of one sequence.
fn peak(file: &std::path::Path, tokens: usize, memory_megabytes: &str) -> f64 {
    let output = Command::new(env!("CARGO_BIN_EXE_mynah"))
        .args(["--json", "bench", "train", "--steps", "1", "--memory-budget", memory_megabytes, "--tokens"])
        .args([tokens.to_string().as_str(), "-m"])
        .arg(file)
        .output()
        .unwrap();
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    document["peak_rss_mb"].as_f64().unwrap() * 1e6
}

/// The resident size grows with the tokens as the estimate does, whether activations are kept or not.
#[test]
fn the_estimate_of_a_step_holds() {
    /// Freed blocks that the allocator keeps, and what a step needs beside its tensors.
    const ALLOCATOR: f64 = 0.25;
    let Some(file) = cached_smollm2() else {
        return skip("the estimate of a step", "the model is not in the cache", "MYNAH_REQUIRE_MODEL");
    };
    let config = ModelConfig::from_gguf(&Gguf::open(&file).unwrap()).unwrap();
    let layout = AdapterLayout::new(&config, &LoraConfig::default()).unwrap();
    for megabytes in ["1000", "100"] {
        let budget = megabytes.parse::<u64>().unwrap() * 1_000_000;
        let said = |tokens| estimate(&config, &layout, tokens, budget).total_bytes() as f64;
        let (few, many) = (32, 320);
        let (found, expected) = (peak(&file, many, megabytes) - peak(&file, few, megabytes), said(many) - said(few));
        assert!(
            (found - expected).abs() < ALLOCATOR * said(many),
            "within {megabytes} MB, {many} tokens take {found:.0} bytes more than {few}, not {expected:.0}"
        );
    }
}
