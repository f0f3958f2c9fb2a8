//! Cuts the work for a GPU into short submissions.
//!
//! A GPU draws the screen too, and a driver resets one that works too long on a single submission. So what kernels cost is
//! added up as they are launched, and handed over whenever it comes to [`TARGET_SECONDS`] at the rate that the device was seen to
//! work at. The host never runs more than one submission ahead, so that between two of them a cancel is seen.
//!
//! Where a cut falls changes no result: kernels run in the order of their launches either way.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use burn::tensor::wgpu::wgpu;
use cubecl::client::Client;

/// Longest that a submission may take.
const LONGEST: Duration = Duration::from_millis(50);
/// What is aimed at: kernels of the same cost differ by their memory traffic.
const TARGET_SECONDS: f64 = 0.4 * LONGEST.as_secs_f64();
/// Rate of a device that was not measured yet, in FLOP per second: that of a slow software driver.
const FIRST_RATE: f64 = 1e9;
/// Most by which a rate grows from one submission to the next.
const GROWTH: f64 = 2.0;
/// What a launch costs at least, in seconds: its dispatch, and the launches of burn's own that come with it.
const LAUNCH_SECONDS: f64 = 2e-4;
/// Times that are remembered.
const REMEMBERED: usize = 4096;

/// What was handed to one device.
#[derive(Debug)]
pub(crate) struct Pace {
    device: wgpu::Device,
    queue: wgpu::Queue,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// FLOP per second.
    rate: f64,
    /// Seconds of work, at that rate, that were launched since the last submission.
    pending: f64,
    running: Option<Submission>,
    last_done: Option<Instant>,
    times: VecDeque<Duration>,
}

#[derive(Debug)]
struct Submission {
    index: wgpu::SubmissionIndex,
    at: Instant,
    seconds_expected: f64,
}

impl Pace {
    pub(crate) fn new(device: wgpu::Device, queue: wgpu::Queue) -> Self {
        let state = State {
            rate: FIRST_RATE,
            pending: 0.0,
            running: None,
            last_done: None,
            times: VecDeque::with_capacity(REMEMBERED),
        };
        Self { device, queue, state: Mutex::new(state) }
    }

    /// FLOP that one launch may have; a kernel with more is launched in parts.
    pub(crate) fn flop_per_launch(&self) -> f64 {
        self.state().rate * TARGET_SECONDS
    }

    /// Counts a launch of so many FLOP, and submits what has come together if that is enough.
    pub(crate) fn launched(&self, client: &Client, flop: f64) {
        let mut state = self.state();
        state.pending += (flop / state.rate).max(LAUNCH_SECONDS);
        if state.pending >= TARGET_SECONDS {
            self.submit(client, &mut state);
        }
    }

    /// How long the newest submissions took, in their order, at most 4096 of them; they are forgotten.
    pub(crate) fn take_times(&self) -> Vec<Duration> {
        self.state().times.drain(..).collect()
    }

    fn submit(&self, client: &Client, state: &mut State) {
        if let Err(error) = client.flush() {
            // Who reads a result is told the same.
            log::debug!("a submission failed: {error}");
        }
        // An empty submission behind the work marks its end.
        let next = Submission { index: self.queue.submit([]), at: Instant::now(), seconds_expected: state.pending };
        state.pending = 0.0;
        if let Some(before) = state.running.replace(next) {
            self.wait(before, state);
        }
    }

    fn wait(&self, submission: Submission, state: &mut State) {
        let wait = wgpu::PollType::Wait { submission_index: Some(submission.index), timeout: None };
        if let Err(error) = self.device.poll(wait) {
            log::debug!("waiting for a submission: {error}");
            return;
        }
        let done = Instant::now();
        let began = state.last_done.map_or(submission.at, |last| last.max(submission.at));
        state.last_done = Some(done);
        let took = done - began;
        state.adapt(submission.seconds_expected, took);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Learns the rate from a submission. A slow one counts at once, a fast one bit by bit. What a busy host adds to the
    /// time makes submissions shorter, never longer.
    fn adapt(&mut self, expected_seconds: f64, took: Duration) {
        if self.times.len() == REMEMBERED {
            self.times.pop_front();
        }
        self.times.push_back(took);
        let seen = self.rate * expected_seconds / took.as_secs_f64().max(1e-6);
        let share = if seen < self.rate { 0.5 } else { 0.125 };
        self.rate = (self.rate + share * (seen - self.rate)).clamp(1e6, self.rate * GROWTH);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State { rate: FIRST_RATE, pending: 0.0, running: None, last_done: None, times: VecDeque::new() }
    }

    /// Submissions of [`TARGET_SECONDS`] on a device of this rate, until the estimate stands still.
    fn settle(state: &mut State, flop_per_s: f64) -> Duration {
        let mut took = Duration::ZERO;
        for _ in 0..200 {
            let flop = state.rate * TARGET_SECONDS;
            took = Duration::from_secs_f64(flop / flop_per_s);
            state.adapt(TARGET_SECONDS, took);
        }
        took
    }

    #[test]
    fn submissions_come_to_the_target_on_slow_and_fast_devices() {
        let mut state = state();
        for rate in [1e13, 3e8, 5e11] {
            let took = settle(&mut state, rate);
            let off = took.as_secs_f64() / TARGET_SECONDS;
            assert!((0.99..1.01).contains(&off), "{took:?} at {rate} FLOP/s");
        }
        assert_eq!(state.times.len(), 600);
    }

    #[test]
    fn a_device_that_slows_down_by_half_is_followed_within_the_limit() {
        let mut state = state();
        settle(&mut state, 1e12);
        let flop = state.rate * TARGET_SECONDS;
        assert!(Duration::from_secs_f64(flop / 0.5e12) <= LONGEST);
    }
}
