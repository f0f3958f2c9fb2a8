//! The committed golden folders, on the CPU and on a GPU.

use std::path::{Path, PathBuf};

use mynah_models::ComputeDevice;
use mynah_models::weights::Gguf;
use mynah_tests::reference::{Outcome, Setting, check};
use mynah_tests::{cached_smollm2, skip};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// Compares the folders; every comparison must hold, and at least `least` must have been made.
fn check_golden(folders: &[&str], setting: &Setting, least: usize) {
    let (mut compared, mut failures) = (0, Vec::new());
    for folder in folders {
        let report = &mut |outcome| match outcome {
            Outcome::Compared { name, comparison } if comparison.holds() => {
                compared += 1;
                eprintln!("{name}\n{comparison}");
            }
            Outcome::Compared { name, comparison } => failures.push(format!("{name}\n{comparison}")),
            Outcome::Skipped { name, reason } => eprintln!("{name} skipped: {reason}"),
        };
        check(&golden().join(folder), setting, report).unwrap_or_else(|error| panic!("{folder}: {error}"));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(compared >= least, "only {compared} cases of {least} were compared");
}

const TINY: [&str; 6] = ["llama", "llama3_rope", "smollm", "qwen2", "qwen3", "padded"];

#[test]
fn tiny_models_and_the_ilora_oracle_agree_on_the_cpu() {
    let setting = Setting { device: ComputeDevice::cpu(), factor: 1.0, smollm2: None };
    check_golden(&TINY, &setting, 14);
    check_golden(&["ilora"], &setting, 6);
}

#[test]
fn tiny_models_and_the_ilora_oracle_agree_on_a_gpu() {
    let device = match ComputeDevice::gpu() {
        Ok(device) => device,
        Err(error) => return skip("golden numbers on a GPU", &error.to_string(), "MYNAH_REQUIRE_GPU"),
    };
    // Four times the CPU's tolerances: a GPU sums in another order.
    let setting = Setting { device, factor: 4.0, smollm2: None };
    check_golden(&TINY, &setting, 14);
    check_golden(&["ilora"], &setting, 6);
}

#[test]
fn smollm2_agrees_with_torch_and_llama_cpp() {
    let Some(file) = cached_smollm2() else {
        return skip(
            "SmolLM2's figures",
            "the model is not in the cache: `mynah pull smollm2-135m-instruct`",
            "MYNAH_REQUIRE_MODEL",
        );
    };
    let gguf = Gguf::open(&file).unwrap_or_else(|error| panic!("{error}"));
    let setting = Setting { device: ComputeDevice::cpu(), factor: 1.0, smollm2: Some(gguf) };
    check_golden(&["smollm2", "llamacpp"], &setting, 3);
}
