//! What other threads may do with a session at work: cancel it and watch it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use mynah_models::Stop;

/// What a session is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum Phase {
    /// Nothing.
    Idle = 0,
    /// Computing a prompt or choosing tokens; counted in new tokens.
    Generating = 1,
    /// Storing examples; counted in examples.
    Observing = 2,
    /// Taking steps; counted in steps of the run.
    Learning = 3,
    /// Answering examples or scoring a text; counted in examples or windows.
    Evaluating = 4,
}

impl Phase {
    const ALL: [Self; 5] = [Self::Idle, Self::Generating, Self::Observing, Self::Learning, Self::Evaluating];
}

/// How far the call in hand is.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// How many of `total` are done.
    pub done: u64,
    /// How many there are; 0 where that is not known.
    pub total: u64,
    /// Loss of the newest step of this session, NaN before the first.
    pub loss: f64,
}

/// A handle on a session, for any thread; clones are of the same session.
///
/// The numbers of a [`Progress`] are read one after another, so they may be of neighbouring moments.
#[derive(Debug, Clone)]
pub struct Control(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    stop: Stop,
    phase: AtomicU8,
    done: AtomicU64,
    total: AtomicU64,
    loss_bits: AtomicU64,
}

impl Control {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Shared {
            stop: Stop::new(),
            phase: AtomicU8::new(Phase::Idle as u8),
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            loss_bits: AtomicU64::new(f64::NAN.to_bits()),
        }))
    }

    /// Ends the call in hand at the next layer, forwards or backwards, or token; with none in hand, the next one ends at once.
    ///
    /// The call that it ended uses it up. Never blocks.
    pub fn cancel(&self) {
        self.0.stop.set();
    }

    /// Takes back a cancel that no call has used up.
    pub fn reset(&self) {
        self.0.stop.clear();
    }

    /// How far the call in hand is. Never blocks.
    pub fn progress(&self) -> Progress {
        let phase = usize::from(self.0.phase.load(Ordering::Relaxed));
        Progress {
            phase: Phase::ALL.get(phase).copied().unwrap_or(Phase::Idle),
            done: self.0.done.load(Ordering::Relaxed),
            total: self.0.total.load(Ordering::Relaxed),
            loss: f64::from_bits(self.0.loss_bits.load(Ordering::Relaxed)),
        }
    }

    /// The flag that passes look at.
    pub(crate) fn stop(&self) -> &Stop {
        &self.0.stop
    }

    /// Starts a phase. It ends, and a cancel is used up, when the result is dropped.
    pub(crate) fn begin(&self, phase: Phase, total: u64) -> Busy {
        self.0.done.store(0, Ordering::Relaxed);
        self.0.total.store(total, Ordering::Relaxed);
        self.0.phase.store(phase as u8, Ordering::Relaxed);
        Busy(self.clone())
    }

    pub(crate) fn set_done(&self, done: u64) {
        self.0.done.store(done, Ordering::Relaxed);
    }

    pub(crate) fn set_progress(&self, done: u64, total: u64) {
        self.0.total.store(total, Ordering::Relaxed);
        self.set_done(done);
    }

    pub(crate) fn set_loss(&self, loss: f64) {
        self.0.loss_bits.store(loss.to_bits(), Ordering::Relaxed);
    }
}

/// A call in hand.
#[derive(Debug)]
pub(crate) struct Busy(Control);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.0.phase.store(Phase::Idle as u8, Ordering::Relaxed);
        self.0.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancel_lasts_until_a_call_ends() {
        let control = Control::new();
        let elsewhere = control.clone();
        elsewhere.cancel();
        assert!(control.stop().is_set());
        let busy = control.begin(Phase::Learning, 5);
        control.set_done(2);
        control.set_loss(1.5);
        assert!(control.stop().is_set(), "a cancel before the call ends it at once");
        let progress = elsewhere.progress();
        assert_eq!((progress.phase, progress.done, progress.total, progress.loss), (Phase::Learning, 2, 5, 1.5));
        drop(busy);
        assert!(!control.stop().is_set());
        assert_eq!(elsewhere.progress().phase, Phase::Idle);
    }
}
