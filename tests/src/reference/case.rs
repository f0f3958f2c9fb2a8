//! A tiny model: logits, hidden states, losses, LoRA gradients, an AdamW trajectory and greedy ids, in every tensor type.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Int, Tensor, TensorData};
use mynah::learn::{AdamW, OptimizerConfig};
use mynah_models::adapter::{Adapter, BaseIdentity, PairLayout, read_peft};
use mynah_models::weights::Gguf;
use mynah_models::{DeviceAdapter, Model, Stop, TokenBatch};

use super::{Outcome, ReferenceError, Setting, name_of, read_json};
use crate::golden::{Comparison, Tensors};
use crate::tiny_model::gguf_from_folder;

/// Absolute, on logits and hidden states.
const LOGITS: f64 = 5e-5;
/// Absolute, on losses in nats.
const LOSS: f64 = 1e-5;
/// Of the largest gradient element of the case.
const GRADIENT: f64 = 3e-5;
/// Relative, on the norm of all gradients.
const GRADIENT_NORM: f64 = 1e-5;
/// Absolute, on the losses along an AdamW trajectory.
const ADAMW_LOSS: f64 = 2e-5;
/// Absolute, on adapter weights after AdamW.
pub(super) const ADAMW_WEIGHT: f64 = 1e-4;
/// One weight in so many may be further off: Adam divides a gradient near rounding error by its own size.
pub(super) const ADAMW_OUTLIERS: usize = 500;

