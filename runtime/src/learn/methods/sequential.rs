//! Fine-tuning on one task after another, with nothing against forgetting.

use mynah_models::adapter::Adapter;
use mynah_models::{ComputeError, Stop};
use serde::{Deserialize, Serialize};

use super::{ContinualMethod, Loss, MicroBatch, Moment, SettingError, replay_loss, serve_fast};
use crate::learn::learners::Learners;

/// `L = CE(new)`; the fast adapter is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sequential;

impl ContinualMethod for Sequential {
    fn name(&self) -> &'static str {
        "sequential"
    }

    fn replay_ratio(&self) -> f64 {
        0.0
    }

    fn check(&self) -> Result<(), SettingError> {
        Ok(())
    }

    fn loss<'s>(
        &self,
        learners: &'s Learners<'_>,
        micro: &MicroBatch,
        stop: &'s Stop,
    ) -> Result<Loss<'s>, ComputeError> {
        replay_loss(learners, micro, stop)
    }

    fn after_step(&self, _: Moment, fast: &Adapter, slow: &mut Adapter) {
        serve_fast(fast, slow);
    }
}
