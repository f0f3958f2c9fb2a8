//! What a PEFT folder says about itself, read without a model.

use std::path::Path;

use safetensors::SafeTensors;
use serde_json::{Map, Value};

use super::peft::{BASE_KEY, CONFIG_FILE, MAX_CONFIG_BYTES, Settings, WEIGHTS_FILE, check_header_len, read_capped};
use super::{AdapterError, LoraConfig};
use crate::projection::Projection;

/// An adapter of rank 64 on all projections of a model with 7 billion weights takes 640 MB.
const MAX_WEIGHTS_BYTES: u64 = 2 << 30;

/// A PEFT adapter from outside. Whether it fits a model, [`read_peft`](super::read_peft) says.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PeftSummary {
    /// Rank, alpha and the projections that have tensors.
    pub config: LoraConfig,
    /// What the base is called.
    pub base_model: Option<String>,
    /// SHA-256 of the base's file in hexadecimal, where the folder names it.
    pub base_sha256: Option<String>,
    /// Tensors in the file.
    pub tensors: usize,
    /// Values of all tensors.
    pub values: u64,
    /// Bytes of the file that holds them.
    pub bytes: u64,
}

/// Reads the configuration and what the weights say of their tensors.
///
/// # Errors
/// [`AdapterError`] names the file that is missing, too large, or not of PEFT's form.
pub fn inspect_peft(dir: &Path) -> Result<PeftSummary, AdapterError> {
    let config_path = dir.join(CONFIG_FILE);
    let file = config_path.display().to_string();
    let bytes = read_capped(&config_path, MAX_CONFIG_BYTES)?;
    let config: Map<String, Value> =
        serde_json::from_slice(&bytes).map_err(|source| AdapterError::Json { file: file.clone(), source })?;
    let settings = Settings { file: &file, config: &config };
    let text = |key: &str| config.get(key).and_then(Value::as_str).map(str::to_owned);

    let weights_path = dir.join(WEIGHTS_FILE);
    let weights_file = weights_path.display().to_string();
    let weights = read_capped(&weights_path, MAX_WEIGHTS_BYTES)?;
    check_header_len(&weights_file, &weights)?;
    let (_, metadata) = SafeTensors::read_metadata(&weights)
        .map_err(|source| AdapterError::Safetensors { file: weights_file, source })?;
    let tensors = metadata.tensors();
    let is_target = |projection: &Projection| {
        let part = format!(".{}.lora_", projection.name());
        tensors.keys().any(|name| name.contains(&part))
    };
    Ok(PeftSummary {
        config: LoraConfig {
            rank: settings.rank()?,
            alpha: settings.alpha()?,
            use_rslora: settings.flag("use_rslora")?,
            target_modules: Projection::ALL.into_iter().filter(is_target).collect(),
        },
        base_model: text("base_model_name_or_path"),
        base_sha256: text(BASE_KEY),
        tensors: tensors.len(),
        values: tensors.values().map(|info| info.shape.iter().map(|&len| len as u64).product::<u64>()).sum(),
        bytes: weights.len() as u64,
    })
}