/// Compares one case in every tensor type that it has figures for.
///
/// # Errors
/// [`ReferenceError`] for files that are not what the form promises.
pub fn check(folder: &Path, setting: &Setting, report: &mut dyn FnMut(Outcome)) -> Result<(), ReferenceError> {
    let manifest = read_json(&folder.join("manifest.json"))?;
    let tensors = Tensors::read(&folder.join("reference.safetensors"))?;
    let types = manifest["parameters"]["quant"].as_array().into_iter().flatten().filter_map(|name| name.as_str());
    for name in std::iter::once("f32").chain(types) {
        let title = format!("{} {name}", name_of(folder));
        let file = folder.join(format!("model-{name}.gguf"));
        let gguf = match (file.is_file(), name) {
            (true, _) => Gguf::open(&file),
            (false, "f32") if folder.join("model.safetensors").is_file() => Gguf::from_bytes(gguf_from_folder(folder)?),
            _ => {
                report(Outcome::Skipped { name: title, reason: format!("no {}", file.display()) });
                continue;
            }
        };
        let model = match gguf.and_then(|gguf| Model::load(&gguf, &setting.device)) {
            Ok(model) => model,
            Err(error @ mynah_models::error::LoadError::UnknownArchitecture { .. }) => {
                report(Outcome::Skipped { name: title, reason: error.to_string() });
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let case = Case { folder, tensors: &tensors, manifest: &manifest, model: &model, setting, type_name: name };
        report(Outcome::Compared { name: title, comparison: case.compare()? });
    }
    Ok(())
}

/// One case in one tensor type.
struct Case<'a> {
    folder: &'a Path,
    tensors: &'a Tensors,
    manifest: &'a serde_json::Value,
    model: &'a Model,
    setting: &'a Setting,
    type_name: &'a str,
}

impl Case<'_> {
    /// Name of a tensor of this type: those of f32 have no prefix.
    fn of_type(&self, name: &str) -> String {
        if self.type_name == "f32" { name.to_owned() } else { format!("{}.{name}", self.type_name) }
    }

    fn compare(&self) -> Result<Comparison, ReferenceError> {
        let mut comparison = Comparison::default();
        let batch = ScoredBatch::read(self.tensors, "")?;
        self.compare_base(&batch, &mut comparison)?;
        let adapter = read_peft(&self.folder.join("adapter"), self.model.config(), &unknown_base())?.adapter;
        self.compare_adapter(&batch, &adapter, &mut comparison)?;
        if self.type_name == "f32" {
            self.compare_adamw(&batch, adapter, &mut comparison)?;
            self.compare_greedy(&mut comparison)?;
        }
        Ok(comparison)
    }

    fn compare_base(&self, batch: &ScoredBatch, comparison: &mut Comparison) -> Result<(), ReferenceError> {
        let factor = self.setting.factor;
        let layers = self.model.config().num_hidden_layers;
        let depths: Vec<usize> = (0..=layers).collect();
        let hidden = self.model.hidden_states(&batch.tokens, &depths, None, &Stop::new())?;
        if self.type_name == "f32" {
            for (depth, hidden) in hidden.iter().enumerate() {
                let found = batch.real_rows(&self.setting.device.read(hidden.clone())?);
                let expected = batch.real_rows(self.tensors.floats(&format!("hidden.{depth}"))?);
                comparison.close("hidden", &found, &expected, LOGITS * factor);
            }
        }
        let last = hidden[layers].clone();
        let logits = self.setting.device.read(self.model.logits(last.clone()))?;
        let expected = batch.real_rows(self.tensors.floats(&self.of_type("logits"))?);
        comparison.close("logits", &batch.real_rows(&logits), &expected, LOGITS * factor);
        let loss = self.setting.device.read(batch.loss(self.model, last)?)?;
        comparison.close("loss", &loss, self.tensors.floats(&self.of_type("loss"))?, LOSS * factor);
        Ok(())
    }

    fn compare_adapter(
        &self,
        batch: &ScoredBatch,
        adapter: &Adapter,
        comparison: &mut Comparison,
    ) -> Result<(), ReferenceError> {
        let factor = self.setting.factor;
        let on_device = self.model.upload(adapter)?;
        if self.type_name == "f32" {
            let hidden = self.model.forward(&batch.tokens, Some(&on_device), &Stop::new())?;
            let logits = self.setting.device.read(self.model.logits(hidden))?;
            let expected = batch.real_rows(self.tensors.floats("lora.logits")?);
            comparison.close("lora.logits", &batch.real_rows(&logits), &expected, LOGITS * factor);
        }
        let (loss, gradient) = batch.loss_and_gradient(self.model, &on_device)?;
        comparison.close("lora.loss", &[loss], self.tensors.floats(&self.of_type("lora.loss"))?, LOSS * factor);
        let prefix = self.of_type("lora.grad.");
        let largest =
            self.tensors.with_prefix(&prefix).flat_map(|(_, values)| values).fold(0.0f32, |m, v| m.max(v.abs()));
        let mut named = 0;
        for pair in adapter.layout().pairs() {
            for (name, range) in peft_names(pair) {
                if let Ok(expected) = self.tensors.floats(&format!("{prefix}{name}")) {
                    comparison.close("lora.grad", &gradient[range], expected, GRADIENT * f64::from(largest) * factor);
                    named += 1;
                }
            }
        }
        if named == 0 {
            return Err(ReferenceError::Malformed {
                file: self.folder.to_owned(),
                what: format!("no tensor {prefix}…"),
            });
        }
        if let (true, Ok(expected)) = (self.type_name == "f32", self.tensors.floats("lora.grad_norm")) {
            let norm = gradient.iter().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>().sqrt() as f32;
            comparison.close("lora.grad_norm", &[norm], expected, GRADIENT_NORM * f64::from(expected[0]) * factor);
        }
        Ok(())
    }

    fn compare_adamw(
        &self,
        batch: &ScoredBatch,
        mut adapter: Adapter,
        comparison: &mut Comparison,
    ) -> Result<(), ReferenceError> {
        let parameters = &self.manifest["parameters"];
        let rate = parameters["lr"].as_f64().unwrap_or(1e-2);
        let config = OptimizerConfig {
            learning_rate: rate,
            weight_decay: parameters["weight_decay"].as_f64().unwrap_or(0.0),
            max_grad_norm: None,
            warmup_steps: 0,
            ..OptimizerConfig::default()
        };
        let expected = self.tensors.floats("adamw.loss")?;
        let mut optimizer = AdamW::new(adapter.values().len());
        let mut losses = Vec::new();
        for step in 0..expected.len() {
            let (loss, gradient) = batch.loss_and_gradient(self.model, &self.model.upload(&adapter)?)?;
            losses.push(loss);
            if step + 1 < expected.len() {
                optimizer.step(adapter.values_mut(), &gradient, rate, &config);
            }
        }
        comparison.close("adamw.loss", &losses, expected, ADAMW_LOSS * self.setting.factor);
        compare_adapter_values(
            comparison,
            &adapter,
            |name| self.tensors.floats(&format!("adamw.{name}")).ok(),
            rate,
            self.setting.factor,
        );
        Ok(())
    }

    fn compare_greedy(&self, comparison: &mut Comparison) -> Result<(), ReferenceError> {
        let expected = self.tensors.ids("greedy_ids")?;
        let prompt = self.manifest["parameters"]["prompt"].as_u64().unwrap_or(4) as usize;
        let mut cache = self.model.new_cache(expected.len());
        let mut ids = expected[..prompt].to_vec();
        let mut logits = self.model.decode(&mut cache, &ids, None, &Stop::new())?;
        while ids.len() < expected.len() {
            let next = argmax(&logits);
            ids.push(next);
            if ids.len() < expected.len() {
                logits = self.model.decode(&mut cache, &[next], None, &Stop::new())?;
            }
        }
        comparison.equal("greedy_ids", &ids, &expected);
        Ok(())
    }
}

/// Golden folders of tiny models do not say which file their adapter belongs to.
pub(super) fn unknown_base() -> BaseIdentity {
    BaseIdentity { model_name: String::new(), sha256: [0; 32] }
}

