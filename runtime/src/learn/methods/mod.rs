//! What makes one continual-learning method differ from another: its loss and what happens after a step.
//!
//! One method a file. All else, batches, gradients, AdamW, commits, is the trainer's and the same for all.

mod er;
mod ilora;
mod sequential;

use std::ops::Range;

use burn::tensor::Tensor;
use mynah_models::adapter::Adapter;
use mynah_models::{ComputeError, Stop, Tape};
use serde::{Deserialize, Serialize};

pub use er::Er;
pub use ilora::{Cadence, Ilora, Retention};
pub use sequential::Sequential;

use super::batch::{Batch, Row};
use super::learners::Learners;
use super::loss::HiddenLayers;
use super::trainer::StepRows;

/// A setting of learning that is out of its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("learning: `{setting}` is {found}, expected {expected}")]
#[non_exhaustive]
pub struct SettingError {
    /// Name of the field.
    pub setting: &'static str,
    /// Its value.
    pub found: f64,
    /// The range in words.
    pub expected: &'static str,
}

impl SettingError {
    /// An error unless `found` is in range.
    pub(crate) fn unless(
        in_range: bool,
        setting: &'static str,
        found: f64,
        expected: &'static str,
    ) -> Result<(), Self> {
        if in_range { Ok(()) } else { Err(Self { setting, found, expected }) }
    }

    pub(crate) fn check_replay_ratio(ratio: f64) -> Result<(), Self> {
        Self::unless((0.0..=64.0).contains(&ratio), "replay_ratio", ratio, "0 to 64")
    }
}

/// A part of a step's examples, as much as is computed at once.
#[derive(Debug, Clone, PartialEq)]
pub struct MicroBatch {
    /// The rows: what the run is to learn, then what the memory of earlier runs gives.
    pub batch: Batch,
    /// How many of its rows are new.
    pub new_rows: usize,
    /// How many of its scored positions are of new rows; the others are of replayed ones.
    pub new_positions: usize,
    /// Which of the step's replayed tokens are in it; its last tokens.
    pub replayed: Range<usize>,
    /// What the whole step has.
    pub step: StepTotals,
}

impl MicroBatch {
    /// Tokens of its new rows.
    pub fn new_tokens(&self) -> usize {
        self.batch.tokens.ids().len() - self.replayed.len()
    }
}

/// Counts over a whole step: the divisors of its means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepTotals {
    /// Scored positions of the new rows.
    pub new_positions: usize,
    /// Scored positions of the replayed rows; 0 where nothing is replayed.
    pub replayed_positions: usize,
    /// Tokens of the replayed rows.
    pub replayed_tokens: usize,
}

impl StepTotals {
    /// Counts the rows of a step.
    pub fn of(rows: &StepRows<'_>) -> Self {
        let scored = |rows: &[Row<'_>]| rows.iter().map(|row| row.scored().len()).sum();
        Self {
            new_positions: scored(&rows.new),
            replayed_positions: scored(&rows.replayed),
            replayed_tokens: rows.replayed.iter().map(|row| row.tokens.len()).sum(),
        }
    }
}

/// What one micro-batch adds to the loss of its step.
#[derive(Debug)]
pub struct Loss<'a> {
    /// The pass that it was computed from.
    pub tape: Tape<'a>,
    /// The share of the loss to go backwards from, `[1]`.
    pub total: Tensor<1>,
    /// The share of the mean cross entropy of the new rows, `[1]`, before weighting, where it has any.
    pub cross_entropy: Option<Tensor<1>>,
    /// The same of the replayed rows.
    pub replayed_cross_entropy: Option<Tensor<1>>,
    /// The share of the mean consistency, `[1]`, before weighting, where the method has one.
    pub consistency: Option<Tensor<1>>,
    /// Negative log likelihood of each scored token of the fast learner in nats, `[positions]`.
    pub token_nll: Tensor<1>,
}

/// Where a run is after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Steps taken, this one included.
    pub steps_done: u64,
    /// Steps of the run in all.
    pub steps_total: u64,
}

/// A continual-learning method. Holds settings, no state: what it keeps between steps is the slow adapter.
pub trait ContinualMethod {
    /// The name on the command line and in revisions.
    fn name(&self) -> &'static str;

    /// Replayed examples per new one, as far as the memory has them; 0 replays nothing.
    fn replay_ratio(&self) -> f64;

    /// Whether [`ContinualMethod::loss`] will compute with the slow adapter.
    fn asks_slow(&self) -> bool {
        false
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`SettingError`] names the first that is out of range.
    fn check(&self) -> Result<(), SettingError>;

