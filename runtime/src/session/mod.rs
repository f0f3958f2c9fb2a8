//! The only place where all parts meet: a model that talks, is taught, remembers and learns.
//!
//! A [`Session`] has one owner at a time; a [`Control`] of it may be anywhere. It computes nothing itself: what it is told
//! goes to the module that knows, and what learning has come to goes to the store.

mod adapters;
mod builder;
mod control;
mod error;
mod eval;
mod forgetting;
mod learning;
mod ledger;
mod recovery;
mod scoring;
mod serving;
mod teaching;
mod threads;
mod wording;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use mynah_models::Model;
use mynah_models::adapter::Adapter;
use mynah_models::tokenizer::Tokenizer;

pub use builder::{ModelSource, SessionBuilder};
pub use control::{Control, Phase, Progress};
pub use error::SessionError;
pub use eval::{EvalReport, EvalTask, Perplexity, TaskScore};
pub use learning::LearnRequest;
pub use ledger::LedgerError;
pub use wording::{Interaction, PromptFormat, WordingError};

use crate::learn::methods::ContinualMethod;
use crate::learn::{History, LearnerState, Method, Run, TrainerConfig};
use crate::store::Store;
use ledger::Ledger;
use serving::Serving;
use threads::Threads;
use wording::Wording;

/// One of the two learners. They differ under I-LoRA only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Learner {
    /// The one that follows, and is served.
    #[default]
    Slow,
    /// The one that is trained.
    Fast,
}

/// A model with its adapters and its store.
#[derive(Debug)]
pub struct Session {
    model: Arc<Model>,
    wording: Wording,
    threads: Arc<Threads>,
    ledger: Ledger,
    /// Its optimizer is empty while no run is in hand.
    state: LearnerState,
    /// Counts the changes of `state`.
    state_version: u64,
    history: History,
    served: Learner,
    serving: Option<Serving>,
    control: Control,
    gpus_lost: u32,
    notice: Option<String>,
    context_tokens: usize,
    seed: u64,
    method: Method,
    trainer: TrainerConfig,
    /// None: as often as the wear budget allows.
    commit_every_steps: Option<u64>,
    daily_wear_bytes: u64,
    memory_bytes: u64,
    is_scoring: bool,
}

/// What a session has and has learned.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Status {
    /// Number of the newest revision; none before the first, or without a store.
    pub revision: Option<u64>,
    /// Examples that are stored.
    pub examples: u64,
    /// Tokens of those.
    pub tokens: u64,
    /// Examples that steps have trained on.
    pub learned: u64,
    /// Examples that can be replayed.
    pub remembered: u64,
    /// Steps of all runs.
    pub steps: u64,
    /// The newest run.
    pub run: Option<RunStatus>,
    /// The device in words.
    pub device: String,
    /// Bytes of examples and revisions on the medium.
    pub bytes: u64,
}

/// How far a run is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RunStatus {
    /// Its number, from 1.
    pub number: u64,
    /// Its method's name.
    pub method: &'static str,
    /// Its examples.
    pub examples: usize,
    /// Steps behind it.
    pub steps_done: u64,
    /// Steps in all. With as many behind it, it is finished.
    pub steps_total: u64,
}

impl Session {
    /// Settings for a session with this model: a path, or a file that was opened before.
    pub fn builder(model: impl Into<ModelSource>) -> SessionBuilder {
        SessionBuilder::new(model.into())
    }

    /// A handle to cancel and watch this session from anywhere.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Chooses the learner that [`Session::generate`] and [`Session::chat`] speak with. The slow one at first.
    pub fn serve(&mut self, learner: Learner) {
        self.served = learner;
    }

    /// One line for the user where the device is not the one that was asked for.
    pub fn notice(&self) -> Option<&str> {
        self.notice.as_deref()
    }

    /// What the session has and has learned.
    pub fn status(&self) -> Status {
        Status {
            revision: self.ledger.revision(),
            examples: self.ledger.len(),
            tokens: self.ledger.tokens(),
            learned: self.history.lineage.len(),
            remembered: self.history.memory.len() as u64,
            steps: self.history.steps,
            run: self.history.run.as_ref().map(RunStatus::of),
            device: self.model.device().name().to_owned(),
            bytes: self.ledger.bytes(),
        }
    }

    /// The store, to be looked at; none where nothing is kept.
    pub fn store(&self) -> Option<&Store> {
        self.ledger.store()
    }

    /// The base model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.wording.tokenizer
    }

    /// Whether the model has a chat template that can be used, so that [`Session::chat`] works.
    pub fn can_chat(&self) -> bool {
        self.wording.template.is_some()
    }

    /// Tokens that a prompt and its answer can have together.
    pub fn context_tokens(&self) -> usize {
        self.context_tokens
    }

    /// A learner's adapter as it is now.
    pub fn adapter(&self, learner: Learner) -> &Adapter {
        match learner {
            Learner::Slow => &self.state.slow,
            Learner::Fast => &self.state.fast,
        }
    }
}

impl RunStatus {
    fn of(run: &Run) -> Self {
        Self {
            number: run.number,
            method: run.settings.method.name(),
            examples: run.ids.len(),
            steps_done: run.steps_done,
            steps_total: run.steps_total,
        }
    }
}

/// Seconds since 1970; 0 on a clock before that. What learning comes to does not depend on it.
fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// An app moves its session to a thread of its own.
const _: fn() = || {
    fn is_send<T: Send>() {}
    is_send::<Session>();
};
