//! Cuts the work for a GPU into short submissions.
//!
//! A GPU draws the screen too, and a driver resets one that works too long on a single submission. So what launches are
//! expected to take is added up, and handed over before it would come to more than [`TARGET_SECONDS`]. How long submissions
//! took sets what is expected of the next ones, for each [`Kernel`] by itself: on one device their rates are up to ten times
//! apart. The host never runs more than one submission ahead, so that between two of them a cancel is seen.
//!
//! Where a cut falls changes no result: kernels run in the order of their launches either way.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use burn::tensor::wgpu::wgpu;
use cubecl::client::Client;

/// Longest that a submission may take.
const LONGEST: Duration = Duration::from_millis(50);
/// What is aimed at: the same kernel takes longer beside other work, and where its operands are in no cache.
const TARGET_SECONDS: f64 = 0.4 * LONGEST.as_secs_f64();
/// Rate of a kernel that was not measured yet, in FLOP per second: that of a slow software driver.
const FIRST_RATE: f64 = 1e9;
/// The same of launches, in launches per second.
const FIRST_LAUNCH_RATE: f64 = 5e3;
/// Most by which a rate grows from one submission to the next.
const GROWTH: f64 = 2.0;
/// Times that are remembered.
const REMEMBERED: usize = 4096;

/// Kinds of work that a device does at rates of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// Packed weights times many tokens.
    Tiles,
    /// The same with the transposed matrix.
    TransposedTiles,
    /// Packed weights times one token.
    Single,
    /// Tokens into the few dimensions of an adapter.
    Reduce,
    /// The gradients of an adapter's matrices.
    AdapterGradients,
    /// Causal attention.
    Attention,
    /// Its gradients of queries.
    AttentionQueries,
    /// Its gradients of keys and values.
    AttentionKeys,
    /// Logits to losses.
    Loss,
    /// Normalization of rows, both ways.
    Norm,
    /// One unit for one or two values.
    Elementwise,
}

impl Kernel {
    const COUNT: usize = Self::Elementwise as usize + 1;
}

/// What was handed to one device.
#[derive(Debug)]
pub(crate) struct Pace {
    device: wgpu::Device,
    queue: wgpu::Queue,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    estimate: Estimate,
    /// Launched since the last submission, and when that began.
    pending: Seconds,
    pending_since: Option<Instant>,
    submitted: u64,
    running: Option<Submission>,
    last_done: Option<Instant>,
    times: VecDeque<Duration>,
}

#[derive(Debug)]
struct Submission {
    index: wgpu::SubmissionIndex,
    /// Its first launch: some drivers work while they are handed it.
    since: Instant,
    /// When the driver said that it is done.
    done: Arc<OnceLock<Instant>>,
    expected: Seconds,
}

/// What a device does in a second: FLOP of each kernel, and behind those launches of any.
#[derive(Clone, Debug)]
struct Estimate([f64; Kernel::COUNT + 1]);

/// What work is expected to take, by the parts of an [`Estimate`].
#[derive(Clone, Copy, Debug, Default)]
struct Seconds([f64; Kernel::COUNT + 1]);

impl Pace {
    pub(crate) fn new(device: wgpu::Device, queue: wgpu::Queue) -> Self {
        let state = State {
            estimate: Estimate::default(),
            pending: Seconds::default(),
            pending_since: None,
            submitted: 0,
            running: None,
            last_done: None,
            times: VecDeque::with_capacity(REMEMBERED),
        };
        Self { device, queue, state: Mutex::new(state) }
    }

    /// FLOP that one launch may have; a kernel with more is launched in parts.
    pub(crate) fn flop_per_launch(&self, kernel: Kernel) -> f64 {
        self.state().estimate.flop_in_target(kernel)
    }