    /// The share of one micro-batch in the loss of its step. The shares of a step add up to its loss.
    ///
    /// # Errors
    /// [`ComputeError`], a cancel through `stop` included.
    fn loss<'s>(
        &self,
        learners: &'s Learners<'_>,
        micro: &MicroBatch,
        stop: &'s Stop,
    ) -> Result<Loss<'s>, ComputeError>;

    /// Updates what is served, after the optimizer has moved `fast`.
    fn after_step(&self, moment: Moment, fast: &Adapter, slow: &mut Adapter);
}

/// Cross entropy of a micro-batch, weighted: new and replayed examples count half each, or new ones alone in full.
///
/// # Errors
/// As [`ContinualMethod::loss`].
pub(crate) fn replay_loss<'s>(
    learners: &'s Learners<'_>,
    micro: &MicroBatch,
    stop: &'s Stop,
) -> Result<Loss<'s>, ComputeError> {
    let depths = HiddenLayers::Last.depths(learners.num_hidden_layers());
    cross_entropy(learners, micro, learners.fast(&micro.batch, &depths, stop)?, stop)
}

/// [`replay_loss`] from a pass whose last hidden states are those after the final norm.
pub(crate) fn cross_entropy<'s>(
    learners: &'s Learners<'_>,
    micro: &MicroBatch,
    tape: Tape<'s>,
    stop: &Stop,
) -> Result<Loss<'s>, ComputeError> {
    let hidden = &tape.hidden()[tape.hidden().len() - 1];
    let StepTotals { new_positions, replayed_positions, .. } = micro.step;
    let nll = learners.token_nll(hidden, &micro.batch, stop)?;
    let mean = |positions: Range<usize>, of_step: usize| {
        (!positions.is_empty()).then(|| nll.clone().slice([positions]).sum() / of_step as f64)
    };
    let cross_entropy = mean(0..micro.new_positions, new_positions);
    let replayed_cross_entropy = mean(micro.new_positions..micro.batch.positions.len(), replayed_positions);
    let weight = if new_positions > 0 && replayed_positions > 0 { 0.5 } else { 1.0 };
    let total = [&cross_entropy, &replayed_cross_entropy].into_iter().flatten().cloned().reduce(|sum, part| sum + part);
    // A part of a step in which nothing is scored.
    let total = total.unwrap_or_else(|| hidden.clone().slice([0..1, 0..1]).reshape([1]) * 0.0) * weight;
    let [cross_entropy, replayed_cross_entropy] =
        [cross_entropy, replayed_cross_entropy].map(|term| term.map(Tensor::inner));
    Ok(Loss { tape, total, cross_entropy, replayed_cross_entropy, consistency: None, token_nll: nll.inner() })
}

/// The methods there are, with their settings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Method {
    /// Fine-tuning on what is new, and nothing else: the lower bound.
    Sequential(Sequential),
    /// Experience replay.
    Er(Er),
    /// Interpolation-based LoRA: the default.
    Ilora(Ilora),
}

impl Method {
    /// Every method with its default settings.
    pub const ALL: [Self; 3] = [Self::Sequential(Sequential), Self::Er(Er::DEFAULT), Self::Ilora(Ilora::DEFAULT)];

    /// The method of that name, with its default settings.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }

    /// The names of [`Method::ALL`].
    pub fn names() -> Vec<&'static str> {
        Self::ALL.iter().map(ContinualMethod::name).collect()
    }

    fn method(&self) -> &dyn ContinualMethod {
        match self {
            Self::Sequential(method) => method,
            Self::Er(method) => method,
            Self::Ilora(method) => method,
        }
    }
}

impl Default for Method {
    fn default() -> Self {
        Self::Ilora(Ilora::DEFAULT)
    }
}

impl ContinualMethod for Method {
    fn name(&self) -> &'static str {
        self.method().name()
    }

    fn replay_ratio(&self) -> f64 {
        self.method().replay_ratio()
    }

    fn asks_slow(&self) -> bool {
        self.method().asks_slow()
    }

    fn check(&self) -> Result<(), SettingError> {
        self.method().check()
    }

    fn loss<'s>(
        &self,
        learners: &'s Learners<'_>,
        micro: &MicroBatch,
        stop: &'s Stop,
    ) -> Result<Loss<'s>, ComputeError> {
        self.method().loss(learners, micro, stop)
    }

    fn after_step(&self, moment: Moment, fast: &Adapter, slow: &mut Adapter) {
        self.method().after_step(moment, fast, slow);
    }
}

/// Makes `slow` the same as `fast`: what methods with one learner serve.
pub(crate) fn serve_fast(fast: &Adapter, slow: &mut Adapter) {
    slow.values_mut().copy_from_slice(fast.values());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_found() {
        for method in Method::ALL {
            assert_eq!(Method::from_name(method.name()), Some(method));
        }
        assert_eq!(Method::names(), ["sequential", "er", "ilora"]);
        assert_eq!(Method::from_name("none"), None);
    }
}
