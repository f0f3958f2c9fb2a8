//! What one call of `learn` may spend, and what it did spend.

use std::time::{Duration, Instant};

use mynah_models::adapter::AdapterLayout;
use mynah_models::{ModelConfig, TapeMemory};

use crate::learn::ProbeScore;

/// Limits of one call; none of them means: until the run is finished.
///
/// A limit is looked at before each step, and a step that was begun is finished: a call overruns its time by at most
/// one step, and its steps and bytes by nothing. To stop inside a step, cancel it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Budget {
    /// Wall-clock time. Where it is not zero, at least one step is taken, or a short slice would never get anywhere.
    pub time: Option<Duration>,
    /// Optimizer steps.
    pub steps: Option<u64>,
    /// Bytes written to the store.
    pub bytes: Option<u64>,
}

impl Budget {
    /// No limit.
    pub fn unlimited() -> Self {
        Self::default()
    }

    /// At most `steps` optimizer steps.
    pub fn steps(steps: u64) -> Self {
        Self { steps: Some(steps), ..Self::default() }
    }

    /// At most `time` and the step that is in hand when it is over.
    pub fn time(time: Duration) -> Self {
        Self { time: Some(time), ..Self::default() }
    }
}

/// Why a call of `learn` ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoppedBy {
    /// The run has all its steps; its revision is published.
    Finished,
    /// [`Budget::time`] is spent.
    Time,
    /// [`Budget::steps`] are taken.
    Steps,
    /// One more commit would exceed [`Budget::bytes`].
    Bytes,
    /// Someone cancelled; the step in hand was dropped, all before it are kept.
    Cancelled,
}

impl StoppedBy {
    /// The name used in reports: `finished`, `time`, `steps`, `bytes` or `cancelled`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Time => "time",
            Self::Steps => "steps",
            Self::Bytes => "bytes",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What one call of `learn` did.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// Steps taken in this call.
    pub steps: u64,
    /// Steps the run has behind it.
    pub steps_done: u64,
    /// Steps the run has in all.
    pub steps_total: u64,
    /// Mean loss of the last steps of this call, at most 10; NaN where no step was taken.
    pub loss: f64,
    /// Why it ended.
    pub stopped_by: StoppedBy,
    /// The process's largest resident size so far, where the system tells (Linux, Android).
    pub peak_bytes: Option<u64>,
    /// Bytes written to the store in this call.
    pub bytes_written: u64,
    /// Number of the newest revision; none where nothing was ever committed or there is no store.
    pub revision: Option<u64>,
    /// Wall-clock time of this call.
    pub elapsed: Duration,
    /// How well each task was known when the newest finished run ended, and before it.
    pub probes: Vec<ProbeScore>,
}

/// A [`Budget`] being spent.
#[derive(Debug)]
pub(crate) struct Meter {
    budget: Budget,
    started: Instant,
    steps: u64,
    bytes: u64,
}

impl Meter {
    pub(crate) fn start(budget: Budget) -> Self {
        Self { budget, started: Instant::now(), steps: 0, bytes: 0 }
    }

    /// Counts one step.
    pub(crate) fn step(&mut self) {
        self.steps += 1;
    }

    /// Counts bytes written.
    pub(crate) fn wrote(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// The limit that forbids another step with a commit of `commit_bytes` (0: none), if one does.
    pub(crate) fn exhausted(&self, commit_bytes: u64) -> Option<StoppedBy> {
        let Budget { time, steps, bytes } = self.budget;
        let late = |limit: Duration| self.elapsed() >= limit && (self.steps > 0 || limit.is_zero());
        if steps.is_some_and(|limit| self.steps >= limit) {
            Some(StoppedBy::Steps)
        } else if time.is_some_and(late) {
            Some(StoppedBy::Time)
        } else if bytes.is_some_and(|limit| self.bytes.saturating_add(commit_bytes) > limit) {
            Some(StoppedBy::Bytes)
        } else {
            None
        }
    }
}

/// Bytes that learning takes on the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Estimate {
    /// Both adapters, moments, gradients and the device's copies, whatever is learned at once.
    pub adapters_bytes: u64,
    /// One pass over the asked tokens.
    pub pass_bytes: u64,
    /// Layers whose activations fit the budget; those of the others are computed again.
    pub kept_layers: usize,
}

