//! Examples make an adapter better: batches, losses, gradients, AdamW, and what a continual-learning method adds.
//!
//! Takes token ids and gives adapters. Opens no file, knows no text, no clock and no battery: who calls [`Trainer::step`]
//! decides on when, on what and until when. Randomness is derived from a seed and the step's number, so that any step of
//! a run can be computed again.

pub mod batch;
pub mod history;
pub mod learners;
pub mod loss;
pub mod methods;
pub mod optimizer;
pub mod probe;
pub(crate) mod rng;
pub mod trainer;

pub use batch::{Batch, Row, Schedule};
pub use history::{Examples, History, Lineage, Run, RunSettings};
pub use learners::Learners;
pub use loss::{ConsistencyForm, HiddenLayers, TokenScope};
pub use methods::{Cadence, ContinualMethod, Er, Ilora, Method, Moment, Retention, Sequential, SettingError};
pub use optimizer::{AdamW, OptimizerConfig};
pub use probe::ProbeScore;
pub use trainer::{DEFAULT_MEMORY_BYTES, LearnError, LearnerState, StepLog, StepRows, Trainer, TrainerConfig};
