//! The I-LoRA oracle: some steps of fast and slow learner on a tiny model, taken by the runtime's own trainer.

use std::path::{Path, PathBuf};

use mynah::learn::{
    ConsistencyForm, HiddenLayers, Ilora, LearnerState, Moment, OptimizerConfig, Retention, Row, StepLog, StepRows,
    TokenScope, Trainer, TrainerConfig,
};
use mynah_models::adapter::{Adapter, read_peft};
use mynah_models::error::LoadError;
use mynah_models::{Model, Stop};
use serde_json::Value;

use super::case::{ScoredBatch, compare_adapter_values, open_f32, unknown_base};
use super::{Outcome, ReferenceError, Setting, name_of, read_json};
use crate::golden::{Comparison, Tensors};

/// Absolute, on losses in nats.
const LOSS: f64 = 2e-5;
/// Relative, on the consistency.
const CONSISTENCY: f64 = 1e-4;
/// Relative, on the norm of the gradient.
const GRADIENT_NORM: f64 = 1e-4;

/// Compares every run of the oracle in `folder`; its tiny model is found by its name beside or above it.
///
/// # Errors
/// [`ReferenceError`] for files that are not what the form promises.
pub fn check(folder: &Path, setting: &Setting, report: &mut dyn FnMut(Outcome)) -> Result<(), ReferenceError> {
    let oracle = read_json(&folder.join("ilora.json"))?;
    let title = format!("ilora {}", name_of(folder));
    let Some(case) = model_folder(folder, oracle["case"].as_str().unwrap_or_default()) else {
        let reason = format!("its model's folder {} is neither beside nor above it", oracle["case"]);
        report(Outcome::Skipped { name: title, reason });
        return Ok(());
    };
    let model = match Model::load(&open_f32(&case)?, &setting.device) {
        Ok(model) => model,
        Err(error @ LoadError::UnknownArchitecture { .. }) => {
            report(Outcome::Skipped { name: title, reason: error.to_string() });
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let start = read_peft(&case.join("adapter"), model.config(), &unknown_base())?.adapter;
    let batches = Tensors::read(&folder.join("batches.safetensors"))?;
    let oracle = Oracle { folder, oracle: &oracle, batches: &batches, model: &model, start: &start, setting };
    for (name, run) in oracle.runs()? {
        report(Outcome::Compared { name: format!("{title} {name}"), comparison: oracle.compare(name, run)? });
    }
    Ok(())
}

/// The folder of the tiny model: `../../NAME` in the reference set, `../NAME` where the two lie side by side.
fn model_folder(folder: &Path, case: &str) -> Option<PathBuf> {
    let above = folder.ancestors().skip(1).take(2).map(|above| above.join(case));
    above.filter(|found| found != folder).find(|found| found.join("model.safetensors").is_file())
}

struct Oracle<'a> {
    folder: &'a Path,
    oracle: &'a Value,
    batches: &'a Tensors,
    model: &'a Model,
    start: &'a Adapter,
    setting: &'a Setting,
}

impl Oracle<'_> {
    fn runs(&self) -> Result<impl Iterator<Item = (&String, &Value)>, ReferenceError> {
        let runs = self.oracle["runs"].as_object().ok_or_else(|| self.malformed("no runs"))?;
        Ok(runs.iter())
    }

    /// Takes the steps of one run and compares what each measured, and both adapters at the end.
    fn compare(&self, name: &str, run: &Value) -> Result<Comparison, ReferenceError> {
        let [lambda, gamma] = lambda_and_gamma(name).ok_or_else(|| self.malformed("a run that is no l…_g…"))?;
        let method = Ilora {
            retention: Retention::Lambda(lambda),
            gamma,
            form: ConsistencyForm::TwoSided,
            layers: HiddenLayers::Last,
            scope: TokenScope::All,
            ..Ilora::default()
        };
        let trainer =
            Trainer::new(self.model, method, TrainerConfig { optimizer: self.optimizer(), ..Default::default() });
        let mut state = LearnerState::new(self.start.clone());
        let mut comparison = Comparison::default();
        let steps = self.number("steps") as u64;
        for step in 0..steps {
            let [new, replayed] = [self.rows("new", step)?, self.rows("replay", step)?];
            let rows = StepRows { new: as_rows(&new), replayed: as_rows(&replayed) };
            let moment = Moment { steps_done: step + 1, steps_total: steps };
            let log = trainer.step(&mut state, &rows, moment, &Stop::new())?;
            self.compare_step(&mut comparison, run, step as usize, &log);
        }
        self.compare_end(&mut comparison, name, run, &state)?;
        Ok(comparison)
    }

    fn compare_step(&self, comparison: &mut Comparison, run: &Value, step: usize, log: &StepLog) {
        let factor = self.setting.factor;
        let expected = |quantity: &str| run[quantity][step].as_f64().unwrap_or(f64::NAN);
        let mut close = |quantity: &'static str, found: f64, relative: bool, allowed: f64| {
            let expected = expected(quantity);
            let scale = if relative { expected.abs().max(f64::MIN_POSITIVE) } else { 1.0 };
            let distance = (found - expected).abs() / scale;
            let distance = if distance.is_nan() { f64::INFINITY } else { distance };
            comparison.distance(quantity, distance, allowed * factor, 1);
        };
        close("ce_new", log.cross_entropy, false, LOSS);
        close("ce_replay", log.replayed_cross_entropy.unwrap_or(f64::NAN), false, LOSS);
        close("loss", log.loss, false, LOSS);
        close("grad_norm", log.grad_norm, true, GRADIENT_NORM);
        // Without gamma there is no slow pass, and nothing to compare with.
        if let Some(found) = log.consistency {
            close("cons", found, expected("cons") > 0.0, CONSISTENCY);
        }
    }

    fn compare_end(
        &self,
        comparison: &mut Comparison,
        name: &str,
        run: &Value,
        state: &LearnerState,
    ) -> Result<(), ReferenceError> {
        let factor = self.setting.factor;
        let tensors = Tensors::read(&self.folder.join(format!("{name}.safetensors")))?;
        let batch = ScoredBatch::read(self.batches, "replay.0.")?;
        for (learner, adapter) in [("fast", &state.fast), ("slow", &state.slow)] {
            let expected = |name: &str| tensors.floats(&format!("{learner}.{name}")).ok();
            compare_adapter_values(comparison, adapter, expected, self.number("lr"), factor);
            let on_device = self.model.upload(adapter, false)?;
            let hidden = self.model.forward(&batch.tokens, Some(&on_device), &Stop::new())?;
            let found = self.setting.device.read(batch.loss(self.model, hidden)?)?;
            let expected = run["final_ce_replay0"][learner].as_f64().unwrap_or(f64::NAN) as f32;
            comparison.close("final_ce_replay0", &found, &[expected], LOSS * factor);
        }
        Ok(())
    }

    fn optimizer(&self) -> OptimizerConfig {
        OptimizerConfig {
            learning_rate: self.number("lr"),
            weight_decay: self.number("weight_decay"),
            max_grad_norm: None,
            warmup_steps: 0,
            ..OptimizerConfig::default()
        }
    }

    fn number(&self, key: &str) -> f64 {
        self.oracle[key].as_f64().unwrap_or(f64::NAN)
    }

    /// The rows of one batch without their padding, and how many of their tokens are not scored.
    fn rows(&self, kind: &str, step: u64) -> Result<Vec<(Vec<u32>, usize)>, ReferenceError> {
        let (shape, mask) = self.batches.integers(&format!("{kind}.{step}.attention_mask"))?;
        let (_, labels) = self.batches.integers(&format!("{kind}.{step}.labels"))?;
        let ids = self.batches.ids(&format!("{kind}.{step}.input_ids"))?;
        let rows = (0..shape[0]).map(|row| {
            let row = row * shape[1]..(row + 1) * shape[1];
            let len = mask[row.clone()].iter().filter(|mask| **mask == 1).count();
            let prompt_len = labels[row.clone()].iter().take_while(|label| **label < 0).count();
            (ids[row][..len].to_vec(), prompt_len)
        });
        Ok(rows.collect())
    }

    fn malformed(&self, what: &str) -> ReferenceError {
        ReferenceError::Malformed { file: self.folder.join("ilora.json"), what: what.to_owned() }
    }
}

fn as_rows(rows: &[(Vec<u32>, usize)]) -> Vec<Row<'_>> {
    rows.iter().map(|(tokens, prompt_len)| Row { tokens, prompt_len: *prompt_len }).collect()
}

/// The constants in a run's name, as in `l0.99_g1`.
fn lambda_and_gamma(name: &str) -> Option<[f64; 2]> {
    let (lambda, gamma) = name.strip_prefix('l')?.split_once("_g")?;
    Some([lambda.parse().ok()?, gamma.parse().ok()?])
}
