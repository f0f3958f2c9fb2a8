//! Forgetting: records, every byte of them, and every adapter that was trained on them.
//!
//! The receipt comes first, with all that is going to be done, and is durable before anything is. Each step can be repeated,
//! and one that was interrupted is, when the store is opened the next time, before anything else can be asked of it. So
//! what was promised is kept, wherever a kill or a power cut comes.

use super::error::StoreError;
use super::receipt::{BackTo, Forget, Receipt, Step};
use super::saved;
use super::{STATE, Store};
use crate::checkpoint::revision_number;
use crate::example::ExampleId;
use crate::learn::Lineage;
use crate::replay::{Compact, ReplayError};

impl Store {
    /// Forgets what is asked for: removes the records, erases their bytes, deletes every revision that was trained on one
    /// of them. The newest revision left is the state to go on from; without one, nothing is learned any more.
    ///
    /// On return all of that is done. What the deleted revisions had learned from other records counts as not yet learned,
    /// and the receipt tells which records these are.
    ///
    /// # Errors
    /// [`StoreError::Replay`] with [`ReplayError::NotFound`] for a record that is not there, and
    /// [`StoreError::NothingToForget`]: nothing is changed then. After any other error the receipt may be there already; then
    /// the rest is done when the store is opened again.
    pub fn forget(&mut self, request: &Forget, now_unix_s: u64) -> Result<Receipt, StoreError> {
        self.check_writable()?;
        let records = self.records_of(request)?;
        let receipt = self.plan(request, records, now_unix_s)?;
        self.receipts.write(receipt.clone())?;
        self.carry_out(receipt, now_unix_s)
    }

    /// What was asked to be forgotten so far, oldest first.
    pub fn receipts(&self) -> &[Receipt] {
        self.receipts.list()
    }

    /// Carries out what an earlier process promised and did not get to.
    pub(super) fn finish_forgetting(&mut self, now_unix_s: u64) -> Result<(), StoreError> {
        let is_pending = |receipt: &&Receipt| !receipt.is_forgotten();
        let pending: Vec<Receipt> = self.receipts().iter().filter(is_pending).cloned().collect();
        for receipt in pending {
            log::info!("receipt {}: going on", receipt.number);
            self.carry_out(receipt, now_unix_s)?;
        }
        Ok(())
    }

    /// Notes in the receipts that what they queued was learned again, as far as it is still stored.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::NotWritable`].
    pub(crate) fn settle_receipts(&mut self, learned: &Lineage, now_unix_s: u64) -> Result<(), StoreError> {
        let waiting =
            |queued: &Lineage| self.replay.iter().any(|info| queued.contains(info.id) && !learned.contains(info.id));
        let is_settled =
            |receipt: &&Receipt| receipt.is_forgotten() && !receipt.is_complete() && !waiting(&receipt.queued);
        let settled: Vec<Receipt> = self.receipts().iter().filter(is_settled).cloned().collect();
        for receipt in settled {
            self.receipts.write(Receipt { relearned_unix_s: Some(now_unix_s), ..receipt })?;
        }
        Ok(())
    }

    /// The stored records that `request` means.
    fn records_of(&mut self, request: &Forget) -> Result<Lineage, StoreError> {
        let ids: Vec<ExampleId> = match request {
            Forget::Ids(ids) => {
                if let Some(&id) = ids.iter().find(|id| self.replay.info(**id).is_none()) {
                    return Err(ReplayError::NotFound { id }.into());
                }
                ids.clone()
            }
            Forget::Task(task) => self.replay.iter().filter(|info| info.task == task).map(|info| info.id).collect(),
            Forget::Before(time_unix_s) => self.replay.ids_before(*time_unix_s)?,
        };
        if ids.is_empty() {
            return Err(StoreError::NothingToForget { request: request.clone() });
        }
        let mut records = Lineage::default();
        ids.into_iter().for_each(|id| records.insert(id));
        Ok(records)
    }

    /// What forgetting `records` takes.
    fn plan(&self, request: &Forget, records: Lineage, now_unix_s: u64) -> Result<Receipt, StoreError> {
        let mut dropped_revisions: Vec<u64> =
            self.invalid_revisions.iter().filter_map(|name| revision_number(name)).collect();
        let mut learned = Vec::new();
        for info in self.revisions.list() {
            let lineage = self.lineage_of(info.number)?;
            if lineage.as_ref().is_none_or(|lineage| lineage.intersects(&records)) {
                dropped_revisions.push(info.number);
            }
            learned.push((info.number, lineage.unwrap_or_default()));
        }
        let clean = learned.iter().rfind(|(number, _)| !dropped_revisions.contains(number));
        let newest = learned.last();
        let back_to = match (newest, clean) {
            (Some((newest, _)), Some((clean, _))) if newest != clean => BackTo::Revision(*clean),
            (Some(_), None) => BackTo::NothingLearned,
            _ => BackTo::Unchanged,
        };
        let is_lost = |id: ExampleId| {
            newest.is_some_and(|(_, lineage)| lineage.contains(id))
                && !clean.is_some_and(|(_, lineage)| lineage.contains(id))
                && !records.contains(id)
        };
        let mut queued = Lineage::default();
        self.replay.iter().map(|info| info.id).filter(|id| is_lost(*id)).for_each(|id| queued.insert(id));
        dropped_revisions.sort_unstable();
        Ok(Receipt {
            number: self.receipts.next_number(),
            request: request.clone(),
            requested_unix_s: now_unix_s,
            records,
            dropped_revisions,
            back_to,
            queued,
            removed_unix_s: None,
            erased_unix_s: None,
            rolled_back_unix_s: None,
            relearned_unix_s: None,
        })
    }

    /// What revision `number` was trained on; none if that cannot be told.
    fn lineage_of(&self, number: u64) -> Result<Option<Lineage>, StoreError> {
        match self.revisions.section_bytes(number, STATE) {
            Ok(state) => Ok(saved::lineage(&state).ok()),
            Err(error) if error.is_about_content() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn carry_out(&mut self, mut receipt: Receipt, now_unix_s: u64) -> Result<Receipt, StoreError> {
        while let Some(step) = receipt.next_step() {
            match step {
                Step::Remove => {
                    let ids = self.replay.iter().map(|info| info.id);
                    let ids: Vec<ExampleId> = ids.filter(|id| receipt.records.contains(*id)).collect();
                    self.replay.remove_all(&ids)?;
                }
                Step::Erase => {
                    let end = self.replay.next_id();
                    let ids: Vec<ExampleId> = receipt.records.ids().take_while(|id| *id < end).collect();
                    self.replay.compact(Compact::Holding(&ids))?;
                }
                Step::RollBack => {
                    self.revisions.remove(&receipt.dropped_revisions)?;
                    let is_dropped = |name: &str| {
                        revision_number(name).is_some_and(|number| receipt.dropped_revisions.contains(&number))
                    };
                    self.invalid_revisions.retain(|name| !is_dropped(name));
                }
            }
            receipt.step_done(step, now_unix_s);
            self.receipts.write(receipt.clone())?;
        }
        Ok(receipt)
    }
}
