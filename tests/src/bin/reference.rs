//! Compares folders of golden numbers with the runtime and prints the worst difference of every quantity.
//!
//! Exit code 0 if everything that could be compared is within its tolerance, 1 if not, 2 for wrong usage.

#![allow(clippy::print_stdout)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use mynah_models::ComputeDevice;
use mynah_models::weights::Gguf;
use mynah_tests::golden::Comparison;
use mynah_tests::reference::{Outcome, ReferenceError, Setting, check};

/// Compare golden folders with the runtime.
///
/// A folder is a tiny case (manifest.json, reference.safetensors), an I-LoRA oracle (ilora.json), figures of SmolLM2
/// (reference.json), figures of llama.cpp (greedy.json and others), or any folder with such folders in it.
#[derive(Debug, Parser)]
#[command(name = "reference")]
struct Arguments {
    /// Folders to compare.
    #[arg(required = true)]
    folders: Vec<PathBuf>,
    /// Where to compute.
    #[arg(long, value_enum, default_value = "cpu")]
    device: Device,
    /// SmolLM2's GGUF file; the cache of `mynah pull` otherwise.
    #[arg(long)]
    smollm2: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Device {
    Cpu,
    Gpu,
}

/// A GPU sums in another order than the figures' CPU did.
const GPU_FACTOR: f64 = 4.0;

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool, ReferenceError> {
    let (device, factor) = match arguments.device {
        Device::Cpu => (ComputeDevice::cpu(), 1.0),
        Device::Gpu => (ComputeDevice::gpu()?, GPU_FACTOR),
    };
    println!("computing on {}, tolerances x {factor}", device.name());
    let smollm2 = match arguments.smollm2.clone().or_else(mynah_tests::cached_smollm2) {
        Some(file) => Some(Gguf::open(&file)?),
        None => None,
    };
    let setting = Setting { device, factor, smollm2 };
    let (mut worst, mut failed, mut compared, mut skipped) = (Comparison::default(), Vec::new(), 0, 0);
    for folder in &arguments.folders {
        check(folder, &setting, &mut |outcome| match outcome {
            Outcome::Compared { name, comparison } => {
                println!("{name}\n{comparison}");
                compared += 1;
                worst.merge(&comparison);
                if !comparison.holds() {
                    failed.push(name);
                }
            }
            Outcome::Skipped { name, reason } => {
                skipped += 1;
                println!("{name}\n  skipped: {reason}\n");
            }
        })?;
    }
    println!("worst of all\n{worst}");
    println!("{compared} compared, {} failed, {skipped} skipped", failed.len());
    for name in &failed {
        println!("FAILED {name}");
    }
    Ok(failed.is_empty() && compared > 0)
}
