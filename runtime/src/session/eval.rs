//! How well a learner knows something: exact answers, and perplexity.

use mynah_models::{ComputeError, DeviceAdapter};

use super::control::Phase;
use super::error::SessionError;
use super::scoring::BATCH_TOKENS;
use super::wording::{Interaction, Worded};
use super::{Learner, Session};
use crate::learn::batch::{Batch, Row, split};
use crate::learn::loss::select;

/// Questions of one task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvalTask {
    /// The task's name in the report.
    pub name: String,
    /// Its questions and right answers.
    pub items: Vec<Interaction>,
}

/// How many answers of a task were right.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TaskScore {
    /// The task's name.
    pub name: String,
    /// Right answers.
    pub correct: usize,
    /// Questions.
    pub total: usize,
}

impl TaskScore {
    /// The share of right answers, 0 to 1; NaN without questions.
    pub fn score(&self) -> f64 {
        self.correct as f64 / self.total as f64
    }
}

/// The score of each task.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EvalReport {
    /// In the order that was asked for.
    pub tasks: Vec<TaskScore>,
}

impl EvalReport {
    /// The mean of the tasks' scores, each task counting alike; NaN without tasks.
    pub fn mean(&self) -> f64 {
        self.tasks.iter().map(TaskScore::score).sum::<f64>() / self.tasks.len() as f64
    }
}

/// How likely a learner finds a text.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Perplexity {
    /// `exp` of the mean negative log likelihood per scored token.
    pub perplexity: f64,
    /// Tokens scored.
    pub scored: usize,
}

impl Session {
    /// Counts the questions that a learner answers exactly.
    ///
    /// An answer is right when greedy decoding gives it, token for token, up to the end token and that too. This is found
    /// in one pass over question and answer: if the likeliest token is the right one at every place, then greedy decoding
    /// would have fed the same tokens; and if it is not at some place, greedy decoding would have parted there. Rounding
    /// may differ from decoding's where two tokens are equally likely.
    ///
    /// # Errors
    /// [`SessionError::Wording`] for an item that makes no example; [`SessionError::Compute`], a cancel included.
    pub fn eval(&mut self, tasks: &[EvalTask], learner: Learner) -> Result<EvalReport, SessionError> {
        let items = tasks.iter().map(|task| task.items.len() as u64).sum();
        let _busy = self.control.begin(Phase::Evaluating, items);
        self.repeated_elsewhere(|session| session.score(tasks, learner))
    }

    fn score(&self, tasks: &[EvalTask], learner: Learner) -> Result<EvalReport, SessionError> {
        let adapter = self.adapter_on_device(learner)?;
        let mut done = 0;
        let mut scores = Vec::with_capacity(tasks.len());
        for task in tasks {
            let correct = self.count_correct(&task.items, adapter.as_ref(), &mut done)?;
            scores.push(TaskScore { name: task.name.clone(), correct, total: task.items.len() });
        }
        Ok(EvalReport { tasks: scores })
    }

    fn count_correct(
        &self,
        items: &[Interaction],
        adapter: Option<&DeviceAdapter>,
        done: &mut u64,
    ) -> Result<usize, SessionError> {
        let mut worded = Vec::with_capacity(items.len());
        for item in items {
            worded.push(self.wording.word(item)?);
        }
        let rows: Vec<Row<'_>> = worded.iter().map(Worded::row).collect();
        let mut correct = 0;
        for part in split(&rows, BATCH_TOKENS) {
            correct += self.threads.run(|| self.correct_rows(&part, adapter))?;
            *done += part.len() as u64;
            self.control.set_done(*done);
        }
        Ok(correct)
    }

    /// How many rows have the likeliest token at every scored place.
    fn correct_rows(&self, rows: &[Row<'_>], adapter: Option<&DeviceAdapter>) -> Result<usize, ComputeError> {
        let batch = Batch::new(rows)?;
        let hidden = self.model.forward(&batch.tokens, adapter, self.control.stop())?;
        let likeliest = self.model.argmax(select(&hidden, &batch.positions))?;
        let mut pairs = batch.targets.iter().zip(&likeliest);
        let is_right = |row: &&Row<'_>| pairs.by_ref().take(row.scored().len()).filter(|(a, b)| a != b).count() == 0;
        Ok(rows.iter().filter(is_right).count())
    }

    /// How likely a learner finds `text`, in windows of `window_tokens` that know nothing of each other.
    ///
    /// Every token but the first of each window is scored. What is left after the last whole window is not; a text shorter
    /// than one window is one window. Nothing is put in front.
    ///
    /// # Errors
    /// [`SessionError::TextTooShort`] for less than two tokens, or windows of less; [`SessionError::Compute`].
    pub fn perplexity(
        &mut self,
        text: &str,
        window_tokens: usize,
        learner: Learner,
    ) -> Result<Perplexity, SessionError> {
        let ids = self.wording.tokenizer.encode(text, mynah_models::tokenizer::ParseSpecial::No);
        let window = window_tokens.min(ids.len());
        if window < 2 {
            return Err(SessionError::TextTooShort { tokens: window });
        }
        let _busy = self.control.begin(Phase::Evaluating, (ids.len() / window) as u64);
        self.repeated_elsewhere(|session| session.mean_nll(&ids, window, learner))
    }

    fn mean_nll(&self, ids: &[u32], window: usize, learner: Learner) -> Result<Perplexity, SessionError> {
        let adapter = self.adapter_on_device(learner)?;
        let (mut nll, mut scored) = (0.0, 0);
        for (index, window) in ids.chunks_exact(window).enumerate() {
            nll += self.threads.run(|| self.window_nll(window, adapter.as_ref()))?;
            scored += window.len() - 1;
            self.control.set_done(index as u64 + 1);
        }
        Ok(Perplexity { perplexity: (nll / scored as f64).exp(), scored })
    }

    /// Sum of the negative log likelihoods of all tokens but the first, in nats.
    fn window_nll(&self, ids: &[u32], adapter: Option<&DeviceAdapter>) -> Result<f64, ComputeError> {
        let batch = Batch::new(&[Row { tokens: ids, prompt_len: 1 }])?;
        Ok(self.batch_nll(&batch, adapter)?.into_iter().map(f64::from).sum())
    }

    /// Negative log likelihood of each scored token, in nats.
    pub(super) fn batch_nll(&self, batch: &Batch, adapter: Option<&DeviceAdapter>) -> Result<Vec<f32>, ComputeError> {
        let hidden = self.model.forward(&batch.tokens, adapter, self.control.stop())?;
        let nll = self.model.token_nll(select(&hidden, &batch.positions), &batch.targets, self.control.stop())?;
        self.model.device().read(nll)
    }
}
