//! Golden folders against the runtime. What a folder holds, and what each tolerance is, says the README of the reference set.
//!
//! One form a file: [`case`] (a tiny model with its figures), [`ilora`] (the I-LoRA oracle), [`smollm2`] (figures of a real
//! model), [`llamacpp`] (tokens, greedy ids and perplexity of the same).

pub mod case;
pub mod ilora;
pub mod llamacpp;
pub mod smollm2;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mynah_models::ComputeDevice;
use mynah_models::weights::Gguf;
use serde_json::Value;
use thiserror::Error;

use crate::golden::Comparison;

/// Why a folder could not be compared at all.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReferenceError {
    /// A file could not be read.
    #[error("{}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// A file does not hold what its form promises.
    #[error("{}: {what}", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What is missing or wrong.
        what: String,
    },
    /// A model file was refused.
    #[error(transparent)]
    Load(#[from] mynah_models::error::LoadError),
    /// An adapter was refused.
    #[error(transparent)]
    Adapter(#[from] mynah_models::adapter::AdapterError),
    /// A tokenizer or a template was refused.
    #[error("{0}")]
    Text(String),
    /// A pass failed.
    #[error(transparent)]
    Compute(#[from] mynah_models::ComputeError),
    /// A step failed.
    #[error(transparent)]
    Learn(#[from] mynah::learn::LearnError),
    /// There is nothing to compare in the folder.
    #[error("{}: no golden case of a known form in it", folder.display())]
    Nothing {
        /// The folder.
        folder: PathBuf,
    },
}

/// What to compare with.
#[derive(Debug)]
pub struct Setting {
    /// Where to compute.
    pub device: ComputeDevice,
    /// Every tolerance is multiplied by this: 1 on the CPU, 4 on a GPU, whose sums run in another order.
    pub factor: f64,
    /// SmolLM2's file, for the forms that need it.
    pub smollm2: Option<Arc<Gguf>>,
}

/// One case after it was compared, or why it was not.
#[derive(Debug)]
pub enum Outcome {
    /// The worst differences.
    Compared {
        /// The case in words.
        name: String,
        /// Per quantity.
        comparison: Comparison,
    },
    /// Not compared, and why.
    Skipped {
        /// The case in words.
        name: String,
        /// The reason.
        reason: String,
    },
}

/// Compares every case in `folder` and below, and hands each outcome to `report` as it comes.
///
/// # Errors
/// [`ReferenceError`] for a file that cannot be read; [`ReferenceError::Nothing`] if no case was found.
pub fn check(folder: &Path, setting: &Setting, report: &mut dyn FnMut(Outcome)) -> Result<(), ReferenceError> {
    let mut found = 0;
    walk(folder, setting, &mut |outcome| {
        found += 1;
        report(outcome);
    })?;
    if found == 0 { Err(ReferenceError::Nothing { folder: folder.to_owned() }) } else { Ok(()) }
}

fn walk(folder: &Path, setting: &Setting, report: &mut dyn FnMut(Outcome)) -> Result<(), ReferenceError> {
    let has = |file: &str| folder.join(file).is_file();
    if has("manifest.json") && has("reference.safetensors") {
        return case::check(folder, setting, report);
    }
    if has("ilora.json") {
        return ilora::check(folder, setting, report);
    }
    if has("reference.json") && has("reference.safetensors") {
        return smollm2::check(folder, setting, report);
    }
    if has("greedy.json") || has("tokens.json") || has("perplexity.json") {
        return llamacpp::check(folder, setting, report);
    }
    let entries = fs::read_dir(folder).map_err(|source| ReferenceError::Io { file: folder.to_owned(), source })?;
    let mut folders: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()).collect();
    folders.sort();
    for folder in folders {
        walk(&folder, setting, report)?;
    }
    Ok(())
}

/// The last part of a path.
pub(crate) fn name_of(folder: &Path) -> String {
    folder.file_name().map_or_else(|| folder.display().to_string(), |name| name.to_string_lossy().into_owned())
}

pub(crate) fn read_json(file: &Path) -> Result<Value, ReferenceError> {
    let text = fs::read_to_string(file).map_err(|source| ReferenceError::Io { file: file.to_owned(), source })?;
    serde_json::from_str(&text)
        .map_err(|error| ReferenceError::Malformed { file: file.to_owned(), what: error.to_string() })
}

/// SmolLM2's file, or why the form that needs it is skipped.
pub(crate) fn smollm2_file(setting: &Setting) -> Result<&Arc<Gguf>, String> {
    setting
        .smollm2
        .as_ref()
        .ok_or_else(|| "the SmolLM2 file is not in the cache (`mynah pull smollm2-135m-instruct`)".to_owned())
}
