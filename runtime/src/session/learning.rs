//! Runs: from examples that wait to a published revision, in slices that may end at any step.

use std::collections::{BTreeMap, VecDeque};

use mynah_models::ComputeError;

use super::control::Phase;
use super::error::SessionError;
use super::{Session, now_unix_s};
use crate::budget::{Budget, Meter, Report, StoppedBy, commit_interval, peak_resident_bytes};
use crate::checkpoint::RevisionKind;
use crate::example::{Example, ExampleId};
use crate::learn::{AdamW, Examples, LearnError, Row, Run, RunSettings, SettingError, StepLog, StepRows, Trainer};

/// Steps whose mean loss a report gives.
const REPORTED_STEPS: usize = 10;
const SECONDS_PER_DAY: u64 = 24 * 60 * 60;

/// What a run is to learn and how long.
#[derive(Debug, Clone, PartialEq)]
pub struct LearnRequest {
    /// Default: everything that no run has learned yet.
    pub examples: Examples,
    /// Steps of the run; where it is none, `epochs` and `min_steps` decide.
    pub steps: Option<u64>,
    /// How often each example is trained on. Default 3.
    pub epochs: u64,
    /// Steps that a run has at least, so that a single example is learned too. Default 30.
    pub min_steps: u64,
    /// New examples of one step. Default 4.
    pub batch_rows: usize,
    /// Whether the newest run, if it was this very one and is finished, is done once more. Default no: a call that was
    /// killed after its last step can be made again, and finds that nothing is left to do.
    pub again: bool,
}

impl Default for LearnRequest {
    fn default() -> Self {
        Self {
            examples: Examples::NotYetLearned(None),
            steps: None,
            epochs: 3,
            min_steps: 30,
            batch_rows: 4,
            again: false,
        }
    }
}

impl LearnRequest {
    /// Steps of a run over so many examples.
    fn steps_total(&self, examples: usize) -> u64 {
        let epoch = examples.div_ceil(self.batch_rows.max(1)) as u64;
        self.steps.unwrap_or_else(|| epoch.saturating_mul(self.epochs).max(self.min_steps))
    }

    fn check(&self) -> Result<(), SettingError> {
        let rows = self.batch_rows;
        SettingError::unless((1..=4096).contains(&rows), "batch_rows", rows as f64, "1 to 4096")?;
        let steps = self.steps.unwrap_or(1).min(self.epochs.max(self.min_steps));
        SettingError::unless(steps > 0, "steps", 0.0, "1 or more")
    }
}

impl Session {
    /// Learns until the run is finished, the budget is spent, or someone cancels.
    ///
    /// The newest run goes on where it stopped if it is asked for again: the same examples, method, trainer, seed and length.
    /// If it was finished, nothing is left to do, unless [`LearnRequest::again`] says otherwise. Any other request begins a
    /// new run, and an unfinished one before it is given up as far as it came.
    ///
    /// A run stopped and resumed, at whatever step and however often, even by a kill, gives the same bytes on the CPU as
    /// one that never stopped, if its [`precision`](super::SessionBuilder::precision) stays the same.
    ///
    /// After each step, or as rarely as [`commit_every_steps`](super::SessionBuilder::commit_every_steps) or
    /// [`daily_wear_bytes`](super::SessionBuilder::daily_wear_bytes) say, the state is
    /// committed to the store; on return all of it is. What is served is always the newest state.
    ///
    /// # Errors
    /// [`SessionError::NothingToLearn`]; [`SessionError::Store`] if a commit fails, after which the state is still in this
    /// session and the next call goes on; [`SessionError::Learn`], with all steps before the failed one committed.
    pub fn learn(&mut self, request: &LearnRequest, budget: Budget) -> Result<Report, SessionError> {
        request.check()?;
        let busy = self.control.begin(Phase::Learning, 0);
        let mut call = Call { meter: Meter::start(budget), losses: VecDeque::new() };
        self.enter_run(request)?;
        let stopped_by = self.take_steps(&mut call)?;
        drop(busy);
        Ok(self.report(call, stopped_by))
    }

