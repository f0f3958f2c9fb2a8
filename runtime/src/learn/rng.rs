//! Where the randomness of learning comes from: one independent stream per seed, purpose, run and index.
//!
//! A stream is a pure function of its four names and of nothing drawn before it. That is what lets a resumed run
//! continue without a saved generator.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What a stream is drawn for. The numbers are part of what a seed means and never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The order of one epoch; index: the epoch.
    EpochOrder = 1,
    /// What a test makes up; index: its own.
    #[cfg(test)]
    Test = 2,
}

/// The stream of these four names.
pub(crate) fn stream(seed: u64, purpose: Purpose, run: u64, index: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (bytes, word) in key.chunks_exact_mut(8).zip([seed, purpose as u64, run, index]) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// A number below `bound`, each as likely as any other; 0 where `bound` is 0.
///
/// # Source
/// Lemire, "Fast Random Integer Generation in an Interval" (2019): multiply, and draw again in the biased rest.
pub(crate) fn below(rng: &mut ChaCha8Rng, bound: u64) -> u64 {
    if bound == 0 {
        return 0;
    }
    let rest = bound.wrapping_neg() % bound;
    loop {
        let product = u128::from(rng.next_u64()) * u128::from(bound);
        if product as u64 >= rest {
            return (product >> 64) as u64;
        }
    }
}

/// Puts `items` into a random order.
pub(crate) fn shuffle<T>(rng: &mut ChaCha8Rng, items: &mut [T]) {
    for last in (1..items.len()).rev() {
        items.swap(last, below(rng, last as u64 + 1) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_differ_in_every_name_and_repeat() {
        let first = |seed, purpose, run, index| stream(seed, purpose, run, index).next_u64();
        let one = first(1, Purpose::Test, 2, 3);
        assert_eq!(one, first(1, Purpose::Test, 2, 3));
        let others = [
            first(2, Purpose::Test, 2, 3),
            first(1, Purpose::EpochOrder, 2, 3),
            first(1, Purpose::Test, 3, 3),
            first(1, Purpose::Test, 2, 4),
        ];
        assert!(!others.contains(&one), "{one} in {others:?}");
    }

    #[test]
    fn every_order_of_three_is_as_likely_as_any_other() {
        let mut counts = std::collections::BTreeMap::new();
        for index in 0..6000 {
            let mut items = [0, 1, 2];
            shuffle(&mut stream(7, Purpose::EpochOrder, 0, index), &mut items);
            *counts.entry(items).or_insert(0u32) += 1;
        }
        // 6000 draws: the standard deviation of a count is 29; five of them.
        assert!(counts.len() == 6 && counts.values().all(|n| n.abs_diff(1000) < 145), "{counts:?}");
    }
}
