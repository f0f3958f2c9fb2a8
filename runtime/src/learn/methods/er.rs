//! Experience replay: old examples beside the new ones.

use mynah_models::adapter::Adapter;
use mynah_models::{ComputeError, Stop};
use serde::{Deserialize, Serialize};

use super::{ContinualMethod, Loss, MicroBatch, Moment, SettingError, replay_loss, serve_fast};
use crate::learn::learners::Learners;

/// `L = ½ (CE(new) + CE(replayed))`, or `CE(new)` while there is nothing to replay; the fast adapter is served.
///
/// # Source
/// Chaudhry et al., "On Tiny Episodic Memories in Continual Learning" (arXiv 1902.10486).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Er {
    /// Replayed examples per new one. Default 1.
    pub replay_ratio: f64,
}

impl Er {
    /// As many replayed examples as new ones.
    pub const DEFAULT: Self = Self { replay_ratio: 1.0 };
}

impl Default for Er {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl ContinualMethod for Er {
    fn name(&self) -> &'static str {
        "er"
    }

    fn replay_ratio(&self) -> f64 {
        self.replay_ratio
    }

    fn check(&self) -> Result<(), SettingError> {
        SettingError::check_replay_ratio(self.replay_ratio)
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
