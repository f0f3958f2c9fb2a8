//! The I-LoRA oracle: a few steps of the fast and the slow learner on fixed batches, for several λ and γ.

use std::path::{Path, PathBuf};

use mynah::learn::methods::Moment;
use mynah::learn::trainer::StepRows;
use mynah::learn::{Ilora, LearnerState, OptimizerConfig, Retention, Row, Trainer, TrainerConfig};
use mynah_models::adapter::{Adapter, read_peft};
use mynah_models::error::LoadError;
use mynah_models::{Model, Stop};
use serde_json::Value;

use super::case::{compare_adapter_values, open_f32, unknown_base};
use super::{Outcome, ReferenceError, Setting, name_of, read_json};
use crate::golden::{Comparison, Tensors};

/// Absolute, on losses in nats.
const LOSS: f64 = 2e-5;
/// Relative, on the consistency term.
const CONSISTENCY: f64 = 1e-4;
/// Below this the consistency term is rounding: it is the square of a difference near f32's resolution.
const CONSISTENCY_FLOOR: f32 = 1e-9;
/// Relative, on gradient norms.
const GRADIENT_NORM: f64 = 1e-4;

/// Compares every run of the folder.
///
/// # Errors
/// [`ReferenceError`] for files that are not what the form promises.
pub fn check(folder: &Path, setting: &Setting, report: &mut dyn FnMut(Outcome)) -> Result<(), ReferenceError> {
    let figures = read_json(&folder.join("ilora.json"))?;
    let name = format!("ilora {}", name_of(folder));
    let Some(case) = find_case(folder, figures["case"].as_str().unwrap_or_default()) else {
        report(Outcome::Skipped { name, reason: format!("no folder {} beside or above it", figures["case"]) });
        return Ok(());
    };
    let model = match open_f32(&case).and_then(|gguf| Ok(Model::load(&gguf, &setting.device)?)) {
        Ok(model) => model,
        Err(ReferenceError::Load(error @ LoadError::UnknownArchitecture { .. })) => {
            report(Outcome::Skipped { name, reason: error.to_string() });
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let batches = Batches::read(folder, figures["steps"].as_u64().unwrap_or(0))?;
    let start = read_peft(&case.join("adapter"), model.config(), &unknown_base())?.adapter;
    for (run, curves) in figures["runs"].as_object().into_iter().flatten() {
        let oracle = Oracle { folder, figures: &figures, run, curves };
        let comparison = oracle.compare(&model, start.clone(), &batches, setting)?;
        report(Outcome::Compared { name: format!("{name} {run}"), comparison });
    }
    Ok(())
}

/// The case's folder: its parents' children are searched, nearest first.
fn find_case(folder: &Path, case: &str) -> Option<PathBuf> {
    let folder = folder.canonicalize().ok()?;
    folder.ancestors().skip(2).take(2).map(|parent| parent.join(case)).find(|path| path.join("config.json").is_file())
}

/// Token rows, padding cut off, each with its prompt's length.
type TokenRows = Vec<(Vec<u32>, usize)>;

/// What is new and what is replayed, step by step.
struct Batches {
    steps: Vec<[TokenRows; 2]>,
}

impl Batches {
    fn read(folder: &Path, steps: u64) -> Result<Self, ReferenceError> {
        let tensors = Tensors::read(&folder.join("batches.safetensors"))?;
        let rows = |prefix: &str| -> Result<_, ReferenceError> {
            let (shape, ids) = tensors.integers(&format!("{prefix}.input_ids"))?;
            let (_, labels) = tensors.integers(&format!("{prefix}.labels"))?;
            let (_, mask) = tensors.integers(&format!("{prefix}.attention_mask"))?;
            let cols = shape[1];
            let row = |row: usize| {
                let len = mask[row * cols..][..cols].iter().filter(|mask| **mask == 1).count();
                let prompt_len = labels[row * cols..][..cols].iter().take_while(|label| **label < 0).count();
                (ids[row * cols..][..len].iter().map(|id| *id as u32).collect::<Vec<u32>>(), prompt_len)
            };
            Ok((0..shape[0]).map(row).collect())
        };
        let step =
            |k: u64| -> Result<_, ReferenceError> { Ok([rows(&format!("new.{k}"))?, rows(&format!("replay.{k}"))?]) };
        Ok(Self { steps: (0..steps).map(step).collect::<Result<_, _>>()? })
    }
}

fn as_rows(rows: &[(Vec<u32>, usize)]) -> Vec<Row<'_>> {
    rows.iter().map(|(tokens, prompt_len)| Row { tokens, prompt_len: *prompt_len }).collect()
}

/// One run's figures.
struct Oracle<'a> {
    folder: &'a Path,
    figures: &'a Value,
    run: &'a str,
    curves: &'a Value,
}

