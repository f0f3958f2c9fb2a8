//! What was taught is forgotten: the examples, and what was learned from them.

use super::builder::nothing_learned;
use super::error::SessionError;
use super::{Session, now_unix_s};
use crate::learn::History;
use crate::store::saved::Saved;
use crate::store::{Forget, Receipt};

impl Session {
    /// Forgets examples: they are removed, their bytes erased, and the adapters go back to the newest revision that never
    /// saw them, or to the bare model. Everything else that those adapters had learned waits to be learned again; the
    /// receipt says what that is, and [`Session::learn`] does it.
    ///
    /// On return nothing of it is left in the store. A run in hand that was to learn one of them is given up.
    ///
    /// Without a store there are no earlier revisions and no receipts: then nothing is learned any more, if one of the
    /// examples was learned, and the receipt has number 0.
    ///
    /// # Errors
    /// [`SessionError::Store`]: what was asked for is not there, or the medium fails; then the rest is done when the store
    /// is opened again.
    pub fn forget(&mut self, request: &Forget) -> Result<Receipt, SessionError> {
        let receipt = self.ledger.forget(request, &self.history.lineage, now_unix_s())?;
        if self.history.lineage.intersects(&receipt.records) {
            let Saved { state, history } = match self.ledger.newest_saved(&self.model)? {
                Some(saved) => saved,
                None => self.bare()?,
            };
            self.state = state;
            self.history = history;
            self.state_version += 1;
        }
        let Self { history, ledger, .. } = self;
        history.drop_missing(|id| ledger.task(id).is_some());
        Ok(receipt)
    }

    /// Receipts of everything that was to be forgotten, oldest first; none without a store.
    pub fn receipts(&self) -> &[Receipt] {
        self.ledger.store().map_or(&[], |store| store.receipts())
    }

    /// What a store without revisions begins with.
    pub(super) fn bare(&self) -> Result<Saved, SessionError> {
        let state = nothing_learned(&self.model, self.state.fast.config(), self.seed)?;
        let history = History::new(self.history.memory.policy(), self.history.memory.capacity());
        Ok(Saved { state, history })
    }
}
