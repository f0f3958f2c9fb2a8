//! Continual-learning methods: what holds for all of them, and what holds between two.

use mynah::budget::estimate;
use mynah::learn::methods::ContinualMethod;
use mynah::learn::{
    Batch, Cadence, ConsistencyForm, Er, HiddenLayers, Ilora, LearnError, LearnerState, Method, Moment,
    OptimizerConfig, Retention, Row, Sequential, StepLog, StepRows, TokenScope, Trainer, TrainerConfig,
};
use mynah_models::adapter::{Adapter, LoraConfig};
use mynah_models::{ComputeDevice, ComputeError, Model, Stop};
use mynah_tests::stories;

const STEPS: u64 = 5;

fn model() -> Model {
    Model::load(&stories::gguf(), &ComputeDevice::cpu()).unwrap()
}

fn fresh(model: &Model) -> LearnerState {
    LearnerState::new(Adapter::init(model.config(), &LoraConfig { rank: 4, ..LoraConfig::default() }, 3).unwrap())
}

fn config() -> TrainerConfig {
    let optimizer = OptimizerConfig { learning_rate: 1e-2, warmup_steps: 2, ..OptimizerConfig::default() };
    TrainerConfig { optimizer, ..TrainerConfig::default() }
}

/// Rows of made-up tokens, of different lengths.
fn rows(seed: u32) -> Vec<Vec<u32>> {
    let token = |row: u32, at: u32| 3 + (seed * 131 + row * 37 + at * 17) % 500;
    (0..3).map(|row| (0..6 + row * 3).map(|at| token(row, at)).collect()).collect()
}

fn as_rows(rows: &[Vec<u32>]) -> Vec<Row<'_>> {
    rows.iter().map(|tokens| Row { tokens, prompt_len: 2 }).collect()
}

/// Takes the steps of a run that has something to replay from its first step on.
fn run(model: &Model, method: impl ContinualMethod, config: TrainerConfig) -> (LearnerState, Vec<StepLog>) {
    let mut state = fresh(model);
    let trainer = Trainer::new(model, method, config);
    let logs = (1..=STEPS).map(|steps_done| {
        let (new, replayed) = (rows(1), rows(10 + steps_done as u32));
        let rows = StepRows { new: as_rows(&new), replayed: as_rows(&replayed) };
        let moment = Moment { steps_done, steps_total: STEPS };
        trainer.step(&mut state, &rows, moment, &Stop::new()).unwrap()
    });
    let logs = logs.collect();
    (state, logs)
}

fn losses(logs: &[StepLog]) -> Vec<f64> {
    logs.iter().map(|log| log.loss).collect()
}

fn passes(logs: &[StepLog]) -> Vec<u64> {
    logs.iter().map(|log| log.forward_passes).collect()
}

fn same_bytes(a: &Adapter, b: &Adapter) -> bool {
    a.values().iter().map(|v| v.to_bits()).eq(b.values().iter().map(|v| v.to_bits()))
}

#[test]
fn every_method_learns_what_is_new_and_serves_finite_values() {
    let model = model();
    for method in Method::ALL {
        let (state, logs) = run(&model, method, config());
        let each =
            f64::from(logs[0].new_nll.iter().zip(rows(1)).map(|(nll, row)| nll * (row.len() - 2) as f32).sum::<f32>());
        let tokens = rows(1).iter().map(|row| row.len() - 2).sum::<usize>() as f64;
        // Rounding of a sum of a few dozen floats.
        assert!((each / tokens - logs[0].cross_entropy).abs() < 1e-5, "the rows' means make the mean");
        let (first, last) = (logs[0].cross_entropy, logs[STEPS as usize - 1].cross_entropy);
        assert!(last < first - 0.1, "{} went from {first} to {last}", method.name());
        assert!(state.slow.values().iter().chain(state.fast.values()).all(|value| value.is_finite()));
        assert!(!same_bytes(&state.slow, &fresh(&model).slow), "{} serves what it began with", method.name());
    }
}

