//! Logits become one token id: repetition penalty, temperature, top-k, top-p, min-p, a seeded draw.
//!
//! A chain of small functions in that order, as transformers has it. Knows no model and no text. The same seed and the
//! same logits give the same ids: candidates are ranked by logit and, where those are equal, by id; a NaN logit is
//! never chosen.

use std::cmp::Ordering;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divisor of the logits; 0 takes the likeliest token and ignores everything below but the penalty. Default 0.
    pub temperature: f32,
    /// How many of the likeliest tokens stay; 0 keeps all. Default 0.
    pub top_k: usize,
    /// The smallest set of likeliest tokens whose probabilities reach this sum stays; 1 keeps all. Default 1.
    pub top_p: f32,
    /// Tokens less likely than this share of the likeliest one's probability go; 0 keeps all. Default 0.
    pub min_p: f32,
    /// Positive logits of recent tokens are divided by it, negative ones multiplied; 1 is off. Default 1.
    pub repetition_penalty: f32,
    /// How many of the newest tokens, prompt included, count as recent. Default 64.
    pub repetition_window: usize,
    /// Where the random draws start. Default 0.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            repetition_window: 64,
            seed: 0,
        }
    }
}

impl Sampling {
    /// The likeliest token, always.
    pub fn greedy() -> Self {
        Self::default()
    }
}

/// A setting outside its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("sampling: `{setting}` is {found}, expected {expected}")]
#[non_exhaustive]
pub struct SamplingError {
    /// Name of the field of [`Sampling`].
    pub setting: &'static str,
    /// Its value.
    pub found: f32,
    /// The range in words.
    pub expected: &'static str,
}

/// Chooses tokens by one [`Sampling`], from its seed on.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
}

/// A token that may still be chosen. `weight` is a logit until [`softmax`], a probability after it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    id: u32,
    weight: f32,
}

impl Sampler {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`SamplingError`] names the first setting that is NaN or out of range.
    pub fn new(sampling: Sampling) -> Result<Self, SamplingError> {
        let check = |setting, found: f32, ok: bool, expected| {
            if ok && !found.is_nan() { Ok(()) } else { Err(SamplingError { setting, found, expected }) }
        };
        let Sampling { temperature, top_p, min_p, repetition_penalty, .. } = sampling;
        let finite_from_zero = temperature >= 0.0 && temperature.is_finite();
        check("temperature", temperature, finite_from_zero, "0 or more")?;
        check("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "above 0 and at most 1")?;
        check("min_p", min_p, (0.0..=1.0).contains(&min_p), "from 0 to 1")?;
        let positive = repetition_penalty > 0.0 && repetition_penalty.is_finite();
        check("repetition_penalty", repetition_penalty, positive, "above 0")?;
        let rng = ChaCha8Rng::seed_from_u64(sampling.seed);
        Ok(Self { sampling, rng })
    }

    /// The next token.
    ///
    /// `logits` has one value per token id, raw; `context` is everything before, the newest last. Where no logit can be
    /// chosen (all NaN or minus infinity), the answer is id 0.
    pub fn sample(&mut self, logits: &mut [f32], context: &[u32]) -> u32 {
        let recent = &context[context.len().saturating_sub(self.sampling.repetition_window)..];
        penalize(logits, recent, self.sampling.repetition_penalty);
        if self.sampling.temperature == 0.0 {
            return argmax(logits);
        }
        let mut candidates = ranked(logits, self.sampling.top_k);
        softmax(&mut candidates, self.sampling.temperature);
        keep_top_p(&mut candidates, self.sampling.top_p);
        keep_min_p(&mut candidates, self.sampling.min_p);
        draw(&candidates, uniform(&mut self.rng))
    }
}

/// Index of the largest value; the lowest index of equal ones, 0 where there is none but NaN.
pub fn argmax(logits: &[f32]) -> u32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    // Side by side, in vectors: this is done for each token, over the whole vocabulary.
    let (chunks, rest) = logits.as_chunks::<16>();
    let mut lanes = [f32::NEG_INFINITY; 16];
    for chunk in chunks {
        for (lane, logit) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, *logit);
        }
    }
    let largest = lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger);
    logits.iter().position(|logit| *logit == largest).unwrap_or(0) as u32
}