    /// Makes the run of `request` the one in hand: the unfinished one if it is the same, else a new one.
    fn enter_run(&mut self, request: &LearnRequest) -> Result<(), SessionError> {
        let (method, trainer, seed) = (self.method, self.trainer, self.seed);
        let examples = request.examples.clone();
        let settings = RunSettings { examples, method, trainer, batch_rows: request.batch_rows, seed };
        let same_run = self.history.same_run(&settings, |examples| request.steps_total(examples));
        let ids = match (same_run, self.waiting(&request.examples)) {
            (Some(run), _) if !run.is_finished() => return Ok(()),
            // Examples that came since then make it another run.
            (Some(_), waiting) if !request.again && (waiting.is_err() || settings.is_of_given_examples()) => {
                return Ok(());
            }
            (_, waiting) => waiting?,
        };
        let steps_total = request.steps_total(ids.len());
        log::info!("run {}: {} examples, {steps_total} steps", self.history.run_number() + 1, ids.len());
        self.history.begin(settings, ids, steps_total, |id| self.ledger.task(id));
        self.state.optimizer = AdamW::new(self.state.fast.values().len());
        Ok(())
    }

    /// The ids that `examples` means now.
    fn waiting(&self, examples: &Examples) -> Result<Vec<ExampleId>, SessionError> {
        let (ids, task): (Vec<ExampleId>, _) = match examples {
            Examples::These(ids) => (ids.clone(), None),
            Examples::NotYetLearned(task) => {
                let is_asked = |found: &str| task.as_ref().is_none_or(|asked| asked == found);
                let stored = self.ledger.ids_and_tasks().filter(|(_, found)| is_asked(found)).map(|(id, _)| id);
                (stored.filter(|id| !self.history.lineage.contains(*id)).collect(), task.clone())
            }
        };
        if ids.is_empty() { Err(SessionError::NothingToLearn { task }) } else { Ok(ids) }
    }

    /// Takes steps and commits them until something ends it.
    fn take_steps(&mut self, call: &mut Call) -> Result<StoppedBy, SessionError> {
        let interval = self.commit_interval();
        let mut uncommitted = 0;
        let stopped_by = loop {
            if let Some(reason) = self.reason_to_stop(&call.meter) {
                break reason;
            }
            match self.step() {
                Ok(log) => call.took(&log),
                Err(SessionError::Learn(LearnError::Compute(ComputeError::Cancelled))) => break StoppedBy::Cancelled,
                Err(error) => {
                    self.commit(call, uncommitted > 0, RevisionKind::Published)?;
                    return Err(error);
                }
            }
            uncommitted += 1;
            let reason = self.reason_to_stop(&call.meter);
            let is_last = reason.is_some();
            if reason == Some(StoppedBy::Finished) {
                self.measure_forgetting();
            }
            if is_last || uncommitted >= interval {
                let kind = if is_last { RevisionKind::Published } else { RevisionKind::Step };
                self.commit(call, true, kind)?;
                uncommitted = 0;
            }
        };
        // Steps that were taken before a cancel.
        self.commit(call, uncommitted > 0, RevisionKind::Published)?;
        Ok(stopped_by)
    }

    /// Scores the tasks once a run is over, which it is whether that succeeds or not.
    fn measure_forgetting(&mut self) {
        self.history.probes = self.probe().unwrap_or_else(|error| {
            log::warn!("what was forgotten is not known: {error}");
            Vec::new()
        });
    }

    fn commit_interval(&self) -> u64 {
        self.commit_every_steps.unwrap_or_else(|| {
            let steps_left = self.history.run.as_ref().map_or(0, |run| run.steps_total - run.steps_done);
            let written = self.ledger.bytes_written_since(now_unix_s().saturating_sub(SECONDS_PER_DAY));
            let allowed = self.daily_wear_bytes.saturating_sub(written);
            commit_interval(steps_left, self.ledger.commit_bytes(&self.state), allowed)
        })
    }

    fn reason_to_stop(&self, meter: &Meter) -> Option<StoppedBy> {
        if self.history.run.as_ref().is_none_or(Run::is_finished) {
            Some(StoppedBy::Finished)
        } else if self.control.stop().is_set() {
            Some(StoppedBy::Cancelled)
        } else {
            meter.exhausted(self.ledger.commit_bytes(&self.state))
        }
    }