    /// Counts a launch of so many FLOP that comes next. What was launched before is submitted if there would be too much
    /// otherwise.
    pub(crate) fn before_launch(&self, client: &Client, kernel: Kernel, flop: f64) {
        let mut state = self.state();
        let cost = state.estimate.cost(kernel, flop);
        if state.pending.total() > 0.0 && state.pending.total() + cost.total() > TARGET_SECONDS {
            self.submit(client, &mut state);
        }
        state.pending.add(&cost);
        state.pending_since.get_or_insert_with(Instant::now);
    }

    /// Notes that all work is done, since a result was read: what comes next is a submission of its own.
    pub(crate) fn all_done(&self) {
        let mut state = self.state();
        state.pending = Seconds::default();
        state.pending_since = None;
        state.running = None;
    }

    /// How long the newest submissions took, in their order, at most 4096 of them; they are forgotten.
    pub(crate) fn take_times(&self) -> Vec<Duration> {
        self.state().times.drain(..).collect()
    }

    /// Submissions so far.
    pub(crate) fn submitted(&self) -> u64 {
        self.state().submitted
    }

    /// Lets every kernel have so many FLOP in a launch, until submissions are measured.
    #[cfg(test)]
    pub(crate) fn assume_flop_per_launch(&self, flop: f64) {
        self.state().estimate = Estimate([flop / TARGET_SECONDS; Kernel::COUNT + 1]);
    }

    fn submit(&self, client: &Client, state: &mut State) {
        state.submitted += 1;
        if let Err(error) = client.flush() {
            // Who reads a result is told the same.
            log::debug!("a submission failed: {error}");
        }
        // An empty submission behind the work marks its end.
        let index = self.queue.submit([]);
        let done = Arc::new(OnceLock::new());
        let of_driver = Arc::clone(&done);
        self.queue.on_submitted_work_done(move || _ = of_driver.set(Instant::now()));
        let since = state.pending_since.take().unwrap_or_else(Instant::now);
        let next = Submission { index, since, done, expected: std::mem::take(&mut state.pending) };
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
        let done = *submission.done.get_or_init(Instant::now);
        let began = state.last_done.map_or(submission.since, |last| last.max(submission.since));
        state.last_done = Some(done);
        let took = done - began;
        state.remember(took);
        state.estimate.adapt(&submission.expected, took);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn remember(&mut self, took: Duration) {
        if self.times.len() == REMEMBERED {
            self.times.pop_front();
        }
        self.times.push_back(took);
    }
}

impl Default for Estimate {
    fn default() -> Self {
        let mut rates = [FIRST_RATE; Kernel::COUNT + 1];
        rates[Kernel::COUNT] = FIRST_LAUNCH_RATE;
        Self(rates)
    }
}

impl Estimate {
    fn flop_in_target(&self, kernel: Kernel) -> f64 {
        self.0[kernel as usize] * TARGET_SECONDS
    }

    /// Of one launch.
    fn cost(&self, kernel: Kernel, flop: f64) -> Seconds {
        let mut cost = Seconds::default();
        cost.0[kernel as usize] = flop / self.0[kernel as usize];
        cost.0[Kernel::COUNT] = 1.0 / self.0[Kernel::COUNT];
        cost
    }

    /// Learns from a submission: each rate as far as its kernel was expected to have a share in the time. A slow submission
    /// counts at once, a fast one bit by bit. What a busy host adds to the time makes submissions shorter, never longer.
    fn adapt(&mut self, expected: &Seconds, took: Duration) {
        let total = expected.total();
        let faster = total / took.as_secs_f64().max(1e-6);
        let pull = if faster < 1.0 { 0.5 } else { 0.125 };
        for (rate, seconds) in self.0.iter_mut().zip(expected.0) {
            *rate = (*rate * faster.powf(pull * seconds / total).min(GROWTH)).max(1.0);
        }
    }
}

impl Seconds {
    fn total(&self) -> f64 {
        self.0.iter().sum()
    }

    fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, part)| *sum += part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device that takes so long for a FLOP of each kernel and for a launch.
    struct Device {
        seconds_per_flop: [f64; Kernel::COUNT],
        seconds_per_launch: f64,
    }

