//! Interpolation-based LoRA: a fast learner is trained, a slow one follows it and is served.

use burn::tensor::Tensor;
use mynah_models::adapter::Adapter;
use mynah_models::{ComputeError, Stop};
use serde::{Deserialize, Serialize};

use super::{ContinualMethod, Loss, MicroBatch, Moment, SettingError, cross_entropy, replay_loss};
use crate::learn::learners::Learners;
use crate::learn::loss::{ConsistencyForm, HiddenLayers, TokenScope, consistency_sum, consistency_terms, select};

/// How much of the slow learner survives.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Retention {
    /// The share that survives one interpolation, in `[0, 1]`, however many steps lie between two. 0 makes the slow
    /// learner the fast one: experience replay.
    Lambda(f64),
    /// Optimizer steps after which half survives. Whatever the cadence is, `lambda = ½^(steps since the last / half-life)`.
    HalfLifeSteps(f64),
}

/// When the slow learner moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Cadence {
    /// After every optimizer step.
    EveryStep,
    /// After every so many steps of a run, and after its last.
    EverySteps(u64),
    /// After the last step of a run.
    TaskEnd,
}

/// ```text
/// L    = ½ (CE(new) + CE(replayed)) + gamma * mean difference of H_fast and H_slow on what is replayed
/// slow = lambda * slow + (1 - lambda) * fast          after the optimizer step
/// ```
///
/// H are hidden states, by default those after the final norm. While there is nothing to replay, `L = CE(new)`. The slow learner starts
/// as a copy of the fast one, gets no gradient, lives in f32 and is what is served.
///
/// `gamma = 0` drops the slow learner's forward pass. `lambda = 0` keeps the two equal, so the difference and its gradient
/// are 0 and need no pass either. Both train exactly as [`Er`](super::Er) does. A and B are averaged separately, so their product is
/// averaged only to first order.
///
/// # Source
/// arXiv 2402.18865. Its released code never updates the slow learner and uses the one-sided form.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ilora {
    /// Default: a half-life of 10 steps, so that what a session of some dozen steps teaches is served at its end.
    pub retention: Retention,
    /// Default: every step.
    pub cadence: Cadence,
    /// Weight of the consistency. Default 1.
    pub gamma: f64,
    /// What is compared. Default: two-sided on hidden states, the paper's.
    pub form: ConsistencyForm,
    /// Whose hidden states are compared; the mean over them counts. The logit form takes the last. Default: the last.
    pub layers: HiddenLayers,
    /// Where it is compared. Default: everywhere.
    pub scope: TokenScope,
    /// Replayed examples per new one. Default 1.
    pub replay_ratio: f64,
}

impl Ilora {
    /// The defaults named at each field.
    pub const DEFAULT: Self = Self {
        retention: Retention::HalfLifeSteps(10.0),
        cadence: Cadence::EveryStep,
        gamma: 1.0,
        form: ConsistencyForm::TwoSided,
        layers: HiddenLayers::Last,
        scope: TokenScope::All,
        replay_ratio: 1.0,
    };

    fn depths(&self, learners: &Learners<'_>) -> Vec<usize> {
        let layers = match self.form {
            ConsistencyForm::Logits => HiddenLayers::Last,
            _ => self.layers,
        };
        layers.depths(learners.num_hidden_layers())
    }

    /// This micro-batch's share of the mean difference over the step's positions, the compared layers and their units.
    fn consistency(
        &self,
        learners: &Learners<'_>,
        micro: &MicroBatch,
        fast: &[Tensor<2>],
        slow: &[Tensor<2>],
    ) -> Tensor<1> {
        let positions = self.scope.positions(micro);
        let among_replayed: Vec<usize> = positions.iter().map(|position| position - micro.new_tokens()).collect();
        let positions_of_step = match self.scope {
            TokenScope::All => micro.step.replayed_tokens,
            TokenScope::Answer => micro.step.replayed_positions,
        };
        let terms = consistency_terms(self.form, positions_of_step, fast[0].dims()[1]) * fast.len();
        let sums = fast.iter().zip(slow).map(|(fast, slow)| {
            consistency_sum(self.form, learners.model(), select(fast, &positions), select(slow, &among_replayed))
        });
        Tensor::cat(sums.collect(), 0).sum() / terms as f64
    }