    /// Takes the next step of the run in hand; once more, on another device, where a GPU failed at it.
    fn step(&mut self) -> Result<StepLog, SessionError> {
        let Some(run) = self.history.run.clone() else { return Err(SessionError::NothingToLearn { task: None }) };
        let new_ids = run.ids_of_step(run.steps_done);
        let replayed_ids = self.replayed_ids(&run, &new_ids);
        let examples = self.read_all(new_ids.iter().chain(&replayed_ids))?;
        let rows = |ids: &[ExampleId]| ids.iter().filter_map(|id| examples.get(id)).map(Row::from).collect();
        let rows = StepRows { new: rows(&new_ids), replayed: rows(&replayed_ids) };
        let log = self.repeated_elsewhere(|session| Ok(session.train(&run, &rows)?))?;
        self.state_version += 1;
        self.history.step_done(&new_ids, &log.new_nll);
        self.ledger.count_replays(&replayed_ids);
        if self.history.run.as_ref().is_some_and(Run::is_finished) {
            // The next run starts with fresh moments; until then they only take room.
            self.state.optimizer = AdamW::new(0);
        }
        self.control.set_loss(log.loss);
        log::debug!("step {} of {}: {log:?}", run.steps_done + 1, run.steps_total);
        Ok(log)
    }

    fn train(&mut self, run: &Run, rows: &StepRows<'_>) -> Result<StepLog, LearnError> {
        let Self { model, state, control, threads, memory_bytes, .. } = self;
        let trainer = Trainer::new(model, run.settings.method, run.settings.trainer).memory_budget(*memory_bytes);
        threads.run(|| trainer.step(state, rows, run.next_moment(), control.stop()))
    }

    /// What is replayed beside `new_ids` in the next step; nothing that was removed since it was remembered.
    fn replayed_ids(&self, run: &Run, new_ids: &[ExampleId]) -> Vec<ExampleId> {
        let is_excluded = |id| new_ids.contains(&id) || self.ledger.task(id).is_none();
        run.draw(&self.history.memory, new_ids.len(), is_excluded)
    }

    fn read_all<'a>(
        &mut self,
        ids: impl Iterator<Item = &'a ExampleId>,
    ) -> Result<BTreeMap<ExampleId, Example>, SessionError> {
        let mut examples = BTreeMap::new();
        for id in ids {
            examples.insert(*id, self.ledger.read(*id)?);
        }
        Ok(examples)
    }

    /// Commits the state if that is needed, and tells how far the run is.
    fn commit(&mut self, call: &mut Call, is_needed: bool, kind: RevisionKind) -> Result<(), SessionError> {
        if let Some(run) = &self.history.run {
            self.control.set_progress(run.steps_done, run.steps_total);
        }
        if is_needed {
            call.meter.wrote(self.ledger.commit(&self.state, &self.history, kind)?);
        }
        Ok(())
    }

    fn report(&self, call: Call, stopped_by: StoppedBy) -> Report {
        let (steps_done, steps_total) =
            self.history.run.as_ref().map_or((0, 0), |run| (run.steps_done, run.steps_total));
        Report {
            steps: call.meter.steps(),
            steps_done,
            steps_total,
            loss: call.losses.iter().sum::<f64>() / call.losses.len() as f64,
            stopped_by,
            peak_bytes: peak_resident_bytes(),
            bytes_written: call.meter.bytes(),
            revision: self.ledger.revision(),
            elapsed: call.meter.elapsed(),
            probes: self.history.probes.clone(),
        }
    }
}

/// One call of `learn`.
#[derive(Debug)]
struct Call {
    meter: Meter,
    /// The newest losses.
    losses: VecDeque<f64>,
}

impl Call {
    fn took(&mut self, log: &StepLog) {
        self.meter.step();
        self.losses.push_back(log.loss);
        if self.losses.len() > REPORTED_STEPS {
            self.losses.pop_front();
        }
    }
}
