//! What a segment knows of its tokens before the first frame: which are frequent, and what tends to follow them.

use alloc::vec::Vec;

use super::range::{Channel, Decoder, Encoder};
use super::weights::Weights;

/// Most tokens that a table lists.
pub(super) const MAX_ENTRIES: usize = 1024;
/// Counts are kept as the nearest power of the square root of two.
const CLASSES: u32 = 64;
/// What the weights of a table add up to, about; rounding moves it by a few.
const TABLE_TOTAL: u64 = 1 << 14;
/// Least weight of the tokens that are not in the table, all together.
const MIN_ESCAPE: u32 = 16;
/// How fast the lengths of gaps and the classes of counts are learned while a table is coded.
const LEARN: u32 = 8;

/// Frequent tokens with their weights and successors. Empty, it leaves the prior alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenTable {
    /// Class of the number of tokens it was made from.
    seen_class: u32,
    /// Class of the number of those that are not in `entries`.
    rest_class: u32,
    /// Ascending by id.
    entries: Vec<Entry>,
    weights: Vec<u32>,
    escape_weight: u32,
}

/// One token of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) id: u32,
    pub(super) class: u32,
    /// Position of the token that mostly follows.
    pub(super) successor: Option<u32>,
}

impl TokenTable {
    /// No table.
    pub(crate) fn untrained() -> Self {
        Self::new(0, 0, Vec::new())
    }

    /// A table of `entries`, ascending by id.
    pub(super) fn new(seen_class: u32, rest_class: u32, entries: Vec<Entry>) -> Self {
        let scaled = |class: u32| u64::from(SCALE[class as usize % 2]) << (class / 2);
        let sum: u64 = entries.iter().map(|entry| scaled(entry.class)).sum::<u64>() + scaled(rest_class);
        // The sum is below 2^7 * 2^32 * 1025, so nothing overflows.
        let weight = |class| (scaled(class) * TABLE_TOTAL / sum) as u32;
        let weights = entries.iter().map(|entry| weight(entry.class).max(1)).collect();
        let escape_weight = if entries.is_empty() { MIN_ESCAPE } else { weight(rest_class).max(MIN_ESCAPE) };
        Self { seen_class, rest_class, entries, weights, escape_weight }
    }

    /// Reads a table that fills `bytes`; `None` if no table is written that way.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut decoder = Decoder::new(bytes);
        let table = pass(&mut decoder, None)?;
        // A table has one spelling, so any damage is seen.
        (table.to_bytes() == bytes).then_some(table)
    }

    /// The table as it stands on flash.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut encoder = Encoder::new();
        pass(&mut encoder, Some(self));
        encoder.finish()
    }

    /// About how many tokens it was made from, within a factor of 1.2.
    pub(crate) fn seen(&self) -> u64 {
        if self.seen_class == 0 { 0 } else { count_of(self.seen_class) }
    }

    /// About how many of them it does not list.
    pub(super) fn rest(&self) -> u64 {
        if self.entries.is_empty() { 0 } else { count_of(self.rest_class) }
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Weights of the entries, in their order.
    pub(super) fn weights(&self) -> &[u32] {
        &self.weights
    }

    /// Weight of all tokens that are not in the table.
    pub(super) fn escape_weight(&self) -> u32 {
        self.escape_weight
    }

    /// Where `id` stands in the table.
    pub(super) fn position(&self, id: u32) -> Option<usize> {
        self.entries.binary_search_by_key(&id, |entry| entry.id).ok()
    }

    /// The token that mostly follows `id`.
    pub(super) fn successor(&self, id: u32) -> Option<u32> {
        let successor = self.entries[self.position(id)?].successor?;
        Some(self.entries[successor as usize].id)
    }
}

/// 128 and 128 times the square root of two.
const SCALE: [u32; 2] = [128, 181];

/// The count that a class stands for.
pub(super) fn count_of(class: u32) -> u64 {
    ((u64::from(SCALE[class as usize % 2]) << (class / 2)) + 64) / 128
}

/// The class whose count is nearest to `count`, by ratio.
pub(super) fn class_of(count: u64) -> u32 {
    /// 128 times the fourth root of two, and that times the square root of two: half a class above.
    const ABOVE: [u64; 2] = [152, 215];
    let scaled = count.min(1 << 31) * 128;
    (0..CLASSES - 1).find(|&class| scaled <= ABOVE[class as usize % 2] << (class / 2)).unwrap_or(CLASSES - 1)
}

