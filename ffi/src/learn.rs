//! Learning over the border: a budget in, a report out.

use std::time::Duration;

use runtime::session::LearnRequest;
use runtime::{Budget, Report, Session};

use crate::handle::Pod;
use crate::session::SessionHandle;
use crate::status::{Failure, Status};
use crate::{guard, handle};

/// Limits of one call of mynah_session_learn. Zero means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct LearnBudget {
    /// sizeof(mynah_learn_budget)
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Steps.
    pub steps: u64,
    /// Wall-clock time; at least one step is taken.
    pub milliseconds: u64,
    /// Bytes written to the store.
    pub bytes: u64,
}

// SAFETY: repr(C), two fields of 4 bytes and three of 8, numbers only.
unsafe impl Pod for LearnBudget {
    const FIRST_SIZE_BYTES: usize = 32;
}

impl LearnBudget {
    /// # Errors
    /// [`Status::INVALID_ARGUMENT`] if `reserved` is not zero, as a later version may give it a meaning.
    fn budget(&self) -> Result<Budget, Failure> {
        if self.reserved != 0 {
            return Err(Failure::new(Status::INVALID_ARGUMENT, "`reserved` of `budget` is not zero"));
        }
        let limit = |value: u64| Some(value).filter(|value| *value > 0);
        Ok(Budget {
            time: limit(self.milliseconds).map(Duration::from_millis),
            steps: limit(self.steps),
            bytes: limit(self.bytes),
        })
    }
}

/// Why learning ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum StoppedBy {
    /// It never began: the call failed.
    None = 0,
    /// The run has all its steps.
    Finished = 1,
    /// The time is spent.
    Time = 2,
    /// The steps are taken.
    Steps = 3,
    /// One more commit would write too many bytes.
    Bytes = 4,
    /// Someone cancelled; the step in hand was dropped, all before it are kept.
    Cancelled = 5,
    /// For a reason that this interface has no number for.
    Other = 100,
}

impl From<runtime::StoppedBy> for StoppedBy {
    fn from(reason: runtime::StoppedBy) -> Self {
        match reason {
            runtime::StoppedBy::Finished => Self::Finished,
            runtime::StoppedBy::Time => Self::Time,
            runtime::StoppedBy::Steps => Self::Steps,
            runtime::StoppedBy::Bytes => Self::Bytes,
            runtime::StoppedBy::Cancelled => Self::Cancelled,
            _ => Self::Other,
        }
    }
}

/// What one call of mynah_session_learn did.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct LearnReport {
    /// sizeof(mynah_learn_report)
    pub struct_size: u32,
    /// Why it ended.
    pub stopped_by: StoppedBy,
    /// Steps of this call.
    pub steps: u64,
    /// Steps that the run has behind it.
    pub steps_done: u64,
    /// Steps that the run has in all.
    pub steps_total: u64,
    /// Mean loss of the last steps of this call, at most 10; NaN where no step was taken.
    pub loss: f64,
    /// The process's largest resident size so far; 0 where the system does not tell.
    pub peak_bytes: u64,
    /// Bytes written to the store in this call.
    pub bytes_written: u64,
    /// Number of the newest revision; 0 before the first, or without a store.
    pub revision: u64,
    /// Wall-clock time of this call.
    pub elapsed_ms: u64,
}

// SAFETY: repr(C), two fields of 4 bytes and eight of 8; 0 is a StoppedBy.
unsafe impl Pod for LearnReport {
    const FIRST_SIZE_BYTES: usize = 72;
}

impl From<&Report> for LearnReport {
    fn from(report: &Report) -> Self {
        Self {
            struct_size: 0,
            stopped_by: report.stopped_by.into(),
            steps: report.steps,
            steps_done: report.steps_done,
            steps_total: report.steps_total,
            loss: report.loss,
            peak_bytes: report.peak_bytes.unwrap_or(0),
            bytes_written: report.bytes_written,
            revision: report.revision.unwrap_or(0),
            elapsed_ms: u64::try_from(report.elapsed.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// Learns what was observed and not learned yet, until it is learned, the budget is spent, or someone cancels. A run
/// that is not finished goes on in the next call. After each step the state is in the store, where the session has one.
///
/// `budget` may be NULL for no limit, `out_report` may be NULL. A cancelled call gives MYNAH_OK, and
/// MYNAH_STOPPED_BY_CANCELLED in the report. With nothing to learn it gives MYNAH_NOTHING_TO_LEARN.
///
/// # Safety
/// `session` is NULL or open. `budget` and `out_report` are NULL or have the bytes that their struct_size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mynah_session_learn(
    session: *mut SessionHandle,
    budget: *const LearnBudget,
    out_report: *mut LearnReport,
) -> Status {
    // SAFETY: the caller promises NULL or the bytes that struct_size says.
    let cleared = unsafe { handle::clear_pod(out_report, "out_report") };
    let work = |_: &SessionHandle, session: &mut Session| {
        cleared?;
        // SAFETY: the caller promises NULL or the bytes that struct_size says.
        let budget = unsafe { handle::read_pod(budget, "budget") }?.budget()?;
        let report = session.learn(&LearnRequest::default(), budget)?;
        // SAFETY: as for `cleared`.
        unsafe { handle::set_pod(out_report, &LearnReport::from(&report), "out_report") }
    };
    // SAFETY: the caller promises NULL or an open session.
    unsafe { guard::alone(session, work) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_no_limit() {
        let budget = LearnBudget { struct_size: 32, reserved: 0, steps: 3, milliseconds: 0, bytes: 0 };
        assert_eq!(budget.budget(), Ok(Budget::steps(3)));
        let budget = LearnBudget { steps: 0, milliseconds: 1500, ..budget };
        assert_eq!(budget.budget(), Ok(Budget::time(Duration::from_millis(1500))));
        assert!(LearnBudget { reserved: 1, ..budget }.budget().is_err());
    }
}