impl Estimate {
    /// Both.
    pub fn total_bytes(&self) -> u64 {
        self.adapters_bytes + self.pass_bytes
    }
}

/// What it takes to learn `tokens` tokens at once, at most
/// [`micro_batch_tokens`](crate::learn::TrainerConfig::micro_batch_tokens) or one example, under a
/// [memory budget](crate::SessionBuilder::memory_budget). The model file, which is mapped, comes on top.
pub fn estimate(model: &ModelConfig, adapter: &AdapterLayout, tokens: usize, memory_budget_bytes: u64) -> Estimate {
    // Fast and slow, two moments, the gradient, and a copy of each learner for the device.
    const COPIES: u64 = 7;
    let rank = adapter.pairs().iter().map(|pair| pair.rank).max().unwrap_or(0);
    let memory = TapeMemory::of(model, rank, tokens);
    let kept_layers = memory.kept_layers(model.num_hidden_layers, memory_budget_bytes);
    Estimate {
        adapters_bytes: COPIES * 4 * adapter.len() as u64,
        pass_bytes: memory.total_bytes(kept_layers),
        kept_layers,
    }
}

/// Steps between two commits of `commit_bytes` each, so that `steps_left` steps write at most `allowed_bytes`: at least 1,
/// and never (`u64::MAX`) where not even one more commit is allowed.
pub(crate) fn commit_interval(steps_left: u64, commit_bytes: u64, allowed_bytes: u64) -> u64 {
    match allowed_bytes.checked_div(commit_bytes) {
        Some(0) => u64::MAX,
        Some(commits) => steps_left.div_ceil(commits).max(1),
        None => 1,
    }
}

/// The largest resident size of this process so far, in bytes, where `/proc` tells it.
pub fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_stops_by_its_name() {
        let mut meter = Meter::start(Budget { bytes: Some(100), ..Budget::steps(2) });
        assert_eq!(meter.exhausted(100), None);
        assert_eq!(meter.exhausted(101), Some(StoppedBy::Bytes));
        meter.wrote(60);
        assert_eq!(meter.exhausted(41), Some(StoppedBy::Bytes));
        meter.step();
        assert_eq!(meter.exhausted(0), None);
        meter.step();
        assert_eq!(meter.exhausted(0), Some(StoppedBy::Steps));
    }

    #[test]
    fn a_short_time_allows_one_step_and_no_time_allows_none() {
        let mut meter = Meter::start(Budget::time(Duration::from_nanos(1)));
        assert_eq!(meter.exhausted(0), None);
        meter.step();
        assert_eq!(meter.exhausted(0), Some(StoppedBy::Time));
        assert_eq!(Meter::start(Budget::time(Duration::ZERO)).exhausted(0), Some(StoppedBy::Time));
        assert_eq!(Meter::start(Budget::unlimited()).exhausted(u64::MAX), None);
    }

    #[test]
    fn commits_are_as_frequent_as_their_bytes_allow() {
        assert_eq!(commit_interval(30, 39, 30 * 39), 1);
        assert_eq!(commit_interval(30, 39, 30 * 39 - 1), 2);
        assert_eq!(commit_interval(30, 39, 39), 30);
        assert_eq!(commit_interval(30, 39, 38), u64::MAX);
        assert_eq!(commit_interval(30, 0, 0), 1, "without a store nothing is written");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn linux_tells_the_peak() {
        assert!(peak_resident_bytes().unwrap() > 1 << 20);
    }
}
