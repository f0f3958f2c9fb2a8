//! Surprise: what the model expected least, and beside it a uniform sample of the rest.
//!
//! A newcomer competes for the surprising places by its clipped score. Who is left without one, the newcomer or the one it
//! displaced, competes for the random places by a random key. So the random places hold a uniform sample of all examples
//! that have no surprising place.

use alloc::vec;
use alloc::vec::Vec;

use super::ranks::Ranks;
use super::{Insertion, Memory, Purpose, Slot, bits};

/// Scores above this share of those seen are clipped to it, in percent.
const CLIP_PERCENT: u64 = 95;
/// Scores seen before any is clipped: fewer say nothing about a percentile.
const CLIP_FROM: u64 = 20;
/// Counters of [`Scores`].
pub(super) const BINS: usize = 256;
/// Width of a counter is one nat over this.
const BINS_PER_NAT: f32 = 16.0;
/// Resolution of a score in a key.
const STEPS_PER_NAT: f32 = 1024.0;

/// The places for what surprised most, and those for the others.
const SURPRISING: u32 = 0;
const RANDOM: u32 = 1;
/// The bit of a key that tells the two groups apart.
const GROUP_BIT: u32 = 31;

/// How the scores seen so far are spread: counts in steps of a sixteenth of a nat, the last one open.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Scores {
    /// [`BINS`] of them, or none before the first score.
    pub(super) counts: Vec<u32>,
}

impl Scores {
    fn count(&mut self, score: f32) {
        if self.counts.is_empty() {
            self.counts = vec![0; BINS];
        }
        let bin = ((score * BINS_PER_NAT) as usize).min(BINS - 1);
        self.counts[bin] = self.counts[bin].saturating_add(1);
    }

    /// The score, or the lower end of the step that holds the percentile, if that is less: above it all count alike.
    fn clip(&self, score: f32) -> f32 {
        let seen: u64 = self.counts.iter().map(|count| u64::from(*count)).sum();
        let mut up_to = 0;
        let covers = |count: &u32| {
            up_to += u64::from(*count);
            up_to * 100 >= seen * CLIP_PERCENT
        };
        match self.counts.iter().position(covers) {
            Some(bin) if seen >= CLIP_FROM => score.min(bin as f32 / BINS_PER_NAT),
            _ => score,
        }
    }
}

/// The order within the two groups.
pub(super) fn ranks(slots: &[Slot]) -> Ranks {
    Ranks::of(slots, group_of)
}

/// How many places (surprising, random) there are.
pub(super) fn places(capacity: u32, random_percent: u8) -> (u32, u32) {
    let percent = u64::from(random_percent.min(100));
    let random = (u64::from(capacity) * percent).div_ceil(100) as u32;
    (capacity - random, random)
}

pub(super) fn group_of(slot: &Slot) -> u32 {
    slot.key >> GROUP_BIT
}

/// The lowest key to the highest score; among equal scores chance decides.
fn surprising_key(score: f32, chance: u64) -> u32 {
    let steps = (score * STEPS_PER_NAT).min(f32::from(u16::MAX)) as u32;
    let rank = steps << 15 | (chance >> 49) as u32;
    ((1 << GROUP_BIT) - 1) ^ rank
}

fn random_key(chance: u64) -> u32 {
    1 << GROUP_BIT | (chance >> 33) as u32
}

impl Memory {
    pub(super) fn insert_surprising(
        &mut self,
        newcomer: Slot,
        nll: f32,
        nth: u64,
        seed: u64,
        random_percent: u8,
    ) -> Insertion {
        // `max` turns NaN into 0 too.
        let score = nll.max(0.0);
        self.scores.count(score);
        let chance = bits(seed, nth, Purpose::Accept);
        let (surprising, random) = places(self.capacity, random_percent);
        let candidate = Slot { key: surprising_key(self.scores.clip(score), chance), ..newcomer };
        let displaced = self.compete(SURPRISING, surprising, candidate);
        let Some(displaced) = displaced else { return Insertion::Added };
        let gone = self.compete(RANDOM, random, Slot { key: random_key(chance.rotate_left(31)), ..displaced });
        match gone {
            None => Insertion::Added,
            Some(gone) if gone.id == newcomer.id => Insertion::Skipped,
            Some(gone) => Insertion::Replaced(gone.id),
        }
    }

    /// Gives `slot` a place among the `places` of `group`, if one is free or its key is lower than the highest there. Gives
    /// who has none: the displaced one, or `slot` itself.
    fn compete(&mut self, group: u32, places: u32, slot: Slot) -> Option<Slot> {
        if self.ranks.held(group) < places {
            let place = self.add(slot);
            self.ranks.insert(group, &slot, place);
            return None;
        }
        match self.ranks.first_to_go(group) {
            Some((key, place)) if slot.key < key => {
                let old = self.replace(place, slot);
                self.ranks.remove(group, &old);
                self.ranks.insert(group, &slot, place);
                Some(old)
            }
            _ => Some(slot),
        }
    }
}
