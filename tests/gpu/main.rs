//! What only a GPU can do wrong: be lost, be too small, be slow, differ from the CPU or from itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::wgpu::wgpu;
use cubecl_runtime::logging::{LaunchObservation, LaunchObserver};
use mynah::learn::{
    Ilora, LearnError, LearnerState, Moment, OptimizerConfig, Row, Sequential, StepLog, StepRows, Trainer,
    TrainerConfig,
};
use mynah::session::{Interaction, LearnRequest};
use mynah::{Budget, DeviceChoice, Learner, Session};
use mynah_models::adapter::{Adapter, LoraConfig};
use mynah_models::weights::Gguf;
use mynah_models::{ComputeDevice, ComputeError, DeviceAdapter, Model, Precision, Stop, TokenBatch};
use mynah_tests::{cached_smollm2, skip, stories};

/// Two devices sum in another order; AdamW's division lets what is left of it grow where gradients are near zero. In units
/// of the learning rate, which is what a step moves a value by at most: a hundredth of a step.
const STEPS_APART: f32 = 1e-2;
const LEARNING_RATE: f64 = 1e-3;
/// Between logits of two devices, which are some 10 in size.
const LOGITS_APART: f32 = 1e-4;
/// Tokens of each of two sequences.
const SMOLLM2_TOKENS: usize = 12;
/// Between the losses of two devices, relative: f32 rounding in 30 layers.
const SMOLLM2_LOSS_APART: f32 = 1e-5;
/// Length of the difference of two devices' gradients, in lengths of a gradient: the same rounding, twice as deep.
const SMOLLM2_GRADIENTS_APART: f64 = 1e-4;

/// The GPU, or a word on why the test is skipped.
fn gpu(test: &str) -> Option<ComputeDevice> {
    match ComputeDevice::gpu() {
        Ok(device) => Some(device),
        Err(error) => {
            skip(test, &error.to_string(), "MYNAH_REQUIRE_GPU");
            None
        }
    }
}

/// Tests that lose the process's GPU must not do so under another's feet.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Counts launches, and destroys a device at one of them.
struct Loss {
    at: u64,
    seen: AtomicU64,
    device: ComputeDevice,
}

impl LaunchObserver for Loss {
    fn launched(&self, _: &'static str) {
        if self.seen.fetch_add(1, Ordering::Relaxed) == self.at {
            self.device.wgpu().unwrap().device.destroy();
        }
    }
}

fn losing(device: &ComputeDevice, at: u64) -> (Arc<Loss>, LaunchObservation) {
    let loss = Arc::new(Loss { at, seen: AtomicU64::new(0), device: device.clone() });
    (Arc::clone(&loss), LaunchObservation::new(loss))
}

fn rows(seed: u32) -> Vec<Vec<u32>> {
    let token = |row: u32, at: u32| 3 + (seed * 131 + row * 37 + at * 17) % 500;
    (0..2).map(|row| (0..6 + row * 3).map(|at| token(row, at)).collect()).collect()
}

fn as_rows(rows: &[Vec<u32>]) -> Vec<Row<'_>> {
    rows.iter().map(|tokens| Row { tokens, prompt_len: 2 }).collect()
}

fn fresh(model: &Model) -> LearnerState {
    LearnerState::new(Adapter::init(model.config(), &LoraConfig { rank: 4, ..LoraConfig::default() }, 3).unwrap())
}

fn config() -> TrainerConfig {
    let optimizer = OptimizerConfig { learning_rate: LEARNING_RATE, ..OptimizerConfig::default() };
    TrainerConfig { optimizer, ..TrainerConfig::default() }
}

/// One I-LoRA step over made-up rows.
fn step(model: &Model, state: &mut LearnerState, steps_done: u64) -> Result<StepLog, LearnError> {
    step_until(model, state, steps_done, &Stop::new())
}

fn step_until(model: &Model, state: &mut LearnerState, steps_done: u64, stop: &Stop) -> Result<StepLog, LearnError> {
    let (new, replayed) = (rows(1), rows(10 + steps_done as u32));
    let rows = StepRows { new: as_rows(&new), replayed: as_rows(&replayed) };
    let moment = Moment { steps_done, steps_total: 20 };
    Trainer::new(model, Ilora::DEFAULT, config()).step(state, &rows, moment, stop)
}

fn bits(adapter: &Adapter) -> Vec<u32> {
    adapter.values().iter().map(|value| value.to_bits()).collect()
}

