//! Which tokens a store has seen, in bounded memory: what the next table is made from.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::table::{Entry, MAX_ENTRIES, TokenTable, class_of, count_of};

/// Most tokens that are counted; beyond, all counts are halved and the rare ones let go.
const MAX_COUNTERS: usize = 4096;
/// A token is worth its place in a table from this count on.
const MIN_COUNT: u32 = 5;
/// A successor is worth its place if it was seen that much more often than all others together.
const MIN_LEAD: u32 = 3;
/// The first table comes after this many tokens,
const FIRST_TABLE_TOKENS: u64 = 512;
/// the next when the store has seen this many times what the last one is made from.
const TABLE_GROWTH: u64 = 4;

/// Counts of tokens and their likeliest successors: at most 4096 counters, some 150 KiB.
#[derive(Debug, Clone, Default)]
pub(crate) struct TokenStatistics {
    counters: BTreeMap<u32, Counter>,
    /// Tokens counted, those of counters let go included; halved with them.
    total: u64,
    seen: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counter {
    count: u32,
    /// The majority among the tokens that followed, if there is one (Boyer and Moore's vote),
    successor: u32,
    /// and by how many votes it leads.
    lead: u32,
}

impl TokenStatistics {
    /// What a table remembers.
    pub(crate) fn of_table(table: &TokenTable) -> Self {
        let counter = |entry: &Entry| {
            let count = count_of(entry.class) as u32;
            let successor = entry.successor.map(|at| table.entries()[at as usize].id);
            let lead = successor.map_or(0, |_| (count / 2).max(MIN_LEAD));
            (entry.id, Counter { count, successor: successor.unwrap_or(0), lead })
        };
        let counters: BTreeMap<u32, Counter> = table.entries().iter().map(counter).collect();
        let listed: u64 = counters.values().map(|counter| u64::from(counter.count)).sum();
        Self { counters, total: listed + table.rest(), seen: table.seen() }
    }

    /// Counts the tokens of one record.
    pub(crate) fn add(&mut self, tokens: &[u32]) {
        for (at, &id) in tokens.iter().enumerate() {
            if self.counters.len() >= MAX_COUNTERS && !self.counters.contains_key(&id) || self.total >= 1 << 30 {
                self.halve();
            }
            self.total += 1;
            let counter = self.counters.entry(id).or_default();
            counter.count += 1;
            if let Some(&next) = tokens.get(at + 1) {
                counter.vote(next);
            }
        }
        self.seen += tokens.len() as u64;
    }

    /// Tokens counted, those behind [`TokenStatistics::of_table`] included.
    pub(crate) fn tokens(&self) -> u64 {
        self.seen
    }

    /// Whether a new table is worth its bytes where `table` is in force.
    pub(crate) fn is_due(&self, table: &TokenTable) -> bool {
        self.seen >= FIRST_TABLE_TOKENS.max(TABLE_GROWTH * table.seen())
    }

    /// A table of the most frequent tokens.
    pub(crate) fn table(&self) -> TokenTable {
        let mut frequent: Vec<(u32, Counter)> = self.counters.iter().map(|(&id, &counter)| (id, counter)).collect();
        frequent.retain(|(_, counter)| counter.count >= MIN_COUNT);
        frequent.sort_unstable_by_key(|&(id, counter)| (core::cmp::Reverse(counter.count), id));
        frequent.truncate(MAX_ENTRIES);
        frequent.sort_unstable_by_key(|&(id, _)| id);
        let listed: u64 = frequent.iter().map(|(_, counter)| u64::from(counter.count)).sum();
        let position = |id: u32| frequent.binary_search_by_key(&id, |&(id, _)| id).ok().map(|at| at as u32);
        let entry = |&(id, counter): &(u32, Counter)| {
            let leads = counter.lead >= MIN_LEAD.max(counter.count / 8);
            let successor = if leads { position(counter.successor) } else { None };
            Entry { id, class: class_of(counter.count.into()), successor }
        };
        let entries = frequent.iter().map(entry).collect();
        TokenTable::new(class_of(self.seen), class_of(self.total - listed), entries)
    }

    fn halve(&mut self) {
        self.counters.retain(|_, counter| {
            counter.count /= 2;
            counter.lead /= 2;
            counter.count > 0
        });
        self.total /= 2;
        // All counts may have been even: then the rarest half of the room is made free.
        if self.counters.len() >= MAX_COUNTERS {
            let mut counts: Vec<u32> = self.counters.values().map(|counter| counter.count).collect();
            let (_, &mut median, _) = counts.select_nth_unstable(MAX_COUNTERS / 2);
            self.counters.retain(|_, counter| counter.count > median);
        }
    }
}

impl Counter {
    fn vote(&mut self, next: u32) {
        if self.lead == 0 {
            self.successor = next;
        }
        if self.successor == next {
            self.lead += 1;
        } else {
            self.lead -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::mix;

    #[test]
    fn a_table_remembers_counts_and_successors() {
        let mut statistics = TokenStatistics::default();
        for round in 0..200_u32 {
            statistics.add(&[7, 8, 9, 100 + round]);
        }
        assert_eq!(statistics.tokens(), 800);
        let table = statistics.table();
        assert_eq!(table.entries().iter().map(|entry| entry.id).collect::<Vec<_>>(), [7, 8, 9]);
        assert_eq!([7, 8, 9].map(|id| table.successor(id)), [Some(8), Some(9), None]);
        assert_eq!((table.seen(), table.rest()), (count_of(class_of(800)), count_of(class_of(200))));
        let again = TokenStatistics::of_table(&table).table();
        assert_eq!(again, table, "a table made from a table is that table");
        assert!(statistics.is_due(&TokenTable::untrained()) && !statistics.is_due(&table));
    }

    #[test]
    fn memory_is_bounded_whatever_comes() {
        // Fewer under Miri, which is a thousand times slower.
        const ROUNDS: u64 = if cfg!(miri) { 500 } else { 60_000 };
        let mut statistics = TokenStatistics::default();
        for round in 0..ROUNDS {
            // Twice each, so that halving alone frees nothing at first.
            let id = mix(round) as u32;
            statistics.add(&[id, id, 5]);
            assert!(statistics.counters.len() <= MAX_COUNTERS);
        }
        let table = statistics.table();
        assert_eq!(table.entries()[0].id, 5, "what is frequent stays");
        assert_eq!(table.seen(), count_of(class_of(3 * ROUNDS)));
    }
}