    /// The share of the slow learner that survives this step; none where the cadence lets it rest.
    fn lambda_at(&self, moment: Moment) -> Option<f64> {
        let Moment { steps_done, steps_total } = moment;
        let last = steps_done == steps_total;
        let steps_since = match self.cadence {
            Cadence::EveryStep => 1,
            Cadence::EverySteps(every) if steps_done % every.max(1) == 0 => every.max(1),
            Cadence::EverySteps(every) if last => steps_done % every.max(1),
            Cadence::TaskEnd if last => steps_total,
            Cadence::EverySteps(_) | Cadence::TaskEnd => return None,
        };
        Some(match self.retention {
            Retention::Lambda(lambda) => lambda,
            Retention::HalfLifeSteps(steps) => 0.5f64.powf(steps_since as f64 / steps),
        })
    }
}

impl Default for Ilora {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl ContinualMethod for Ilora {
    fn name(&self) -> &'static str {
        "ilora"
    }

    fn replay_ratio(&self) -> f64 {
        self.replay_ratio
    }

    fn asks_slow(&self) -> bool {
        self.gamma != 0.0
    }

    fn check(&self) -> Result<(), SettingError> {
        SettingError::check_replay_ratio(self.replay_ratio)?;
        SettingError::unless(self.gamma >= 0.0 && self.gamma.is_finite(), "gamma", self.gamma, "0 or more")?;
        match self.retention {
            Retention::Lambda(lambda) => {
                SettingError::unless((0.0..=1.0).contains(&lambda), "lambda", lambda, "0 to 1")
            }
            Retention::HalfLifeSteps(steps) => {
                SettingError::unless(steps > 0.0 && steps.is_finite(), "half_life_steps", steps, "above 0")
            }
        }
    }

    fn loss<'s>(
        &self,
        learners: &'s Learners<'_>,
        micro: &MicroBatch,
        stop: &'s Stop,
    ) -> Result<Loss<'s>, ComputeError> {
        if self.gamma == 0.0 || micro.replayed.is_empty() {
            return replay_loss(learners, micro, stop);
        }
        if learners.are_equal() {
            let loss = replay_loss(learners, micro, stop)?;
            return Ok(Loss { consistency: Some(loss.total.clone().inner().zeros_like()), ..loss });
        }
        let depths = self.depths(learners);
        // The slow pass first: its activations are gone before those of the fast one are kept.
        let slow = learners.slow(&depths, micro.replayed.clone(), stop)?;
        let fast = learners.fast(&micro.batch, &depths, stop)?;
        let consistency = self.consistency(learners, micro, fast.hidden(), &slow);
        let loss = cross_entropy(learners, micro, fast, stop)?;
        let total = loss.total + consistency.clone() * self.gamma;
        Ok(Loss { total, consistency: Some(consistency.inner()), ..loss })
    }

    fn after_step(&self, moment: Moment, fast: &Adapter, slow: &mut Adapter) {
        let Some(lambda) = self.lambda_at(moment) else { return };
        if let Err(error) = slow.interpolate(fast, lambda as f32) {
            panic!("checked settings and one layout: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lambdas(cadence: Cadence, retention: Retention, steps_total: u64) -> Vec<Option<f64>> {
        let method = Ilora { cadence, retention, ..Ilora::DEFAULT };
        (1..=steps_total).map(|steps_done| method.lambda_at(Moment { steps_done, steps_total })).collect()
    }

    #[test]
    fn the_cadence_decides_when() {
        let lambda = Retention::Lambda(0.9);
        assert_eq!(lambdas(Cadence::EveryStep, lambda, 3), [Some(0.9); 3]);
        assert_eq!(lambdas(Cadence::EverySteps(2), lambda, 5), [None, Some(0.9), None, Some(0.9), Some(0.9)]);
        assert_eq!(lambdas(Cadence::TaskEnd, lambda, 3), [None, None, Some(0.9)]);
    }

    #[test]
    fn a_half_life_keeps_as_much_over_a_run_at_any_cadence() {
        for cadence in [Cadence::EveryStep, Cadence::EverySteps(3), Cadence::EverySteps(8), Cadence::TaskEnd] {
            let kept: f64 = lambdas(cadence, Retention::HalfLifeSteps(4.0), 8).into_iter().flatten().product();
            assert!((kept - 0.25).abs() < 1e-12, "{cadence:?} keeps {kept}");
        }
    }
}
