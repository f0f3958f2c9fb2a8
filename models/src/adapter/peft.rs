//! The folder that Hugging Face's PEFT writes and loads: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Neither file says in PEFT's own terms which weights it was trained on, so a base of equal shape would load without a
//! word. We add the SHA-256 of the model file to both, which PEFT passes over, and refuse an adapter of another base.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

use super::{Adapter, AdapterError, AdapterLayout, LoraConfig, PairLayout};
use crate::config::ModelConfig;
use crate::projection::Projection;
use crate::quant::TensorType;

pub(super) const CONFIG_FILE: &str = "adapter_config.json";
pub(super) const WEIGHTS_FILE: &str = "adapter_model.safetensors";
pub(super) const BASE_KEY: &str = "mynah_base_sha256";
const PREFIX: &str = "base_model.model.model.layers.";
/// PEFT's own configuration takes about 1 KiB.
pub(super) const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// About 150 bytes a tensor; an adapter has some hundreds.
const MAX_HEADER_BYTES: u64 = 4 << 20;

/// Settings that change nothing in the result of an adapter that is already trained, whatever their value.
const WITHOUT_EFFECT: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "inference_mode",
    "layers_pattern",
    "loftq_config",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    BASE_KEY,
];

/// Which model an adapter belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseIdentity {
    /// What people call it; PEFT's `base_model_name_or_path`.
    pub model_name: String,
    /// SHA-256 of the model file.
    pub sha256: [u8; 32],
}

impl BaseIdentity {
    /// The digest in lower-case hex, as it is stored.
    pub fn sha256_hex(&self) -> String {
        self.sha256.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// An adapter read from a PEFT folder.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PeftAdapter {
    /// The adapter.
    pub adapter: Adapter,
    /// Whether the folder names the base it was trained on, and it is this one. PEFT itself writes no digest.
    pub base_is_known: bool,
}

/// Reads a PEFT folder as an adapter of `model`.
///
/// # Errors
/// [`AdapterError::Unsupported`] for DoRA and every other feature that would change the result;
/// [`AdapterError::Base`] if it was trained on another model than `base`; the tensor errors name the tensor.
pub fn read_peft(dir: &Path, model: &ModelConfig, base: &BaseIdentity) -> Result<PeftAdapter, AdapterError> {
    let config_path = dir.join(CONFIG_FILE);
    let config_file = config_path.display().to_string();
    let bytes = read_capped(&config_path, MAX_CONFIG_BYTES)?;
    let config: Map<String, Value> =
        serde_json::from_slice(&bytes).map_err(|source| AdapterError::Json { file: config_file.clone(), source })?;
    let settings = Settings { file: &config_file, config: &config };
    settings.check_supported()?;
    let mut base_is_known = check_base(&config_file, config.get(BASE_KEY).and_then(Value::as_str), base)?;

    let rank = settings.rank()?;
    let weights_path = dir.join(WEIGHTS_FILE);
    let weights_file = weights_path.display().to_string();
    let bytes = read_capped(&weights_path, largest_file_bytes(model, rank)?)?;
    let safetensors = |source| AdapterError::Safetensors { file: weights_file.clone(), source };
    check_header_len(&weights_file, &bytes)?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(safetensors)?;
    let stored = header.metadata().as_ref().and_then(|metadata| metadata.get(BASE_KEY));
    base_is_known |= check_base(&weights_file, stored.map(String::as_str), base)?;

    let tensors = SafeTensors::deserialize(&bytes).map_err(safetensors)?;
    let target_modules = targets(&weights_file, &tensors)?;
    settings.check_targets(&target_modules)?;
    let config =
        LoraConfig { rank, alpha: settings.alpha()?, use_rslora: settings.flag("use_rslora")?, target_modules };
    let layout = AdapterLayout::new(model, &config)?;
    // Grown as tensors are found, not by what the configuration promises.
    let mut values = Vec::new();
    for pair in layout.pairs() {
        let [a, b] = shapes(pair);
        values.resize(pair.b.end, 0.0);
        read_tensor(&weights_file, &tensors, &name(pair, 'A'), a, &mut values[pair.a.clone()])?;
        read_tensor(&weights_file, &tensors, &name(pair, 'B'), b, &mut values[pair.b.clone()])?;
    }
    check_all_used(&weights_file, &tensors, &layout)?;
    Ok(PeftAdapter { adapter: Adapter::from_values(&layout, values)?, base_is_known })
}

/// Writes a PEFT folder, which is created if need be. Each file is complete before it gets its name; the configuration
/// comes last, so that a folder that has it is whole.
///
/// # Errors
/// [`AdapterError::Io`] names the file.
pub fn write_peft(dir: &Path, adapter: &Adapter, base: &BaseIdentity) -> Result<(), AdapterError> {
    fs::create_dir_all(dir).map_err(|source| io_error(dir, source))?;
    write_whole(&dir.join(WEIGHTS_FILE), &weights_bytes(adapter, base))?;
    let config = serde_json::to_vec_pretty(&config_json(adapter.config(), base))
        .map_err(|source| AdapterError::Json { file: CONFIG_FILE.to_owned(), source })?;
    write_whole(&dir.join(CONFIG_FILE), &config)?;
    sync_dir(dir).map_err(|source| io_error(dir, source))
}

/// The settings of `adapter_config.json`, read with errors that name them.
pub(super) struct Settings<'a> {
    pub(super) file: &'a str,
    pub(super) config: &'a Map<String, Value>,
}

