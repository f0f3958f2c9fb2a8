//! What changes from one forward pass to the next.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::KvCache;
use crate::compute_error::ComputeError;
use crate::device_adapter::DeviceAdapter;
use crate::ops::RopeAngles;

/// A flag that ends a pass between two layers, or two parts of a long operation, settable from any thread; cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// A flag that is not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the pass to end.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Takes the request back.
    pub fn clear(&self) {
        self.0.store(false, Ordering::Release);
    }

    /// Whether the pass shall end.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// [`ComputeError::Cancelled`] if the pass shall end.
    ///
    /// # Errors
    /// That one.
    pub fn check(&self) -> Result<(), ComputeError> {
        if self.is_set() { Err(ComputeError::Cancelled) } else { Ok(()) }
    }
}

impl Stop {
    /// Does `work`, which ends before its next launch on a GPU once the flag is set: what would have been computed means
    /// nothing then.
    ///
    /// # Errors
    /// [`ComputeError::Cancelled`] if something was left out.
    pub(crate) fn over_launches<R>(&self, work: impl FnOnce() -> Result<R, ComputeError>) -> Result<R, ComputeError> {
        let watch = Watch::begin(self.clone());
        let result = work();
        if watch.end() { Err(ComputeError::Cancelled) } else { result }
    }
}

thread_local! {
    /// The flag over this thread's launches, and whether one was left out.
    static WATCHED: RefCell<Option<(Stop, bool)>> = const { RefCell::new(None) };
}

/// Puts a flag over the launches of this thread for as long as it lives.
struct Watch {
    outer: Option<(Stop, bool)>,
}

impl Watch {
    fn begin(stop: Stop) -> Self {
        Self { outer: WATCHED.replace(Some((stop, false))) }
    }

    /// Whether a launch was left out.
    fn end(self) -> bool {
        WATCHED.with_borrow(|watched| watched.as_ref().is_some_and(|(_, left_out)| *left_out))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        WATCHED.set(self.outer.take());
    }
}

/// Whether the next launch is to be left out. Once it is, so are all that follow.
#[cfg(feature = "gpu")]
pub(crate) fn launches_have_ended() -> bool {
    WATCHED.with_borrow_mut(|watched| {
        watched.as_mut().is_some_and(|(stop, left_out)| {
            *left_out |= stop.is_set();
            *left_out
        })
    })
}

/// One forward pass over some sequences.
pub(crate) struct Pass<'a> {
    /// New tokens of each sequence.
    pub(crate) lengths: Arc<[usize]>,
    /// The turns of every token, in the order of the batch.
    pub(crate) angles: RopeAngles,
    /// The adapter whose branches join the projections.
    pub(crate) adapter: Option<&'a DeviceAdapter>,
    /// Keys and values of earlier tokens; only with one sequence.
    pub(crate) cache: Option<&'a mut KvCache>,
    /// Checked before every layer.
    pub(crate) stop: &'a Stop,
}
