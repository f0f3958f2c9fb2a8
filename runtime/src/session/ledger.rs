//! Where examples and revisions are kept: in a store, or only in memory.

use std::path::Path;

use mynah_models::Model;
use mynah_models::config::ModelConfig;
use mynah_models::tokenizer::Tokenizer;

use crate::example::{ContentKey, Example, ExampleId};
use crate::learn::{History, LearnerState};

/// What a revision holds.
#[derive(Debug)]
pub(crate) struct Saved {
    pub(crate) state: LearnerState,
    pub(crate) history: History,
}

/// Examples or revisions cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// No such example.
    #[error("example {id} is not there")]
    NoExample {
        /// Its id.
        id: ExampleId,
    },
    /// No such revision.
    #[error("revision {revision} is not there")]
    NoRevision {
        /// Its number.
        revision: u64,
    },
}

/// Examples and revisions of one session.
#[derive(Debug)]
pub(crate) enum Ledger {
    /// Kept as long as the session lives; ids count from 1. Revisions are not kept: the session has the newest state.
    Memory(Vec<Example>),
}

impl Ledger {
    pub(crate) fn in_memory() -> Self {
        Self::Memory(Vec::new())
    }

    pub(crate) fn open(_: &Path, _: &Model, _: &Tokenizer) -> Result<(Self, Option<Saved>), LedgerError> {
        Ok((Self::in_memory(), None))
    }

    pub(crate) fn append(&mut self, examples: &[Example]) -> Result<Vec<ExampleId>, LedgerError> {
        match self {
            Self::Memory(kept) => {
                let first = kept.len() as u64 + 1;
                kept.extend_from_slice(examples);
                Ok((first..=kept.len() as u64).map(ExampleId).collect())
            }
        }
    }

    pub(crate) fn find(&self, key: ContentKey) -> Option<ExampleId> {
        match self {
            Self::Memory(kept) => {
                kept.iter().position(|example| example.key() == key).map(|at| ExampleId(at as u64 + 1))
            }
        }
    }

    /// The task of an example, if it is there.
    pub(crate) fn task(&self, id: ExampleId) -> Option<&str> {
        match self {
            Self::Memory(kept) => Some(kept.get((id.0 as usize).checked_sub(1)?)?.task()),
        }
    }

    pub(crate) fn read(&mut self, id: ExampleId) -> Result<Example, LedgerError> {
        match self {
            Self::Memory(kept) => {
                let at = (id.0 as usize).checked_sub(1);
                at.and_then(|at| kept.get(at)).cloned().ok_or(LedgerError::NoExample { id })
            }
        }
    }

    /// Every example's id and task, oldest first.
    pub(crate) fn ids_and_tasks(&self) -> Box<dyn Iterator<Item = (ExampleId, &str)> + '_> {
        match self {
            Self::Memory(kept) => {
                Box::new(kept.iter().enumerate().map(|(at, example)| (ExampleId(at as u64 + 1), example.task())))
            }
        }
    }

    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Memory(kept) => kept.len() as u64,
        }
    }

    pub(crate) fn tokens(&self) -> u64 {
        match self {
            Self::Memory(kept) => kept.iter().map(|example| example.tokens().len() as u64).sum(),
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::Memory(_) => 0,
        }
    }

    pub(crate) fn revision(&self) -> Option<u64> {
        match self {
            Self::Memory(_) => None,
        }
    }

    /// What the next commit of this state will write, about.
    pub(crate) fn commit_bytes(&self, _: &LearnerState) -> u64 {
        match self {
            Self::Memory(_) => 0,
        }
    }

    /// Commits a revision; gives the bytes written.
    pub(crate) fn commit(&mut self, _: &LearnerState, _: &History, _: bool) -> Result<u64, LedgerError> {
        match self {
            Self::Memory(_) => Ok(0),
        }
    }

    pub(crate) fn load(&mut self, revision: u64, _: &ModelConfig) -> Result<Saved, LedgerError> {
        match self {
            Self::Memory(_) => Err(LedgerError::NoRevision { revision }),
        }
    }
}
