//! An adapter in memory: how it begins, and how it moves.

use super::*;
use crate::config::testing::tiny;
use crate::projection::Projection;

fn config() -> LoraConfig {
    LoraConfig { rank: 2, target_modules: vec![Projection::Down, Projection::Q], ..LoraConfig::default() }
}

#[test]
fn a_fresh_adapter_has_noise_in_a_and_zeros_in_b() {
    let adapter = Adapter::init(&tiny(), &config(), 7).unwrap();
    for pair in adapter.layout().pairs() {
        let bound = 1.0 / (pair.d_in as f32).sqrt();
        let a = &adapter.values()[pair.a.clone()];
        assert!(a.iter().all(|value| (-bound..bound).contains(value)));
        assert!(a.iter().any(|value| *value < 0.0) && a.iter().any(|value| *value > 0.0));
        assert!(adapter.values()[pair.b.clone()].iter().all(|value| *value == 0.0));
    }
    assert_eq!(adapter, Adapter::init(&tiny(), &config(), 7).unwrap());
    assert_ne!(adapter, Adapter::init(&tiny(), &config(), 8).unwrap());
}

#[test]
fn a_pair_begins_the_same_whatever_else_is_targeted() {
    let few = Adapter::init(&tiny(), &config(), 7).unwrap();
    let all = Adapter::init(&tiny(), &LoraConfig { rank: 2, ..LoraConfig::default() }, 7).unwrap();
    let find = |adapter: &Adapter| {
        let layout = Arc::clone(adapter.layout());
        let pair = layout.pairs().iter().rfind(|pair| pair.projection == Projection::Down).unwrap().clone();
        adapter.values()[pair.a].to_vec()
    };
    assert_eq!(find(&few), find(&all));
}

#[test]
fn interpolation_keeps_the_share_lambda_and_is_exact_at_both_ends() {
    let mut slow = Adapter::init(&tiny(), &config(), 1).unwrap();
    let fast = Adapter::init(&tiny(), &config(), 2).unwrap();
    let before = slow.clone();
    slow.interpolate(&fast, 1.0).unwrap();
    assert_eq!(slow, before);
    slow.interpolate(&fast, 0.75).unwrap();
    assert_eq!(slow.values()[0], 0.75 * before.values()[0] + 0.25 * fast.values()[0]);
    slow.interpolate(&fast, 0.0).unwrap();
    assert_eq!(slow, fast);
}

#[test]
fn adapters_of_another_layout_or_length_are_refused() {
    let mut slow = Adapter::init(&tiny(), &config(), 1).unwrap();
    let other = Adapter::init(&tiny(), &LoraConfig { rank: 3, ..config() }, 1).unwrap();
    let before = slow.clone();
    assert!(matches!(slow.interpolate(&other, 0.5), Err(AdapterError::Layout { .. })));
    assert!(matches!(slow.interpolate(&before, 1.5), Err(AdapterError::Setting { .. })));
    assert_eq!(slow, before);
    let layout = Arc::clone(slow.layout());
    assert!(matches!(Adapter::from_values(&layout, vec![0.0]), Err(AdapterError::ValueCount { .. })));
    assert_eq!(Adapter::from_values(&layout, slow.values().to_vec()).unwrap(), slow);
}