/// The likeliest id; the first where several are equal.
pub(super) fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().reduce(|best, next| if next.1 > best.1 { next } else { best });
    best.map_or(0, |(index, _)| index as u32)
}

/// PEFT's names of a pair's two tensors, and where they lie in the flat adapter.
pub(super) fn peft_names(pair: &PairLayout) -> [(String, std::ops::Range<usize>); 2] {
    let block = match pair.projection.name() {
        name @ ("q_proj" | "k_proj" | "v_proj" | "o_proj") => format!("self_attn.{name}"),
        name => format!("mlp.{name}"),
    };
    let name = |half: &str| format!("base_model.model.model.layers.{}.{block}.lora_{half}.weight", pair.layer);
    [(name("A"), pair.a.clone()), (name("B"), pair.b.clone())]
}

/// Adapter weights after AdamW: within the tolerance but for a few, which stay within two steps.
pub(super) fn compare_adapter_values<'a>(
    comparison: &mut Comparison,
    adapter: &Adapter,
    expected: impl Fn(&str) -> Option<&'a [f32]>,
    rate: f64,
    factor: f64,
) {
    let mut distances = Vec::new();
    for (name, range) in adapter.layout().pairs().iter().flat_map(peft_names) {
        match expected(&name) {
            Some(values) if values.len() == range.len() => {
                distances.extend(adapter.values()[range].iter().zip(values).map(|(a, b)| f64::from((a - b).abs())));
            }
            _ => distances.push(f64::INFINITY),
        }
    }
    distances.sort_by(f64::total_cmp);
    let within = distances.len() - distances.len() / ADAMW_OUTLIERS;
    let at = |index: usize| distances.get(index.saturating_sub(1)).copied().unwrap_or(f64::INFINITY);
    comparison.distance("adamw", at(within), ADAMW_WEIGHT * factor, within);
    comparison.distance("adamw outliers", at(distances.len()), 2.0 * rate * factor, distances.len() - within);
}

/// A batch with its scored positions.
pub(super) struct ScoredBatch {
    pub(super) tokens: TokenBatch,
    /// Rows of the hidden states that predict a scored token, and that token.
    scored: Vec<i32>,
    targets: Vec<u32>,
    mask: Vec<i64>,
}

impl ScoredBatch {
    /// Reads `input_ids`, `labels` and `attention_mask` under a prefix.
    pub(super) fn read(tensors: &Tensors, prefix: &str) -> Result<Self, ReferenceError> {
        let (shape, _) = tensors.integers(&format!("{prefix}input_ids"))?;
        let tokens = TokenBatch::new(tensors.ids(&format!("{prefix}input_ids"))?, shape[0], shape[1])?;
        let (_, labels) = tensors.integers(&format!("{prefix}labels"))?;
        let (_, mask) = tensors.integers(&format!("{prefix}attention_mask"))?;
        let (mut scored, mut targets) = (Vec::new(), Vec::new());
        for (position, &label) in labels.iter().enumerate() {
            if position % shape[1] > 0 && label >= 0 {
                scored.push(position as i32 - 1);
                targets.push(label as u32);
            }
        }
        Ok(Self { tokens, scored, targets, mask: mask.to_vec() })
    }

    /// The rows of `[rows · cols, width]` values that are no padding.
    pub(super) fn real_rows(&self, values: &[f32]) -> Vec<f32> {
        let width = values.len() / self.mask.len();
        let rows = values.chunks_exact(width).zip(&self.mask);
        rows.filter(|(_, mask)| **mask == 1).flat_map(|(row, _)| row.iter().copied()).collect()
    }

    /// Mean negative log-likelihood over the scored positions.
    pub(super) fn loss(&self, model: &Model, hidden: Tensor<2>) -> Result<Tensor<1>, ReferenceError> {
        let scored =
            Tensor::<1, Int>::from_data(TensorData::new(self.scored.clone(), [self.scored.len()]), &hidden.device());
        Ok(model.token_nll(hidden.select(0, scored), &self.targets, &Stop::new())?.mean())
    }

    pub(super) fn loss_and_gradient(
        &self,
        model: &Model,
        adapter: &DeviceAdapter,
    ) -> Result<(f32, Vec<f32>), ReferenceError> {
        let (depth, stop) = (model.config().num_hidden_layers, Stop::new());
        let tape = model.record(&self.tokens, &[depth], adapter, depth, &stop)?;
        let loss = self.loss(model, tape.hidden()[0].clone())?;
        let gradient = tape.gradients(&loss)?;
        Ok((model.device().read(loss.inner())?[0], gradient))
    }
}

/// The model of a case folder in f32, from its file or from its safetensors.
pub(super) fn open_f32(folder: &Path) -> Result<Arc<Gguf>, ReferenceError> {
    let file = folder.join("model-f32.gguf");
    Ok(if file.is_file() { Gguf::open(&file)? } else { Gguf::from_bytes(gguf_from_folder(folder)?)? })
}
