//! How little a learner expects examples: to probe what it still knows, and to tell what is new to it.

use std::collections::BTreeMap;

use mynah_models::{ComputeError, DeviceAdapter};

use super::error::SessionError;
use super::{Learner, Session};
use crate::example::{Example, ExampleId};
use crate::learn::batch::{Batch, Row, split};
use crate::learn::probe::{self, ProbeScore};

/// Tokens of one forward pass.
pub(super) const BATCH_TOKENS: usize = 1024;

impl Session {
    /// Scores the tasks that were learned, as they are known now; see [`ProbeScore`].
    ///
    /// # Errors
    /// [`SessionError::Store`] if an example cannot be read; [`SessionError::Compute`], a cancel included.
    pub fn probe(&mut self) -> Result<Vec<ProbeScore>, SessionError> {
        let Self { history, ledger, .. } = &*self;
        let learned = ledger.described().filter(|(id, ..)| history.lineage.contains(*id));
        let chosen: BTreeMap<String, Vec<ExampleId>> =
            probe::choose(learned).into_iter().map(|(task, ids)| (task.to_owned(), ids)).collect();
        let mut scores = Vec::with_capacity(chosen.len());
        for (task, ids) in chosen {
            let examples = ids.iter().map(|id| self.ledger.read(*id)).collect::<Result<Vec<Example>, _>>()?;
            let nlls = self.nlls(&examples, Learner::Slow)?;
            let before = self.history.probes.iter().find(|before| before.task == task);
            scores.push(ProbeScore {
                nll: nlls.iter().sum::<f32>() / nlls.len() as f32,
                nll_before: before.map(|before| before.nll),
                examples: ids.len() as u32,
                task,
            });
        }
        Ok(scores)
    }

    /// Mean negative log likelihood of each example's answer tokens, in nats.
    pub(super) fn nlls(&mut self, examples: &[Example], learner: Learner) -> Result<Vec<f32>, SessionError> {
        let rows: Vec<Row<'_>> = examples.iter().map(Row::from).collect();
        self.repeated_elsewhere(|session| {
            let adapter = session.adapter_on_device(learner)?;
            let mut nlls = Vec::with_capacity(rows.len());
            for part in split(&rows, BATCH_TOKENS) {
                nlls.extend(session.threads.run(|| session.row_nlls(&part, adapter.as_ref()))?);
            }
            Ok(nlls)
        })
    }

    fn row_nlls(&self, rows: &[Row<'_>], adapter: Option<&DeviceAdapter>) -> Result<Vec<f32>, ComputeError> {
        let batch = Batch::new(rows)?;
        Ok(batch.row_means(&self.batch_nll(&batch, adapter)?))
    }
}
