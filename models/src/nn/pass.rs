//! What changes from one forward pass to the next.

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