impl Settings<'_> {
    /// Refuses what would change the result: a setting we do not know must at least be switched off.
    fn check_supported(&self) -> Result<(), AdapterError> {
        for (key, value) in self.config {
            let accepted = match key.as_str() {
                "peft_type" => value == "LORA",
                "bias" => value == "none",
                "task_type" => value.is_null() || value == "CAUSAL_LM",
                "r" | "lora_alpha" | "use_rslora" | "target_modules" => true, // read below
                // The others, as `pissa`, leave their mark in the base weights.
                "init_lora_weights" => {
                    value.is_null()
                        || value.is_boolean()
                        || ["gaussian", "eva", "orthogonal"].iter().any(|v| value == v)
                }
                key if WITHOUT_EFFECT.contains(&key) => true,
                _ => is_off(value),
            };
            if !accepted {
                return Err(self.unsupported(key, value));
            }
        }
        match self.config.get("peft_type") {
            Some(_) => Ok(()),
            None => Err(self.unsupported("peft_type", &Value::Null)),
        }
    }

    pub(super) fn rank(&self) -> Result<usize, AdapterError> {
        let value = self.config.get("r").unwrap_or(&Value::Null);
        value.as_u64().and_then(|rank| usize::try_from(rank).ok()).ok_or_else(|| self.unsupported("r", value))
    }

    pub(super) fn alpha(&self) -> Result<f32, AdapterError> {
        let value = self.config.get("lora_alpha").unwrap_or(&Value::Null);
        value.as_f64().map(|alpha| alpha as f32).ok_or_else(|| self.unsupported("lora_alpha", value))
    }

    pub(super) fn flag(&self, key: &str) -> Result<bool, AdapterError> {
        match self.config.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => Err(self.unsupported(key, value)),
        }
    }

    /// A list of modules must be those that have tensors. A pattern (`all-linear`, a regular expression) is not
    /// interpreted: the tensors say what it matched.
    fn check_targets(&self, found: &[Projection]) -> Result<(), AdapterError> {
        let Some(Value::Array(listed)) = self.config.get("target_modules") else {
            return Ok(());
        };
        for value in listed {
            let module = value.as_str().and_then(|path| Projection::from_name(path.rsplit('.').next().unwrap_or(path)));
            if !module.is_some_and(|module| found.contains(&module)) {
                return Err(self.unsupported("target_modules", value));
            }
        }
        Ok(())
    }

    fn unsupported(&self, feature: &str, found: &Value) -> AdapterError {
        AdapterError::Unsupported { file: self.file.to_owned(), feature: feature.to_owned(), found: found.to_string() }
    }
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Number(_) => false,
    }
}

/// Whether the base is named, and is ours; an error if it is another one.
fn check_base(file: &str, stored: Option<&str>, base: &BaseIdentity) -> Result<bool, AdapterError> {
    let expected = base.sha256_hex();
    match stored {
        None => Ok(false),
        Some(stored) if stored.eq_ignore_ascii_case(&expected) => Ok(true),
        Some(stored) => Err(AdapterError::Base { file: file.to_owned(), expected, found: stored.to_owned() }),
    }
}

fn largest_file_bytes(model: &ModelConfig, rank: usize) -> Result<u64, AdapterError> {
    let layout = AdapterLayout::new(model, &LoraConfig { rank, ..LoraConfig::default() })?;
    Ok(layout.len() as u64 * 4 + MAX_HEADER_BYTES)
}

pub(super) fn check_header_len(file: &str, bytes: &[u8]) -> Result<(), AdapterError> {
    let len_bytes = bytes.first_chunk().map_or(0, |len| u64::from_le_bytes(*len));
    if len_bytes > MAX_HEADER_BYTES {
        return Err(AdapterError::TooLarge { file: file.to_owned(), len_bytes, limit_bytes: MAX_HEADER_BYTES });
    }
    Ok(())
}

/// The tensor's name: `base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight`.
fn name(pair: &PairLayout, matrix: char) -> String {
    let (parent, projection) = (pair.projection.parent(), pair.projection.name());
    format!("{PREFIX}{}.{parent}.{projection}.lora_{matrix}.weight", pair.layer)
}

fn shapes(pair: &PairLayout) -> [[usize; 2]; 2] {
    [[pair.rank, pair.d_in], [pair.d_out, pair.rank]]
}

/// The projections that the tensors of the file belong to.
fn targets(file: &str, tensors: &SafeTensors) -> Result<Vec<Projection>, AdapterError> {
    let mut found = BTreeSet::new();
    for name in tensors.names() {
        let module = name.strip_suffix(".lora_A.weight").or_else(|| name.strip_suffix(".lora_B.weight"));
        let projection = module.and_then(|module| Projection::from_name(module.rsplit('.').next()?));
        found.insert(projection.ok_or_else(|| unexpected(file, name))?);
    }
    Ok(found.into_iter().collect())
}

