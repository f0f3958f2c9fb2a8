//! Figures of a real model: SmolLM2-135M-Instruct in Q4_1, made with torch from the dequantized weights.

use std::path::Path;

use mynah::learn::{AdamW, OptimizerConfig};
use mynah_models::adapter::{Adapter, read_peft};
use mynah_models::tokenizer::{ParseSpecial, Tokenizer};
use mynah_models::{Model, Stop, TokenBatch};
use serde_json::Value;

use super::case::{ScoredBatch, peft_names, unknown_base};
use super::{Outcome, ReferenceError, Setting, name_of, read_json, smollm2_file};
use crate::golden::{Comparison, Tensors};

/// Absolute, on logits and on negative log-likelihoods in nats.
const LOGIT: f64 = 3e-4;
/// Absolute, on the loss of a batch.
const LOSS: f64 = 1e-4;
/// Relative, on gradient norms; of a tensor's largest element, on its elements.
const GRADIENT: f64 = 1e-3;
/// Absolute, on losses along an AdamW trajectory.
const ADAMW_LOSS: f64 = 1e-3;

/// Compares the folder.
///
/// # Errors
/// [`ReferenceError`] for files that are not what the form promises.
pub fn check(folder: &Path, setting: &Setting, report: &mut dyn FnMut(Outcome)) -> Result<(), ReferenceError> {
    let figures = read_json(&folder.join("reference.json"))?;
    let name = name_of(folder);
    let gguf = match smollm2_file(setting) {
        Ok(gguf) => gguf,
        Err(reason) => {
            report(Outcome::Skipped { name, reason });
            return Ok(());
        }
    };
    let digest: String = gguf.digest().iter().map(|byte| format!("{byte:02x}")).collect();
    if figures["gguf"]["sha256"] != digest.as_str() {
        report(Outcome::Skipped { name, reason: format!("its figures belong to a file other than {}", gguf.file()) });
        return Ok(());
    }
    let model = Model::load(gguf, &setting.device)?;
    let tensors = Tensors::read(&folder.join("reference.safetensors"))?;
    let mut comparison = Comparison::default();
    compare_texts(&model, &figures, &tensors, setting, &mut comparison)?;
    // The adapter is 5 MB: a copy of the folder may come without it, and has then no figures of learning to compare.
    if folder.join("adapter").is_dir() {
        let adapter = read_peft(&folder.join("adapter"), model.config(), &unknown_base())?.adapter;
        compare_lora(&model, &figures, &tensors, adapter, setting, &mut comparison)?;
    }
    report(Outcome::Compared { name, comparison });
    Ok(())
}

fn compare_texts(
    model: &Model,
    figures: &Value,
    tensors: &Tensors,
    setting: &Setting,
    comparison: &mut Comparison,
) -> Result<(), ReferenceError> {
    let tokenizer = Tokenizer::from_gguf(model.gguf()).map_err(|error| ReferenceError::Text(error.to_string()))?;
    let texts = figures["texts"].as_array().map_or(&[][..], Vec::as_slice);
    for (index, text) in texts.iter().enumerate() {
        let of = |name: &str| format!("text.{index}.{name}");
        let ids = tensors.ids(&of("ids"))?;
        let encoded = tokenizer.encode(text["text"].as_str().unwrap_or_default(), ParseSpecial::No);
        comparison.equal("ids", &encoded, &ids);
        let batch = TokenBatch::new(ids.clone(), 1, ids.len())?;
        let hidden = model.forward(&batch, None, &Stop::new())?;
        let logits = setting.device.read(model.logits(hidden.clone()))?;
        let (_, top_ids) = tensors.integers(&of("top_ids"))?;
        let vocab = model.config().vocab_size;
        let per_position = top_ids.len() / ids.len();
        let top: Vec<f32> =
            top_ids.iter().enumerate().map(|(i, &id)| logits[i / per_position * vocab + id as usize]).collect();
        comparison.close("top logits", &top, tensors.floats(&of("top_logits"))?, LOGIT * setting.factor);
        let sums: Vec<f32> = logits.chunks_exact(vocab).map(log_sum_exp).collect();
        comparison.close("logsumexp", &sums, tensors.floats(&of("logsumexp"))?, LOGIT * setting.factor);
        let [positions, width] = hidden.dims();
        let nll = setting.device.read(model.token_nll(
            hidden.slice([0..positions - 1, 0..width]),
            &ids[1..],
            &Stop::new(),
        )?)?;
        comparison.close("nll", &nll, tensors.floats(&of("nll"))?, LOGIT * setting.factor);
        let mean = nll.iter().map(|nll| f64::from(*nll)).sum::<f64>() / nll.len() as f64;
        let expected = text["mean_nll"].as_f64().unwrap_or(f64::NAN);
        comparison.close("mean nll", &[mean as f32], &[expected as f32], LOSS * setting.factor);
    }
    Ok(())
}