#[test]
fn lambda_zero_is_experience_replay_to_the_byte() {
    let model = model();
    let (er, er_logs) = run(&model, Er::DEFAULT, config());
    let lambda_zero = Ilora { retention: Retention::Lambda(0.0), ..Ilora::DEFAULT };
    let (ilora, ilora_logs) = run(&model, lambda_zero, config());
    assert!(same_bytes(&ilora.fast, &er.fast) && same_bytes(&ilora.slow, &ilora.fast));
    assert_eq!(losses(&ilora_logs), losses(&er_logs));
    assert!(ilora_logs.iter().all(|log| log.consistency == Some(0.0)));
}

#[test]
fn gamma_zero_trains_as_experience_replay_and_drops_the_slow_pass() {
    let model = model();
    let (er, er_logs) = run(&model, Er::DEFAULT, config());
    let (without, without_logs) = run(&model, Ilora { gamma: 0.0, ..Ilora::DEFAULT }, config());
    assert!(same_bytes(&without.fast, &er.fast) && !same_bytes(&without.slow, &er.slow));
    assert_eq!((passes(&er_logs), passes(&without_logs)), (vec![1; 5], vec![1; 5]));
    let (with, with_logs) = run(&model, Ilora::DEFAULT, config());
    assert_eq!(passes(&with_logs), [1, 2, 2, 2, 2], "in the first step the learners are equal");
    assert!(!same_bytes(&with.fast, &er.fast));
}

#[test]
fn without_replay_every_method_is_plain_fine_tuning() {
    let model = model();
    let trainer = |method: Method| {
        let mut state = fresh(&model);
        let trainer = Trainer::new(&model, method, config());
        let new = rows(1);
        let rows = StepRows { new: as_rows(&new), replayed: Vec::new() };
        let moment = Moment { steps_done: 1, steps_total: 2 };
        let log = trainer.step(&mut state, &rows, moment, &Stop::new()).unwrap();
        (state, log)
    };
    let (sequential, log) = trainer(Method::Sequential(Sequential));
    assert_eq!((log.loss, log.replayed_cross_entropy), (log.cross_entropy, None));
    for method in Method::ALL {
        let (state, log) = trainer(method);
        assert!(same_bytes(&state.fast, &sequential.fast), "{}", method.name());
        assert_eq!((log.forward_passes, log.consistency), (1, None));
    }
}