    impl Device {
        fn of_one_rate(flop_per_s: f64) -> Self {
            Self { seconds_per_flop: [1.0 / flop_per_s; Kernel::COUNT], seconds_per_launch: 0.0 }
        }

        fn takes(&self, kernel: Kernel, flop: f64) -> f64 {
            self.seconds_per_flop[kernel as usize] * flop + self.seconds_per_launch
        }
    }

    /// Launches all of `work` in parts as [`Pace`] does, and gives how long each submission took.
    fn run(estimate: &mut Estimate, device: &Device, work: impl Iterator<Item = (Kernel, f64)>) -> Vec<f64> {
        let (mut pending, mut pending_takes) = (Seconds::default(), 0.0);
        let mut times = Vec::new();
        for (kernel, mut flop) in work {
            while flop > 0.0 {
                let part = flop.min(estimate.flop_in_target(kernel));
                flop -= part;
                let cost = estimate.cost(kernel, part);
                if pending.total() > 0.0 && pending.total() + cost.total() > TARGET_SECONDS {
                    estimate.adapt(&std::mem::take(&mut pending), Duration::from_secs_f64(pending_takes));
                    times.push(std::mem::take(&mut pending_takes));
                }
                pending.add(&cost);
                pending_takes += device.takes(kernel, part);
            }
        }
        times
    }

    fn longest(times: &[f64]) -> f64 {
        times.iter().copied().fold(0.0, f64::max)
    }

    fn mean(times: &[f64]) -> f64 {
        times.iter().sum::<f64>() / times.len() as f64
    }

    #[test]
    fn submissions_come_to_the_target_on_slow_and_fast_devices() {
        for rate in [1e13, 3e8, 5e11] {
            let mut estimate = Estimate::default();
            let device = Device::of_one_rate(rate);
            let work = || std::iter::repeat_n((Kernel::Tiles, rate), 20);
            run(&mut estimate, &device, work());
            let times = run(&mut estimate, &device, work());
            let (longest, mean) = (longest(&times) / TARGET_SECONDS, mean(&times) / TARGET_SECONDS);
            // The end of a second's work is a part of a target.
            assert!(longest < 1.02 && mean > 0.95, "{rate} FLOP/s: {longest} and {mean} targets");
        }
    }

    #[test]
    fn kernels_of_different_rates_in_one_submission_stay_within_the_limit() {
        let mut device = Device::of_one_rate(1e10);
        device.seconds_per_flop[Kernel::AttentionKeys as usize] = 1.0 / 2e8;
        device.seconds_per_flop[Kernel::Loss as usize] = 1.0 / 4e10;
        device.seconds_per_launch = 1e-4;
        // Of each pass, small and large launches of every kernel, in turn.
        let pass = || {
            let layer = [
                (Kernel::Norm, 1e5),
                (Kernel::Tiles, 4e8),
                (Kernel::AttentionKeys, 4e6),
                (Kernel::Elementwise, 1e6),
                (Kernel::TransposedTiles, 1e8),
            ];
            std::iter::repeat_n(layer, 30).flatten().chain([(Kernel::Tiles, 2e9), (Kernel::Loss, 3e9)])
        };
        let mut estimate = Estimate::default();
        for _ in 0..4 {
            run(&mut estimate, &device, pass());
        }
        let times = run(&mut estimate, &device, pass());
        assert!(longest(&times) < LONGEST.as_secs_f64(), "{} s", longest(&times));
        assert!(mean(&times) > 0.5 * TARGET_SECONDS, "{} s on average", mean(&times));
    }

    #[test]
    fn a_device_that_slows_down_by_half_is_followed_within_the_limit() {
        let mut estimate = Estimate::default();
        let work = || std::iter::repeat_n((Kernel::Tiles, 1e12), 20);
        run(&mut estimate, &Device::of_one_rate(1e12), work());
        let times = run(&mut estimate, &Device::of_one_rate(0.5e12), work());
        assert!(longest(&times) <= LONGEST.as_secs_f64(), "{} s", longest(&times));
    }
}
