//! Everything that a session can fail with.

use mynah_models::ComputeError;
use mynah_models::adapter::AdapterError;
use mynah_models::chat_template::TemplateError;
use mynah_models::error::LoadError;
use mynah_models::tokenizer::TokenizerError;

use super::ledger::LedgerError;
use super::wording::WordingError;
use crate::generate::GenerateError;
use crate::learn::{LearnError, SettingError};

/// A call on a [`Session`](super::Session) failed. The session stays usable, with everything that was committed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The model file cannot be used.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Its vocabulary cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A text or an interaction cannot be put into tokens.
    #[error(transparent)]
    Wording(#[from] WordingError),
    /// One of several interactions cannot be put into tokens.
    #[error("interaction {position} of the batch")]
    Interaction {
        /// Its place in the batch, from 0.
        position: usize,
        /// What is wrong with it.
        #[source]
        source: WordingError,
    },
    /// An adapter cannot be made, read or written.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The store cannot be opened, read or written.
    #[error(transparent)]
    Store(#[from] LedgerError),
    /// Text could not be generated.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// A step failed.
    #[error(transparent)]
    Learn(#[from] LearnError),
    /// The device failed, or someone cancelled.
    #[error(transparent)]
    Compute(#[from] ComputeError),
    /// A setting of learning is out of range.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// No example is waiting to be learned.
    #[error("there is nothing to learn: every example{} was learned already, or none was ever stored", of_task(.task))]
    NothingToLearn {
        /// The task that was asked for, if one was.
        task: Option<String>,
    },
    /// A text has too few tokens to score any.
    #[error("a window of {tokens} tokens has nothing to score; two are the least")]
    TextTooShort {
        /// Tokens of the text or of the window, whichever is less.
        tokens: usize,
    },
    /// The store's adapters have another form than was asked for.
    #[error("the store holds adapters of rank {found_rank}, rank {asked_rank} or other targets were asked for")]
    OtherLora {
        /// Rank in the store.
        found_rank: usize,
        /// Rank asked for.
        asked_rank: usize,
    },
    /// The system gives no threads.
    #[error("cannot start {threads} threads")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// The system's reason.
        #[source]
        source: rayon::ThreadPoolBuildError,
    },
}

impl SessionError {
    /// One word for programs: `load`, `tokenizer`, `wording`, `adapter`, `store`, `generate`, `learn`, `device`,
    /// `cancelled`, `setting`, `nothing_to_learn`, `text_too_short`, `other_lora` or `threads`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Load(_) => "load",
            Self::Tokenizer(_) => "tokenizer",
            Self::Wording(_) | Self::Interaction { .. } => "wording",
            Self::Adapter(_) => "adapter",
            Self::Store(_) => "store",
            _ if self.is_cancelled() => "cancelled",
            Self::Generate(GenerateError::Compute(_)) | Self::Learn(LearnError::Compute(_)) | Self::Compute(_) => {
                "device"
            }
            Self::Generate(_) => "generate",
            Self::Learn(_) => "learn",
            Self::Setting(_) => "setting",
            Self::NothingToLearn { .. } => "nothing_to_learn",
            Self::TextTooShort { .. } => "text_too_short",
            Self::OtherLora { .. } => "other_lora",
            Self::Threads { .. } => "threads",
        }
    }

    /// Whether someone cancelled, so that nothing is wrong.
    pub fn is_cancelled(&self) -> bool {
        matches!(
            self,
            Self::Compute(ComputeError::Cancelled)
                | Self::Learn(LearnError::Compute(ComputeError::Cancelled))
                | Self::Generate(GenerateError::Compute(ComputeError::Cancelled))
        )
    }
}

impl From<TemplateError> for SessionError {
    fn from(error: TemplateError) -> Self {
        Self::Wording(error.into())
    }
}

fn of_task(task: &Option<String>) -> String {
    task.as_ref().map(|task| format!(" of task `{task}`")).unwrap_or_default()
}