#[test]
fn micro_batches_add_up_to_the_step() {
    // What remains are sums in another order.
    const ROUNDING: f64 = 1e-5;
    let model = model();
    let method = Ilora { layers: HiddenLayers::All, ..Ilora::DEFAULT };
    let (whole, whole_logs) = run(&model, method, TrainerConfig { micro_batch_tokens: 4096, ..config() });
    let (parts, parts_logs) = run(&model, method, TrainerConfig { micro_batch_tokens: 1, ..config() });
    for (a, b) in whole_logs.iter().zip(&parts_logs) {
        let consistency = a.consistency.unwrap() - b.consistency.unwrap();
        assert!((a.loss - b.loss).abs() < ROUNDING && consistency.abs() < ROUNDING, "{a:?} and {b:?}");
    }
    assert_eq!(passes(&parts_logs), [6, 7, 7, 7, 7]);
    let far = whole.fast.values().iter().zip(parts.fast.values()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(far < 1e-3, "adapters differ by {far}");
}

#[test]
fn every_choice_of_consistency_pulls_towards_the_slow_learner() {
    let model = model();
    let last_consistency = |method: Ilora| {
        let (_, logs) = run(&model, method, config());
        let last = logs[STEPS as usize - 1].consistency.unwrap();
        assert!(last > 0.0, "{method:?} measured {last}");
        last
    };
    let slow = Ilora { retention: Retention::Lambda(0.9), ..Ilora::DEFAULT };
    let forms = [ConsistencyForm::TwoSided, ConsistencyForm::OneSided, ConsistencyForm::Logits];
    let mut choices: Vec<Ilora> = forms.iter().map(|form| Ilora { form: *form, ..slow }).collect();
    choices.push(Ilora { layers: HiddenLayers::Every(2), ..slow });
    choices.push(Ilora { scope: TokenScope::Answer, ..slow });
    choices.push(Ilora { cadence: Cadence::EverySteps(2), ..slow });
    for choice in choices {
        let (weak, strong) = (Ilora { gamma: 1e-3, ..choice }, Ilora { gamma: 100.0, ..choice });
        let (weak, strong) = (last_consistency(weak), last_consistency(strong));
        assert!(strong < weak, "{choice:?}: {weak} with little weight, {strong} with much");
    }
}

#[test]
fn a_step_that_fails_or_is_cancelled_has_not_happened() {
    let model = model();
    let trainer = Trainer::new(&model, Method::default(), config());
    let (new, replayed) = (rows(1), rows(2));
    let rows = StepRows { new: as_rows(&new), replayed: as_rows(&replayed) };
    let moment = Moment { steps_done: 7, steps_total: 9 };
    let stop = Stop::new();
    stop.set();
    let mut state = fresh(&model);
    let cancelled = trainer.step(&mut state, &rows, moment, &stop).unwrap_err();
    assert!(matches!(cancelled, LearnError::Compute(ComputeError::Cancelled)));
    assert!(same_bytes(&state.fast, &fresh(&model).fast) && state.optimizer.steps() == 0);

    state.fast.values_mut()[5] = f32::INFINITY;
    let broken = state.fast.clone();
    let not_finite = trainer.step(&mut state, &rows, moment, &Stop::new()).unwrap_err();
    assert!(matches!(not_finite, LearnError::NotFinite { step: 7, .. }), "{not_finite}");
    assert!(same_bytes(&state.fast, &broken) && state.optimizer.steps() == 0);

    let outside = StepRows { new: vec![Row { tokens: &[1, 2, 512], prompt_len: 1 }], replayed: Vec::new() };
    let error = trainer.step(&mut fresh(&model), &outside, moment, &Stop::new()).unwrap_err();
    assert!(matches!(error, LearnError::Compute(ComputeError::TokenOutOfRange { id: 512, .. })), "{error}");
}

/// A state with what AdamW keeps, as bits.
fn bits(state: &LearnerState) -> Vec<u32> {
    let parts = [state.fast.values(), state.slow.values(), state.optimizer.first(), state.optimizer.second()];
    parts.into_iter().flatten().map(|value| value.to_bits()).chain([state.optimizer.steps() as u32]).collect()
}

#[test]
fn a_step_cancelled_at_any_moment_leaves_no_trace() {
    let model = model();
    let trainer = Trainer::new(&model, Method::default(), config());
    let (new, replayed) = (rows(1), rows(2));
    let rows = StepRows { new: as_rows(&new), replayed: as_rows(&replayed) };
    let step = |state: &mut LearnerState, stop: &Stop| {
        trainer.step(state, &rows, Moment { steps_done: state.optimizer.steps() + 1, steps_total: 9 }, stop)
    };
    let mut before = fresh(&model);
    // After the first step the learners differ, so that there is a slow pass to cancel too.
    step(&mut before, &Stop::new()).unwrap();
    let mut undisturbed = before.clone();
    step(&mut undisturbed, &Stop::new()).unwrap();
    let mut cancels = 0;
    for moment in 0..60u32 {
        let (mut state, stop) = (before.clone(), Stop::new());
        let result = std::thread::scope(|scope| {
            let from_elsewhere = stop.clone();
            scope.spawn(move || {
                // Whenever this is: before, in or after the step.
                (0..moment * moment * 10).for_each(|_| std::thread::yield_now());
                from_elsewhere.set();
            });
            step(&mut state, &stop)
        });
        match result {
            Ok(_) => assert!(bits(&state) == bits(&undisturbed), "the step was taken, and is another one"),
            Err(LearnError::Compute(ComputeError::Cancelled)) => {
                cancels += 1;
                assert!(bits(&state) == bits(&before), "the step was not taken, and something changed");
                step(&mut state, &Stop::new()).unwrap();
                assert!(bits(&state) == bits(&undisturbed), "the next step is another one");
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(cancels > 0, "no step was cancelled");
}

#[test]
fn activations_kept_or_computed_again_give_the_same_bits() {
    let model = model();
    let layers = model.config().num_hidden_layers;
    let mut adapter = fresh(&model).fast;
    adapter.values_mut().iter_mut().enumerate().for_each(|(i, value)| *value += (i % 13) as f32 * 1e-3);
    let on_device = model.upload(&adapter).unwrap();
    let rows = rows(1);
    let batch = Batch::new(&as_rows(&rows)).unwrap();
    let stop = Stop::new();
    let gradients = |kept_layers| {
        let depths = HiddenLayers::All.depths(layers);
        let tape = model.record(&batch.tokens, &depths, &on_device, kept_layers, &stop).unwrap();
        let states = tape.hidden().iter().map(|state| state.clone().powi_scalar(2).sum());
        let loss = states.reduce(|sum, state| sum + state).unwrap();
        tape.gradients(&loss).unwrap()
    };
    let whole = gradients(layers);
    assert!(whole.iter().all(|value| value.is_finite()) && whole.iter().filter(|value| **value != 0.0).count() > 1000);
    for kept_layers in 0..layers {
        let found = gradients(kept_layers);
        assert!(found.iter().zip(&whole).all(|(a, b)| a.to_bits() == b.to_bits()), "{kept_layers} layers kept");
    }
}

#[test]
fn a_memory_budget_changes_no_bit_of_a_step() {
    let model = model();
    let after_two_steps = |memory_bytes| {
        let mut state = fresh(&model);
        let trainer = Trainer::new(&model, Method::default(), config()).memory_budget(memory_bytes);
        for steps_done in 1..=2 {
            let (new, replayed) = (rows(1), rows(2));
            let rows = StepRows { new: as_rows(&new), replayed: as_rows(&replayed) };
            trainer.step(&mut state, &rows, Moment { steps_done, steps_total: 2 }, &Stop::new()).unwrap();
        }
        bits(&state)
    };
    let without = after_two_steps(u64::MAX);
    let layout = fresh(&model).fast.layout().clone();
    let kept = |memory_bytes| estimate(model.config(), &layout, 54, memory_bytes).kept_layers;
    let half = (0..64).map(|step| step << 18).find(|bytes| kept(*bytes) == model.config().num_hidden_layers / 2);
    for memory_bytes in [0, half.expect("a budget for half of the layers")] {
        assert!(kept(memory_bytes) < model.config().num_hidden_layers);
        assert!(after_two_steps(memory_bytes) == without, "{memory_bytes} bytes");
    }
}

#[test]
fn a_setting_out_of_range_is_named() {
    let setting = |method: Ilora| method.check().unwrap_err().setting;
    assert_eq!(setting(Ilora { retention: Retention::Lambda(1.5), ..Ilora::DEFAULT }), "lambda");
    assert_eq!(setting(Ilora { retention: Retention::HalfLifeSteps(0.0), ..Ilora::DEFAULT }), "half_life_steps");
    assert_eq!(setting(Ilora { gamma: f64::NAN, ..Ilora::DEFAULT }), "gamma");
    assert_eq!(Er { replay_ratio: -1.0 }.check().unwrap_err().setting, "replay_ratio");
    assert!(Method::ALL.iter().all(|method| method.check().is_ok()));
}