/// The furthest that two adapters are apart, in steps of the learning rate.
fn apart(a: &Adapter, b: &Adapter) -> f32 {
    let furthest = a.values().iter().zip(b.values()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    furthest / LEARNING_RATE as f32
}

/// Where the loss falls: spread over the step, the same ones each time.
fn moments(launches: u64, count: u64) -> impl Iterator<Item = u64> {
    (0..count).map(move |index| (index * launches + (index * 7919) % launches) / count)
}

/// Loses the GPU at so many launches of the second step, and takes the step again on a new one each time.
fn lose_at(losses: u64) {
    let _alone = alone();
    let Some(device) = gpu("losing a GPU") else { return };
    let mut model = Model::load(&stories::gguf(), &device).unwrap();
    let mut undisturbed = fresh(&model);
    step(&model, &mut undisturbed, 1).unwrap();
    let (counted, observation) = losing(&device, u64::MAX);
    step(&model, &mut undisturbed, 2).unwrap();
    drop(observation);
    let launches = counted.seen.load(Ordering::Relaxed);

    let mut state = fresh(&model);
    step(&model, &mut state, 1).unwrap();
    for at in moments(launches, losses) {
        let (_, observation) = losing(model.device(), at);
        let before = (bits(&state.fast), bits(&state.slow), state.optimizer.clone());
        let error = step(&model, &mut state, 2).unwrap_err();
        drop(observation);
        assert!(matches!(error, LearnError::Compute(ComputeError::DeviceLost { .. })), "at {at}: {error}");
        assert!(before == (bits(&state.fast), bits(&state.slow), state.optimizer.clone()), "changed by a loss at {at}");
        let device = ComputeDevice::gpu().unwrap();
        model = Model::load(&stories::gguf(), &device).unwrap();
    }
    step(&model, &mut state, 2).unwrap();
    assert!(bits(&state.fast) == bits(&undisturbed.fast) && bits(&state.slow) == bits(&undisturbed.slow));
    let cpu = Model::load(&stories::gguf(), &ComputeDevice::cpu()).unwrap();
    let mut on_cpu = fresh(&cpu);
    for steps_done in 1..=2 {
        step(&cpu, &mut on_cpu, steps_done).unwrap();
    }
    let far = apart(&on_cpu.fast, &undisturbed.fast);
    assert!(far < STEPS_APART, "{far} steps apart");
}

#[test]
fn a_gpu_lost_in_a_step_is_an_error_and_leaves_the_state_whole() {
    lose_at(4);
}

#[test]
#[ignore = "takes minutes"]
fn a_gpu_lost_at_any_of_fifty_launches_leaves_the_state_whole() {
    lose_at(50);
}

fn facts() -> [Interaction; 2] {
    ["red", "blue"].map(|colour| Interaction::raw("colours", format!("A {colour} ball is"), colour))
}

#[test]
fn a_session_learns_on_through_losses_and_changes_of_device() {
    let _alone = alone();
    if gpu("a session that loses its GPU").is_none() {
        return;
    }
    let learned = |disturb: &mut dyn FnMut(&mut Session, u64)| {
        let optimizer = OptimizerConfig { learning_rate: LEARNING_RATE, ..OptimizerConfig::default() };
        let trainer = TrainerConfig { optimizer, ..TrainerConfig::default() };
        // A GPU computes in f32 whatever the precision, and is compared with the CPU.
        let builder = Session::builder(stories::gguf()).end_token(stories::END_TOKEN).precision(Precision::Exact);
        let mut session = builder.trainer(trainer).open().unwrap();
        session.observe_batch(&facts()).unwrap();
        let request = LearnRequest { steps: Some(4), ..LearnRequest::default() };
        for step in 0..4 {
            disturb(&mut session, step);
            let report = session.learn(&request, Budget::steps(1)).unwrap();
            assert_eq!(report.steps_done, step + 1);
        }
        session.adapter(Learner::Slow).clone()
    };
    let calm = learned(&mut |_, _| ());
    let disturbed = learned(&mut |session, step| {
        let setup = session.model().device().wgpu().cloned();
        match (step, setup) {
            (0 | 3, _) => session.set_device(DeviceChoice::Gpu).unwrap(),
            (2, _) => session.set_device(DeviceChoice::Cpu).unwrap(),
            (_, Some(setup)) => setup.device.destroy(),
            (_, None) => panic!("on the CPU before step {step}"),
        }
    });
    let far = apart(&calm, &disturbed);
    assert!(far < STEPS_APART, "{far} steps apart");
}

#[test]
fn a_session_keeps_its_precision_on_every_device() {
    let _alone = alone();
    if gpu("the precision of a session that changes its device").is_none() {
        return;
    }
    let builder = Session::builder(stories::gguf()).end_token(stories::END_TOKEN).precision(Precision::Fast);
    let mut session = builder.open().unwrap();
    session.observe_batch(&facts()).unwrap();
    session.set_device(DeviceChoice::Gpu).unwrap();
    assert_eq!(session.model().device().precision(), Precision::Fast);
    session.model().device().wgpu().unwrap().device.destroy();
    session.learn(&LearnRequest::default(), Budget::steps(1)).unwrap();
    assert!(session.notice().is_some(), "the loss was not met");
    assert_eq!(session.model().device().precision(), Precision::Fast);
    session.set_device(DeviceChoice::Cpu).unwrap();
    assert_eq!(session.model().device().precision(), Precision::Fast);
}

#[test]
fn a_tensor_that_no_buffer_holds_is_refused_with_its_size() {
    let _alone = alone();
    let Some(device) = gpu("a tensor too large") else { return };
    let model = Model::load(&stories::gguf(), &device).unwrap();
    let limit = device.max_tensor_bytes().unwrap();
    let width = model.config().intermediate_size as u64;
    let (rows, cols) = ((limit / (4 * width * 64) + 1) as usize, 64);
    let batch = TokenBatch::new(vec![5; rows * cols], rows, cols).unwrap();
    let error = model.forward(&batch, None, &Stop::new()).unwrap_err();
    let ComputeError::TensorTooLarge { bytes, limit: said, .. } = &error else { panic!("{error}") };
    assert!(*bytes > limit && *said == limit);
    assert!(error.to_string().contains(&format!("{bytes} bytes")), "{error}");
    let fits = TokenBatch::new(vec![5; 64], 1, 64).unwrap();
    device.read(model.forward(&fits, None, &Stop::new()).unwrap()).unwrap();
}

#[test]
fn exhausted_memory_is_an_error_with_its_size_and_the_step_is_repeated_on_the_cpu() {
    let _alone = alone();
    let Some(device) = gpu("exhausted memory") else { return };
    let model = Model::load(&stories::gguf(), &device).unwrap();
    let mut state = fresh(&model);
    step(&model, &mut state, 1).unwrap();
    let before = (bits(&state.fast), bits(&state.slow), state.optimizer.clone());
    device.limit_memory(1 << 10);
    let error = step(&model, &mut state, 2).unwrap_err();
    let LearnError::Compute(ComputeError::OutOfMemory { bytes, .. }) = &error else { panic!("{error}") };
    assert!(*bytes > 0 && error.to_string().contains(&format!("{bytes} bytes")), "{error}");
    assert!(before == (bits(&state.fast), bits(&state.slow), state.optimizer.clone()), "changed without memory");

    let builder = Session::builder(stories::gguf()).end_token(stories::END_TOKEN).device(DeviceChoice::Gpu);
    let mut session = builder.precision(Precision::Exact).open().unwrap();
    assert!(session.model().device().is_gpu(), "a device without memory was opened again");
    session.observe_batch(&facts()).unwrap();
    session.model().device().limit_memory(1 << 10);
    let report = session.learn(&LearnRequest::default(), Budget::steps(1)).unwrap();
    assert_eq!(report.steps_done, 1);
    assert!(!session.model().device().is_gpu(), "it computes where there is no memory");
    assert!(session.notice().is_some_and(|notice| notice.contains("no memory left")), "{:?}", session.notice());
}

#[test]
fn the_limits_of_the_smallest_gpus_suffice() {
    let _alone = alone();
    if gpu("a GPU with WebGPU's default limits").is_none() {
        return;
    }
    let small = ComputeDevice::gpu_within(wgpu::Limits::default()).unwrap();
    assert_eq!(small.max_tensor_bytes(), Some(128 << 20));
    let [on_small, on_cpu] = [&small, &ComputeDevice::cpu()].map(|device| {
        let model = Model::load(&stories::gguf(), device).unwrap();
        let mut state = fresh(&model);
        for steps_done in 1..=3 {
            step(&model, &mut state, steps_done).unwrap();
        }
        let mut cache = model.new_cache(8);
        let logits = model.decode(&mut cache, &[5, 9, 30], None, &Stop::new()).unwrap();
        let next = model.decode(&mut cache, &[7], None, &Stop::new()).unwrap();
        (state, [logits, next].concat())
    });
    let far = apart(&on_small.0.fast, &on_cpu.0.fast);
    assert!(far < 3.0 * STEPS_APART, "{far} steps apart");
    let logits_apart = on_small.1.iter().zip(&on_cpu.1).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(logits_apart < LOGITS_APART, "{logits_apart}");
    // Once its loss was met, others get a device with all that there is.
    let model = Model::load(&stories::gguf(), &small).unwrap();
    small.wgpu().unwrap().device.destroy();
    step(&model, &mut fresh(&model), 1).unwrap_err();
}

/// The loss of one SmolLM2 batch and its gradient with respect to a made-up adapter.
fn loss_and_gradient(model: &Model) -> (f32, Vec<f32>) {
    let mut adapter = Adapter::init(model.config(), &LoraConfig::default(), 5).unwrap();
    // B is zero at first, and with it the gradient of A.
    let made_up = |i: usize| ((i * 7919 % 101) as f32 - 50.0) * 1e-4;
    adapter.values_mut().iter_mut().enumerate().for_each(|(i, value)| *value += made_up(i));
    let on_device = model.upload(&adapter).unwrap();
    let ids: Vec<u32> = (0..2 * SMOLLM2_TOKENS as u32).map(|i| 1000 + 7919 * i % 40_000).collect();
    let batch = TokenBatch::new(ids.clone(), 2, SMOLLM2_TOKENS).unwrap();
    let (layers, stop) = (model.config().num_hidden_layers, Stop::new());
    let tape = model.record(&batch, &[layers], &on_device, layers, &stop).unwrap();
    let targets: Vec<u32> = ids.iter().rev().copied().collect();
    let loss = model.token_nll(tape.hidden()[0].clone(), &targets, &stop).unwrap().mean();
    let value = model.device().read(loss.clone().inner()).unwrap()[0];
    (value, tape.gradients(&loss).unwrap())
}

#[test]
fn a_batch_of_smollm2_agrees_with_the_cpu() {
    let _alone = alone();
    let Some(device) = gpu("SmolLM2 on a GPU") else { return };
    let Some(file) = cached_smollm2() else {
        let reason = "the model is not in the cache: `mynah pull smollm2-135m-instruct`";
        return skip("SmolLM2 on a GPU", reason, "MYNAH_REQUIRE_MODEL");
    };
    let gguf = Gguf::open(&file).unwrap_or_else(|error| panic!("{error}"));
    let on = |device: &ComputeDevice| loss_and_gradient(&Model::load(&gguf, device).unwrap());
    let ((gpu_loss, on_gpu), (cpu_loss, on_cpu)) = (on(&device), on(&ComputeDevice::cpu()));
    let loss_apart = (gpu_loss / cpu_loss - 1.0).abs();
    assert!(loss_apart < SMOLLM2_LOSS_APART, "losses {gpu_loss} and {cpu_loss}");
    let length = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let difference = length(&mut on_gpu.iter().zip(&on_cpu).map(|(a, b)| a - b));
    let apart = difference / length(&mut on_cpu.iter().copied());
    eprintln!("losses {loss_apart:e} apart, gradients {apart:e}");
    assert!(apart < SMOLLM2_GRADIENTS_APART, "{apart}");
}

/// Launches and reads of one pass. Only the fewest of some passes count: on a busy machine, work is cut into more launches.
fn fewest_launches(device: &ComputeDevice, mut pass: impl FnMut()) -> [u64; 2] {
    let work = (0..5).filter_map(|_| device.observed(&mut pass).1);
    work.map(|work| [work.launches, work.reads]).min().unwrap()
}

#[test]
fn launches_and_reads_are_as_many_as_they_were_counted() {
    let _alone = alone();
    let Some(device) = gpu("counts of launches") else { return };
    let model = Model::load(&stories::gguf(), &device).unwrap();
    let layers = model.config().num_hidden_layers as u64;
    let mut cache = model.new_cache(64);
    let mut decode = |adapter: Option<&DeviceAdapter>| {
        cache.reset();
        model.decode(&mut cache, &[3], adapter, &Stop::new()).unwrap();
        fewest_launches(&device, || drop(model.decode(&mut cache, &[5], adapter, &Stop::new()).unwrap()))
    };
    // A layer: seven products, which add the residuals, two norms, two ropes, keys and values into the cache, attention, the
    // activation.
    assert_eq!(decode(None), [15 * layers + 2, 1]);
    let adapter = model.upload(&fresh(&model).fast).unwrap();
    // Each product has its way into few dimensions.
    assert_eq!(decode(Some(&adapter)), [22 * layers + 2, 1]);

    let mut state = fresh(&model);
    let rows = rows(1);
    let moment = Moment { steps_done: 1, steps_total: 20 };
    let trainer = Trainer::new(&model, Sequential, config());
    let learn = fewest_launches(&device, || {
        let rows = StepRows { new: as_rows(&rows), replayed: Vec::new() };
        drop(trainer.step(&mut state, &rows, moment, &Stop::new()).unwrap());
    });
    // A layer: 20 forwards; both norms and the activation again; 34 backwards, of which burn's own are five sums of gradients and
    // a one to begin with. The first layer has less.
    assert_eq!(learn, [57 * layers + 29, 2]);
}

/// The kernels that are ours, by their names.
const OURS: &str = "mynah_models::";
/// Most launches of burn's own in one layer, forwards or backwards.
const BURNS_IN_A_LAYER: u64 = 16;

/// Sets a flag at one of our launches, and counts what follows.
struct Cancel {
    at: u64,
    stop: Stop,
    device: ComputeDevice,
    ours: AtomicU64,
    burns_after: AtomicU64,
    submissions_before: AtomicU64,
}

impl Cancel {
    fn at(at: u64, device: &ComputeDevice) -> Arc<Self> {
        let zero = || AtomicU64::new(0);
        let device = device.clone();
        Arc::new(Self { at, stop: Stop::new(), device, ours: zero(), burns_after: zero(), submissions_before: zero() })
    }
}

impl LaunchObserver for Cancel {
    fn launched(&self, kernel: &'static str) {
        if !kernel.starts_with(OURS) {
            self.burns_after.fetch_add(u64::from(self.stop.is_set()), Ordering::Relaxed);
        } else if self.ours.fetch_add(1, Ordering::Relaxed) == self.at {
            self.submissions_before.store(self.device.submissions().unwrap(), Ordering::Relaxed);
            self.stop.set();
        }
    }
}

#[test]
fn after_a_cancel_nothing_is_launched_but_what_is_left_of_a_layer_and_one_submission_follows() {
    let _alone = alone();
    let Some(device) = gpu("cancels on a GPU") else { return };
    let model = Model::load(&stories::gguf(), &device).unwrap();
    let run = |at: u64| {
        let cancel = Cancel::at(at, &device);
        let observation = LaunchObservation::new(Arc::clone(&cancel) as Arc<dyn LaunchObserver>);
        let mut state = fresh(&model);
        let result = step_until(&model, &mut state, 1, &cancel.stop);
        drop(observation);
        (cancel, result, state)
    };
    let (whole, result, _) = run(u64::MAX);
    result.unwrap();
    let launches = whole.ours.load(Ordering::Relaxed);
    for at in moments(launches, 12) {
        let (cancel, result, state) = run(at);
        assert!(matches!(result, Err(LearnError::Compute(ComputeError::Cancelled))), "at {at}: {result:?}");
        assert!(bits(&state.fast) == bits(&fresh(&model).fast), "changed by a cancel at {at}");
        assert_eq!(cancel.ours.load(Ordering::Relaxed), at + 1, "launches until the end of a cancel at {at}");
        let burns = cancel.burns_after.load(Ordering::Relaxed);
        assert!(burns <= BURNS_IN_A_LAYER, "{burns} of burn's launches after a cancel at {at}");
        let submissions = device.submissions().unwrap() - cancel.submissions_before.load(Ordering::Relaxed);
        assert!(submissions <= 1, "{submissions} submissions after a cancel at {at}");
    }
}

fn twenty_steps(model: &Model) -> LearnerState {
    let mut state = fresh(model);
    for steps_done in 1..=20 {
        step(model, &mut state, steps_done).unwrap();
    }
    state
}

#[test]
fn twenty_steps_agree_with_the_cpu_and_repeat_to_the_bit() {
    let _alone = alone();
    let Some(device) = gpu("twenty steps on a GPU") else { return };
    let on = |device: &ComputeDevice| twenty_steps(&Model::load(&stories::gguf(), device).unwrap());
    let (first, second, cpu) = (on(&device), on(&device), on(&ComputeDevice::cpu()));
    let moved = apart(&cpu.fast, &fresh(&Model::load(&stories::gguf(), &device).unwrap()).fast);
    assert!(moved > 5.0, "twenty steps moved values by {moved} at most");
    assert!(bits(&first.fast) == bits(&second.fast) && bits(&first.slow) == bits(&second.slow));
    for (found, expected) in [(&first.fast, &cpu.fast), (&first.slow, &cpu.slow)] {
        let far = apart(found, expected);
        assert!(far < 20.0 * STEPS_APART, "{far} steps apart");
    }
}