fn log_sum_exp(logits: &[f32]) -> f32 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    largest + sum.ln() as f32
}

fn compare_lora(
    model: &Model,
    figures: &Value,
    tensors: &Tensors,
    mut adapter: Adapter,
    setting: &Setting,
    comparison: &mut Comparison,
) -> Result<(), ReferenceError> {
    let factor = setting.factor;
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN) as f32;
    let batch = ScoredBatch::read(tensors, "chat.")?;
    let lora = &figures["lora"];
    let base = model.forward(&batch.tokens, None, &Stop::new())?;
    let base_loss = setting.device.read(batch.loss(model, base)?)?;
    comparison.close("base loss", &base_loss, &[number(&lora["base_loss"])], LOSS * factor);

    let adamw = &figures["adamw"];
    let expected: Vec<f32> = adamw["losses"].as_array().into_iter().flatten().map(number).collect();
    let rate = f64::from(number(&adamw["lr"]));
    let config = OptimizerConfig {
        learning_rate: rate,
        weight_decay: f64::from(number(&adamw["weight_decay"])),
        max_grad_norm: None,
        warmup_steps: 0,
        ..OptimizerConfig::default()
    };
    let mut optimizer = AdamW::new(adapter.values().len());
    let mut losses = Vec::new();
    for step in 0..expected.len() {
        let (loss, gradient) = batch.loss_and_gradient(model, &model.upload(&adapter)?)?;
        losses.push(loss);
        if step == 0 {
            comparison.close("lora.loss", &[loss], &[number(&lora["loss"])], LOSS * factor);
            compare_gradients(&adapter, &gradient, lora, tensors, factor, comparison);
        }
        if step + 1 < expected.len() {
            optimizer.step(adapter.values_mut(), &gradient, rate, &config);
        }
    }
    comparison.close("adamw.losses", &losses, &expected, ADAMW_LOSS * factor);
    for (name, range) in adapter.layout().pairs().iter().flat_map(peft_names) {
        relative(
            comparison,
            "adamw norms",
            norm(&adapter.values()[range]),
            number(&adamw["final_norms"][&name]),
            factor,
        );
    }
    Ok(())
}

fn compare_gradients(
    adapter: &Adapter,
    gradient: &[f32],
    lora: &Value,
    tensors: &Tensors,
    factor: f64,
    comparison: &mut Comparison,
) {
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN) as f32;
    relative(comparison, "grad norm", norm(gradient), number(&lora["grad_norm"]), factor);
    for (name, range) in adapter.layout().pairs().iter().flat_map(peft_names) {
        let found = &gradient[range];
        relative(comparison, "grad norms", norm(found), number(&lora["grad_norms"][&name]), factor);
        if let Ok(expected) = tensors.floats(&format!("lora.grad.{name}")) {
            let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let shares: Vec<f32> = found.iter().map(|v| v / largest).collect();
            let expected: Vec<f32> = expected.iter().map(|v| v / largest).collect();
            comparison.close("grad elements", &shares, &expected, GRADIENT * factor);
        }
    }
}

fn relative(comparison: &mut Comparison, quantity: &'static str, found: f32, expected: f32, factor: f64) {
    comparison.close(quantity, &[found / expected], &[1.0], GRADIENT * factor);
}

fn norm(values: &[f32]) -> f32 {
    values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt() as f32
}