/// Passes a table through one end of a stream: writes `known`, or reads it where nothing is known.
fn pass<C: Channel>(channel: &mut C, known: Option<&TokenTable>) -> Option<TokenTable> {
    let given = |field: fn(&TokenTable) -> u32| known.map_or(0, field);
    let seen_class = channel.uniform(CLASSES, || given(|table| table.seen_class));
    let rest_class = channel.uniform(CLASSES, || given(|table| table.rest_class));
    let count = channel.uniform(MAX_ENTRIES as u32 + 1, || given(|table| table.entries.len() as u32));
    let entry = |at: u32| known.map(|table| table.entries[at as usize]);

    let mut lengths = Weights::new(core::iter::repeat_n(1, 33), 0);
    let mut classes = Weights::new(core::iter::repeat_n(1, CLASSES as usize), 0);
    let mut entries = Vec::with_capacity(count as usize);
    // The step from one id to the next, at least 1 and at most 2^32.
    let mut next_id = 0_u64;
    for at in 0..count {
        let entry = entry(at);
        let step = entry.map_or(1, |entry| u64::from(entry.id) + 1 - next_id);
        let length = learned(channel, &mut lengths, LEARN, step.ilog2());
        let step = 1 << length | low_bits(channel, length, step);
        let id = u32::try_from(next_id + step - 1).ok()?;
        next_id += step;
        let class = learned(channel, &mut classes, LEARN, entry.map_or(0, |entry| entry.class));
        entries.push(Entry { id, class, successor: None });
    }
    let mut has_successor = Weights::new([1, 1].into_iter(), 0);
    for at in 0..count {
        let successor = entry(at).and_then(|entry| entry.successor);
        if learned(channel, &mut has_successor, LEARN, u32::from(successor.is_some())) == 1 {
            entries[at as usize].successor = Some(channel.uniform(count, || successor.unwrap_or(0)));
        }
    }
    Some(TokenTable::new(seen_class, rest_class, entries))
}

/// Passes one of the alternatives that `weights` weighs, and gives it `more` weight.
pub(super) fn learned<C: Channel>(channel: &mut C, weights: &mut Weights, more: u32, known: u32) -> u32 {
    let chosen = channel.choose(weights.total(), || weights.interval(known as usize), |at| weights.find(at));
    weights.add(chosen.index as usize, more);
    chosen.index
}

/// Passes the lowest `bits` bits of `known`, at most 32, all values being equally likely.
pub(super) fn low_bits<C: Channel>(channel: &mut C, bits: u32, known: u64) -> u64 {
    let mut passed = 0;
    let mut left = bits;
    while left > 0 {
        let now = left.min(16);
        left -= now;
        passed = passed << now | u64::from(channel.uniform(1 << now, || (known >> left) as u32 & ((1 << now) - 1)));
    }
    passed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::mix;
    use alloc::vec;

    #[test]
    fn classes_are_half_powers_of_two() {
        assert_eq!([1, 2, 3, 4, 5, 6, 7, 8].map(class_of), [0, 2, 3, 4, 5, 5, 6, 6]);
        for class in 2..60 {
            assert_eq!(class_of(count_of(class)), class);
        }
        assert_eq!(class_of(u64::MAX), 62, "counts stop at 2^31");
    }

    fn table(seed: u64, count: u64, spread: u32) -> TokenTable {
        let mut ids: Vec<u32> = (0..count).map(|at| mix(seed << 32 | at) as u32 % spread).collect();
        ids.sort_unstable();
        ids.dedup();
        let len = ids.len() as u64;
        let entry = |(at, id)| {
            let bits = mix(seed ^ at as u64);
            let successor = (bits & 3 == 0).then_some(((bits >> 8) % len) as u32);
            Entry { id, class: (bits >> 40) as u32 % 20, successor }
        };
        TokenTable::new(30, 20, ids.into_iter().enumerate().map(entry).collect())
    }

    #[test]
    fn tables_come_back_and_every_damage_is_seen() {
        // Fewer under Miri, which is a thousand times slower.
        const STEP: usize = if cfg!(miri) { 40 } else { 1 };
        for (seed, count, spread) in [(1, 0, 1), (2, 1, u32::MAX), (3, 100, 49_152), (4, 1024, 150_000), (5, 9, 9)] {
            let table = table(seed, count, spread);
            let bytes = table.to_bytes();
            assert_eq!(TokenTable::parse(&bytes).as_ref(), Some(&table));
            for at in (0..bytes.len().min(400)).step_by(STEP) {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << (at % 8);
                assert_ne!(TokenTable::parse(&damaged).as_ref(), Some(&table));
            }
            let longer: Vec<u8> = bytes.iter().copied().chain([0]).collect();
            assert_eq!(TokenTable::parse(&longer), None);
        }
        let ends = vec![0, u32::MAX].into_iter().map(|id| Entry { id, class: 1, successor: Some(1) });
        let ends = TokenTable::new(1, 1, ends.collect());
        assert_eq!(TokenTable::parse(&ends.to_bytes()), Some(ends));
    }

    #[test]
    fn hostile_bytes_are_no_table_or_a_sound_one() {
        // Fewer under Miri, which is a thousand times slower.
        const SEEDS: u64 = if cfg!(miri) { 10 } else { 2000 };
        for seed in 0..SEEDS {
            let bytes: Vec<u8> = (0..seed % 90).map(|at| mix(seed << 8 | at) as u8).collect();
            if let Some(table) = TokenTable::parse(&bytes) {
                assert!(table.entries().windows(2).all(|pair| pair[0].id < pair[1].id));
                assert!(table.weights().iter().all(|&weight| weight > 0));
            }
        }
    }

    #[test]
    fn an_entry_of_a_table_takes_about_two_bytes() {
        let bytes = table(4, 1024, 49_152).to_bytes().len();
        assert!(bytes < 1024 * 5 / 2, "{bytes}");
    }
}