/// Makes each distinct token of `recent` less likely, once.
///
/// # Source
/// CTRL (arXiv 1909.05858): divide a positive logit, multiply a negative one.
fn penalize(logits: &mut [f32], recent: &[u32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    for (at, id) in recent.iter().enumerate() {
        let Some(logit) = logits.get_mut(*id as usize) else { continue };
        if !recent[..at].contains(id) {
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }
}

/// All candidates, the likeliest first; the `top_k` likeliest where that is not 0.
fn ranked(logits: &[f32], top_k: usize) -> Vec<Candidate> {
    let possible =
        |(id, &weight): (usize, &f32)| (weight > f32::NEG_INFINITY).then_some(Candidate { id: id as u32, weight });
    let mut candidates: Vec<Candidate> = logits.iter().enumerate().filter_map(possible).collect();
    if top_k > 0 && top_k < candidates.len() {
        candidates.select_nth_unstable_by(top_k, likeliest_first);
        candidates.truncate(top_k);
    }
    candidates.sort_unstable_by(likeliest_first);
    candidates
}

/// A total order: no NaN among candidates, and ids differ.
fn likeliest_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.weight.total_cmp(&a.weight).then(a.id.cmp(&b.id))
}

/// Ranked logits become probabilities. Infinite logits share the whole probability.
fn softmax(candidates: &mut Vec<Candidate>, temperature: f32) {
    let Some(&Candidate { weight: largest, .. }) = candidates.first() else { return };
    if largest == f32::INFINITY {
        candidates.retain(|c| c.weight == f32::INFINITY);
        let share = 1.0 / candidates.len() as f32;
        candidates.iter_mut().for_each(|c| c.weight = share);
        return;
    }
    let mut sum = 0.0;
    for candidate in candidates.iter_mut() {
        candidate.weight = ((candidate.weight - largest) / temperature).exp();
        sum += candidate.weight;
    }
    candidates.iter_mut().for_each(|c| c.weight /= sum);
}

/// Keeps the shortest run of likeliest candidates whose probabilities reach `top_p`.
fn keep_top_p(candidates: &mut Vec<Candidate>, top_p: f32) {
    if top_p >= 1.0 {
        return;
    }
    let mut sum = 0.0;
    let mut kept = 0;
    for candidate in candidates.iter() {
        kept += 1;
        sum += candidate.weight;
        if sum >= top_p {
            break;
        }
    }
    candidates.truncate(kept);
}

/// Drops candidates less likely than `min_p` times the likeliest.
fn keep_min_p(candidates: &mut Vec<Candidate>, min_p: f32) {
    let Some(&Candidate { weight: largest, .. }) = candidates.first() else { return };
    let kept = candidates.partition_point(|c| c.weight >= min_p * largest);
    candidates.truncate(kept.max(1));
}

/// Walks the ranked candidates until their probabilities reach `point`, a share of what is left of them.
fn draw(candidates: &[Candidate], point: f32) -> u32 {
    let mut left = point * candidates.iter().map(|c| c.weight).sum::<f32>();
    for candidate in candidates {
        left -= candidate.weight;
        if left < 0.0 {
            return candidate.id;
        }
    }
    candidates.last().map_or(0, |c| c.id)
}

/// A number in `[0, 1)` of 24 random bits.
fn uniform(rng: &mut ChaCha8Rng) -> f32 {
    (rng.next_u32() >> 8) as f32 / (1 << 24) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(change: impl FnOnce(&mut Sampling)) -> Sampler {
        let mut sampling = Sampling { temperature: 1.0, ..Sampling::default() };
        change(&mut sampling);
        Sampler::new(sampling).unwrap()
    }

    /// Which of the ids 0..logits.len() come up in 2000 draws, and how often.
    fn counts(sampler: &mut Sampler, logits: &[f32], context: &[u32]) -> Vec<usize> {
        let mut counts = vec![0; logits.len()];
        for _ in 0..2000 {
            counts[sampler.sample(&mut logits.to_vec(), context) as usize] += 1;
        }
        counts
    }

    #[test]
    fn temperature_zero_takes_the_largest_and_the_lowest_id_of_a_tie() {
        let mut greedy = sampler(|s| s.temperature = 0.0);
        assert_eq!(greedy.sample(&mut [0.5, 2.0, f32::NAN, 2.0], &[]), 1);
        assert_eq!(greedy.sample(&mut [f32::NAN, f32::NAN], &[]), 0);
        assert_eq!(greedy.sample(&mut [f32::NEG_INFINITY, f32::INFINITY], &[]), 1);
        let mut long = vec![-3.0; 100];
        for place in [99, 64, 50, 3] {
            long[place] = 7.0;
            assert_eq!(greedy.sample(&mut long.clone(), &[]), place as u32);
        }
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits = [0.6f32.ln(), 0.3f32.ln(), 0.1f32.ln()];
        let counts = counts(&mut sampler(|_| ()), &logits, &[]);
        // 2000 draws: the standard deviation of a count is below 22; five of them.
        for (count, expected) in counts.iter().zip([1200, 600, 200]) {
            assert!(count.abs_diff(expected) < 110, "{counts:?}");
        }
    }

    #[test]
    fn a_low_temperature_sharpens() {
        let counts = counts(&mut sampler(|s| s.temperature = 0.01), &[1.0, 1.2, 0.0], &[]);
        assert_eq!(counts, [0, 2000, 0]);
    }

    #[test]
    fn top_k_top_p_and_min_p_keep_what_they_say() {
        let logits = [0.1f32.ln(), 0.5f32.ln(), 0.3f32.ln(), 0.1f32.ln()];
        let alive = |change: fn(&mut Sampling)| {
            counts(&mut sampler(change), &logits, &[]).iter().map(|c| *c > 0).collect::<Vec<_>>()
        };
        assert_eq!(alive(|s| s.top_k = 1), [false, true, false, false]);
        assert_eq!(alive(|s| s.top_k = 3), [true, true, true, false], "of two equal ones the lower id stays");
        assert_eq!(alive(|s| s.top_p = 0.7), [false, true, true, false]);
        assert_eq!(alive(|s| s.top_p = 0.4), [false, true, false, false]);
        assert_eq!(alive(|s| s.min_p = 0.5), [false, true, true, false]);
        assert_eq!(alive(|s| s.min_p = 1.0), [false, true, false, false]);
        assert_eq!(alive(|_| ()), [true; 4]);
    }

    #[test]
    fn the_penalty_lowers_each_recent_token_once_whatever_its_sign() {
        let mut logits = [2.0, -2.0, 1.0];
        penalize(&mut logits, &[0, 1, 0, 9], 2.0);
        assert_eq!(logits, [1.0, -4.0, 1.0]);
        let mut greedy = sampler(|s| {
            s.temperature = 0.0;
            s.repetition_penalty = 4.0;
            s.repetition_window = 1;
        });
        assert_eq!(greedy.sample(&mut [2.0, 1.0], &[1, 0]), 1);
        assert_eq!(greedy.sample(&mut [2.0, 1.0], &[0, 1]), 0, "outside the window");
    }

    #[test]
    fn not_a_number_is_never_drawn_and_infinities_share() {
        let logits = [f32::NAN, f32::INFINITY, 3.0, f32::INFINITY];
        let counts = counts(&mut sampler(|_| ()), &logits, &[]);
        assert_eq!((counts[0], counts[2]), (0, 0));
        assert!(counts[1] > 800 && counts[3] > 800);
        assert_eq!(sampler(|_| ()).sample(&mut [f32::NAN; 3], &[]), 0);
    }

    #[test]
    fn one_seed_gives_one_sequence() {
        let logits: Vec<f32> = (0..50).map(|i| (i as f32 * 0.7).sin()).collect();
        let sequence = |seed| {
            let mut sampler = sampler(|s| s.seed = seed);
            (0..20).map(|_| sampler.sample(&mut logits.clone(), &[])).collect::<Vec<_>>()
        };
        assert_eq!(sequence(5), sequence(5));
        assert_ne!(sequence(5), sequence(6));
    }

    #[test]
    fn a_setting_out_of_range_is_named() {
        let error = |change: fn(&mut Sampling)| {
            let mut sampling = Sampling::default();
            change(&mut sampling);
            Sampler::new(sampling).unwrap_err().setting
        };
        assert_eq!(error(|s| s.temperature = -1.0), "temperature");
        assert_eq!(error(|s| s.temperature = f32::NAN), "temperature");
        assert_eq!(error(|s| s.top_p = 0.0), "top_p");
        assert_eq!(error(|s| s.min_p = 1.5), "min_p");
        assert_eq!(error(|s| s.repetition_penalty = 0.0), "repetition_penalty");
    }
}
