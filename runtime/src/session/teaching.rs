//! What people teach becomes stored examples.

use std::collections::BTreeMap;

use super::control::Phase;
use super::error::SessionError;
use super::wording::{Interaction, WordingError};
use super::{Learner, Session, now_unix_s};
use crate::example::{Example, ExampleError, ExampleId};

impl Session {
    /// Stores what the model should have answered. On return it is durable, where the session has a store.
    ///
    /// It is stored again even if the same was stored before: teaching twice is a wish to learn it again.
    ///
    /// # Errors
    /// [`SessionError::Wording`] for an empty prompt or answer, one longer than the context, a bad task name;
    /// [`SessionError::Store`] if the medium fails or is full. Nothing is stored then.
    pub fn observe(&mut self, interaction: &Interaction) -> Result<ExampleId, SessionError> {
        let _busy = self.control.begin(Phase::Observing, 1);
        let example = self.example(interaction, now_unix_s())?;
        let ids = self.append(&[example])?;
        ids.first().copied().ok_or(SessionError::NothingToLearn { task: None })
    }

    /// Stores many interactions, durable on return; gives their ids in order.
    ///
    /// An example with the same tokens that is stored already, or came earlier in the batch, is not stored again: its id is
    /// given. So a batch that was interrupted can be handed in once more.
    ///
    /// # Errors
    /// [`SessionError::Interaction`] names one that [`Session::observe`] would refuse, and then none is stored. If the medium
    /// fails, some may be, in order.
    pub fn observe_batch(&mut self, interactions: &[Interaction]) -> Result<Vec<ExampleId>, SessionError> {
        let _busy = self.control.begin(Phase::Observing, interactions.len() as u64);
        let time_unix_s = now_unix_s();
        let mut examples = Vec::with_capacity(interactions.len());
        for interaction in interactions {
            let position = examples.len();
            let example = self.example(interaction, time_unix_s);
            examples.push(example.map_err(|source| SessionError::Interaction { position, source })?);
            self.control.set_done(examples.len() as u64);
        }
        self.store_new(examples)
    }

    /// Appends those examples that are not stored yet, each once.
    fn store_new(&mut self, examples: Vec<Example>) -> Result<Vec<ExampleId>, SessionError> {
        let keys: Vec<_> = examples.iter().map(Example::key).collect();
        let mut known = BTreeMap::new();
        let mut new = Vec::new();
        for example in examples {
            let key = example.key();
            if known.contains_key(&key) {
                continue;
            }
            known.insert(key, self.ledger.find(key)?);
            if known[&key].is_none() {
                new.push(example);
            }
        }
        let new_keys: Vec<_> = new.iter().map(Example::key).collect();
        for (key, id) in new_keys.into_iter().zip(self.append(&new)?) {
            known.insert(key, Some(id));
        }
        Ok(keys.iter().filter_map(|key| known[key]).collect())
    }

    /// Stores examples, with their scores if those are wanted.
    fn append(&mut self, examples: &[Example]) -> Result<Vec<ExampleId>, SessionError> {
        let scores = match self.is_scoring {
            true => self.nlls(examples, Learner::Slow)?,
            false => vec![f32::NAN; examples.len()],
        };
        let scored: Vec<(&Example, f32)> = examples.iter().zip(scores).collect();
        Ok(self.ledger.append(&scored)?)
    }

    fn example(&self, interaction: &Interaction, time_unix_s: u64) -> Result<Example, WordingError> {
        let example = self.wording.example(interaction, time_unix_s)?;
        let limit = self.model.config().max_position_embeddings;
        match example.tokens().len() {
            tokens if tokens > limit => Err(ExampleError::TooLong { tokens, limit }.into()),
            _ => Ok(example),
        }
    }
}