impl Oracle<'_> {
    fn compare(
        &self,
        model: &Model,
        start: Adapter,
        batches: &Batches,
        setting: &Setting,
    ) -> Result<Comparison, ReferenceError> {
        let malformed = |what: String| ReferenceError::Malformed { file: self.folder.join("ilora.json"), what };
        let numbers = self.run.strip_prefix('l').and_then(|rest| rest.split_once("_g"));
        let parsed = numbers.and_then(|(lambda, gamma)| Some((lambda.parse().ok()?, gamma.parse().ok()?)));
        let (lambda, gamma) =
            parsed.ok_or_else(|| malformed(format!("run {} is not named l<lambda>_g<gamma>", self.run)))?;
        let rate = self.figures["lr"].as_f64().unwrap_or(f64::NAN);
        let optimizer = OptimizerConfig {
            learning_rate: rate,
            weight_decay: self.figures["weight_decay"].as_f64().unwrap_or(f64::NAN),
            max_grad_norm: None,
            warmup_steps: 0,
            ..OptimizerConfig::default()
        };
        let method = Ilora { retention: Retention::Lambda(lambda), gamma, ..Ilora::DEFAULT };
        // The oracle's batches are computed whole.
        let trainer = Trainer::new(model, method, TrainerConfig { optimizer, micro_batch_tokens: usize::MAX });
        let mut state = LearnerState::new(start);
        let mut found: [Vec<f32>; 5] = Default::default();
        let steps_total = batches.steps.len() as u64;
        for (index, [new, replayed]) in batches.steps.iter().enumerate() {
            let rows = StepRows { new: as_rows(new), replayed: as_rows(replayed) };
            let moment = Moment { steps_done: index as u64 + 1, steps_total };
            let log = trainer.step(&mut state, &rows, moment, &Stop::new());
            let log = log.map_err(|error| ReferenceError::Text(format!("step {index}: {error}")))?;
            let values = [
                Some(log.cross_entropy),
                log.replayed_cross_entropy,
                // γ = 0 drops the pass that would measure it.
                log.consistency.or((gamma == 0.0).then_some(f64::NAN)),
                Some(log.loss),
                Some(log.grad_norm),
            ];
            for (curve, value) in found.iter_mut().zip(values) {
                curve.push(value.unwrap_or(0.0) as f32);
            }
        }
        let factor = setting.factor;
        let mut comparison = Comparison::default();
        for (name, quantity, found) in
            [("ce_new", "ce new", &found[0]), ("ce_replay", "ce replay", &found[1]), ("loss", "loss", &found[3])]
        {
            comparison.close(quantity, found, &self.curve(name), LOSS * factor);
        }
        if gamma != 0.0 {
            relative(&mut comparison, "cons", &found[2], &self.curve("cons"), CONSISTENCY * factor);
        }
        relative(&mut comparison, "grad norm", &found[4], &self.curve("grad_norm"), GRADIENT_NORM * factor);
        let expected = Tensors::read(&self.folder.join(format!("{}.safetensors", self.run)))?;
        for (learner, adapter) in [("fast", &state.fast), ("slow", &state.slow)] {
            let tensor = |name: &str| expected.floats(&format!("{learner}.{name}")).ok();
            compare_adapter_values(&mut comparison, adapter, tensor, rate, factor);
        }
        Ok(comparison)
    }

    fn curve(&self, name: &str) -> Vec<f32> {
        let values = self.curves[name].as_array().into_iter().flatten();
        values.map(|value| value.as_f64().unwrap_or(f64::NAN) as f32).collect()
    }
}

fn relative(comparison: &mut Comparison, quantity: &'static str, found: &[f32], expected: &[f32], allowed: f64) {
    let share =
        |(found, expected): (&f32, &f32)| f64::from((found - expected).abs() / expected.abs().max(CONSISTENCY_FLOOR));
    let worst = if found.len() == expected.len() {
        found
            .iter()
            .zip(expected)
            .map(share)
            .fold(0.0, |worst, share| if share.is_nan() { f64::INFINITY } else { worst.max(share) })
    } else {
        f64::INFINITY
    };
    comparison.distance(quantity, worst, allowed, expected.len());
}
