//! Adapters out of a session and into it, and back to an earlier revision.

use std::path::Path;

use mynah_models::adapter::{BaseIdentity, read_peft, write_peft};

use super::error::SessionError;
use super::{Learner, Session};
use crate::checkpoint::RevisionKind;
use crate::learn::{AdamW, LearnerState};
use crate::store::saved::Saved;

impl Session {
    /// Writes a learner's adapter as a folder that PEFT loads, with the base model's digest in it.
    ///
    /// # Errors
    /// [`SessionError::Adapter`] names the file that cannot be written.
    pub fn export_adapter(&self, folder: &Path, learner: Learner) -> Result<(), SessionError> {
        Ok(write_peft(folder, self.adapter(learner), &self.base_identity())?)
    }

    /// Makes the adapter in a PEFT folder both learners', and commits that. An unfinished run is given up.
    ///
    /// False: the folder does not say which model it is for; only its shapes were checked.
    ///
    /// # Errors
    /// [`SessionError::Adapter`] if it is for another model or asks for what is not supported; [`SessionError::Store`].
    pub fn import_adapter(&mut self, folder: &Path) -> Result<bool, SessionError> {
        let imported = read_peft(folder, self.model.config(), &self.base_identity())?;
        self.state = LearnerState::new(imported.adapter);
        self.state.optimizer = AdamW::new(0);
        self.state_version += 1;
        self.history.give_up();
        self.ledger.commit(&self.state, &self.history, RevisionKind::Published)?;
        Ok(imported.base_is_known)
    }

    /// Goes back to the adapters of an earlier revision, as a new revision; 0 is before anything was learned. Examples stay;
    /// what was learned since counts as not yet learned.
    ///
    /// # Errors
    /// [`SessionError::Store`] if there is no such revision, or it is damaged; nothing is changed then.
    pub fn rollback(&mut self, revision: u64) -> Result<(), SessionError> {
        let saved = if revision == 0 {
            let Saved { state, history } = self.bare()?;
            self.ledger.commit(&state, &history, RevisionKind::Published)?;
            Saved { state, history }
        } else {
            self.ledger.rollback(revision, &self.model)?
        };
        self.state = saved.state;
        self.history = saved.history;
        self.state_version += 1;
        Ok(())
    }

    fn base_identity(&self) -> BaseIdentity {
        let gguf = self.model.gguf();
        let model_name = gguf.metadata().str("general.name").unwrap_or(&self.model.config().model_type).to_owned();
        BaseIdentity { model_name, sha256: gguf.digest() }
    }
}
