//! What a run left of each task, as it is shown.

use mynah::learn::ProbeScore;
use serde::Serialize;

/// A probe's score for `--json`.
#[derive(Debug, Serialize)]
pub(crate) struct ProbeView {
    task: String,
    examples: u32,
    /// Mean negative log likelihood of the answers' tokens, in nats.
    nll: f32,
    /// When the run before ended.
    nll_before: Option<f32>,
}

impl From<&ProbeScore> for ProbeView {
    fn from(score: &ProbeScore) -> Self {
        let ProbeScore { task, examples, nll, nll_before } = score.clone();
        Self { task, examples, nll, nll_before }
    }
}

impl ProbeView {
    /// The score in a line.
    pub(crate) fn text(&self) -> String {
        let before = self.nll_before.map_or_else(|| "new".to_owned(), |before| format!("{before:.3} before"));
        format!("task {}: {:.3} nats a token, {before}", self.task, self.nll)
    }

    /// The same of a task that was there before; none of a new one.
    pub(crate) fn change(&self) -> Option<String> {
        self.nll_before.map(|_| self.text())
    }
}
