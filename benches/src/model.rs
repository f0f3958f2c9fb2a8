//! The model that is measured, and tokens for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use mynah_models::weights::Gguf;
use mynah_models::{ComputeDevice, Model, Precision};
use mynah_tests::{smollm2_path, stories};

/// `--model`.
#[derive(Debug, Clone, clap::Args)]
pub struct ModelArgs {
    /// A GGUF file; what `mynah pull smollm2-135m-instruct` keeps if not given
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
}

impl ModelArgs {
    /// The file; for trying a program and not for figures, the smallest real model, which is part of the repository.
    ///
    /// # Errors
    /// If none was given and none was pulled.
    pub fn file(&self, is_trial: bool) -> anyhow::Result<PathBuf> {
        if is_trial {
            return Ok(stories::file());
        }
        if let Some(file) = &self.model {
            return Ok(file.clone());
        }
        let file = smollm2_path().context("the system names no folder for caches; give --model")?;
        if !file.is_file() {
            bail!("{} is not there; run `cargo run --release -- pull smollm2-135m-instruct`", file.display());
        }
        Ok(file)
    }
}

/// `--precision`.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct PrecisionArgs {
    /// How exactly our side computes
    #[arg(long, value_enum, default_value_t = PrecisionChoice::Fast)]
    precision: PrecisionChoice,
}

/// The precisions by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum PrecisionChoice {
    /// f32 on the weights as they are
    Exact,
    /// bf16 and 8 bits where the processor has instructions for them
    Fast,
}

impl PrecisionArgs {
    /// As the library names it.
    pub fn precision(self) -> Precision {
        match self.precision {
            PrecisionChoice::Exact => Precision::Exact,
            PrecisionChoice::Fast => Precision::Fast,
        }
    }

    /// The CPU, computing so.
    pub fn device(self) -> ComputeDevice {
        ComputeDevice::cpu().with_precision(self.precision())
    }

    /// Its name, as `--precision` takes it.
    pub fn name(self) -> &'static str {
        match self.precision {
            PrecisionChoice::Exact => "exact",
            PrecisionChoice::Fast => "fast",
        }
    }
}

/// Loads a model.
///
/// # Errors
/// What the file lacks.
pub fn load(file: &Path, device: &ComputeDevice) -> anyhow::Result<Model> {
    let gguf: Arc<Gguf> = Gguf::open(file).with_context(|| format!("cannot open {}", file.display()))?;
    Ok(Model::load(&gguf, device)?)
}

/// Starts the threads that compute, before anything does.
///
/// # Errors
/// If some were started before.
pub fn start_threads(threads: usize) -> anyhow::Result<()> {
    Ok(rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?)
}

/// Token ids that mean nothing, the same for the same seed.
pub fn random_ids(vocab_size: usize, count: usize, seed: u64) -> Vec<u32> {
    let mut state = seed;
    std::iter::repeat_with(|| {
        // Knuth's MMIX generator; its upper bits are random enough for embeddings to be read all over the matrix.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % vocab_size as u64) as u32
    })
    .take(count)
    .collect()
}