/// With every expected tensor present, one more can only be a stranger.
fn check_all_used(file: &str, tensors: &SafeTensors, layout: &AdapterLayout) -> Result<(), AdapterError> {
    let expected: BTreeSet<String> =
        layout.pairs().iter().flat_map(|pair| [name(pair, 'A'), name(pair, 'B')]).collect();
    match tensors.names().into_iter().find(|name| !expected.contains(*name)) {
        Some(name) => Err(unexpected(file, name)),
        None => Ok(()),
    }
}

fn unexpected(file: &str, name: &str) -> AdapterError {
    AdapterError::UnexpectedTensor { file: file.to_owned(), name: name.to_owned() }
}

fn read_tensor(
    file: &str,
    tensors: &SafeTensors,
    name: &str,
    shape: [usize; 2],
    values: &mut [f32],
) -> Result<(), AdapterError> {
    let (file, name) = (file.to_owned(), name.to_owned());
    let Ok(tensor) = tensors.tensor(&name) else {
        return Err(AdapterError::MissingTensor { file, name });
    };
    if tensor.shape() != shape {
        let (expected, found) = (shape.to_vec(), tensor.shape().to_vec());
        return Err(AdapterError::Shape { file, name, expected, found });
    }
    let tensor_type = match tensor.dtype() {
        Dtype::F32 => TensorType::F32,
        Dtype::F16 => TensorType::F16,
        Dtype::BF16 => TensorType::BF16,
        other => {
            return Err(AdapterError::TensorType { file, name, found: format!("{other:?}") });
        }
    };
    // The crate checked that the bytes are shape × type.
    tensor_type.dequantize(tensor.data(), values);
    if values.iter().all(|value| value.is_finite()) { Ok(()) } else { Err(AdapterError::NotFinite { file, name }) }
}

/// The safetensors file: header length, header, values. Written by hand because the crate keeps the metadata in a map of
/// random order, and the same adapter must give the same bytes.
fn weights_bytes(adapter: &Adapter, base: &BaseIdentity) -> Vec<u8> {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({ "format": "pt", BASE_KEY: base.sha256_hex() }));
    for pair in adapter.layout().pairs() {
        for (matrix, shape, range) in [('A', shapes(pair)[0], &pair.a), ('B', shapes(pair)[1], &pair.b)] {
            let offsets = [range.start * 4, range.end * 4];
            header.insert(name(pair, matrix), json!({ "dtype": "F32", "shape": shape, "data_offsets": offsets }));
        }
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut bytes = Vec::with_capacity(8 + header.len() + adapter.values().len() * 4);
    bytes.extend((header.len() as u64).to_le_bytes());
    bytes.extend(header);
    adapter.values().iter().for_each(|value| bytes.extend(value.to_le_bytes()));
    bytes
}

fn config_json(config: &LoraConfig, base: &BaseIdentity) -> Value {
    let target_modules: Vec<_> = config.target_modules.iter().map(|projection| projection.name()).collect();
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.model_name,
        "revision": null,
        "inference_mode": true,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "use_rslora": config.use_rslora,
        "use_dora": false,
        "fan_in_fan_out": false,
        "bias": "none",
        "modules_to_save": null,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": target_modules,
        BASE_KEY: base.sha256_hex(),
    })
}

fn io_error(path: &Path, source: io::Error) -> AdapterError {
    AdapterError::Io { file: path.display().to_string(), source }
}

/// Reads a regular file of at most `limit_bytes`, as it was when it was opened.
pub(super) fn read_capped(path: &Path, limit_bytes: u64) -> Result<Vec<u8>, AdapterError> {
    let file = path.display().to_string();
    let io = |source| io_error(path, source);
    // Asked by path first: opening a pipe would wait for its writer.
    if !fs::metadata(path).map_err(io)?.is_file() {
        return Err(AdapterError::NotARegularFile { file });
    }
    let opened = File::open(path).map_err(io)?;
    let len_bytes = opened.metadata().map_err(io)?.len();
    if len_bytes > limit_bytes {
        return Err(AdapterError::TooLarge { file, len_bytes, limit_bytes });
    }
    let mut bytes = Vec::new();
    opened.take(len_bytes).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

/// Writes to a temporary name, syncs, renames: the name holds the old file or the whole new one.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), AdapterError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = Path::new(&temporary);
    let write = || -> io::Result<()> {
        let mut file = File::create(temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(temporary, path)
    };
    write().map_err(|source| {
        let _ = fs::remove_file(temporary); // the first error is the one to report
        io_error(path, source)
    })
}

#[cfg(unix)]
fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Folders cannot be opened as files here; a rename is as durable as the system makes it.
#[cfg(not(unix))]
fn sync_dir(_: &Path) -> io::Result<()> {
    Ok(())
}
