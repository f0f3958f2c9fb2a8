//! How the tokens of one frame predict each other.
//!
//! A token is either what a context foretells, or a token of the table or of this frame by its weight, or one never seen,
//! spelled out. All three learn while the frame is coded, in the same way at both ends.

use alloc::vec;
use alloc::vec::Vec;

use super::range::{Channel, Interval, MAX_TOTAL};
use super::table::{TokenTable, learned, low_bits};
use super::weights::Weights;
use crate::example::mix;

/// Weight that one occurrence adds to a token; against it, a whole table weighs 512 occurrences.
const OCCURRENCE: u32 = 32;
/// Weight that a token never seen adds to the next such one.
const NOVELTY: u32 = 16;
/// Ids are spread about as `1 / (id + OFFSET)`: vocabularies are sorted by frequency, and Zipf's law holds.
const OFFSET: u64 = 200;
/// Bits of the smallest `id + OFFSET`.
const MIN_BITS: u32 = 8;
/// Weights of the numbers of bits of `id + OFFSET`, from [`MIN_BITS`] to 33: most vocabularies end before 2^18 ids.
const BITS_WEIGHTS: [u32; 26] = [8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1];
/// What one occurrence adds to them.
const BITS_LEARN: u32 = 16;
/// Stands for the tokens before the first of a record.
const START: u32 = u32::MAX;
/// A guess that was right this often is as sure as it gets.
const SURE: u8 = 3;
/// Slots of a table of guesses at most, by powers of two.
const MAX_GUESS_BITS: u32 = 13;

/// Misses and hits that a guess starts with, by [`Guess::source`]; fitted to dialogue and prose in English and German.
const TRUST: [[u16; 2]; 13] = [
    // The two tokens before were seen in this frame; the token after them was the same 1, 2, 3, 4 and more times.
    [5, 2],
    [3, 5],
    [2, 8],
    [1, 24],
    // One token before was seen.
    [12, 1],
    [6, 1],
    [4, 1],
    [2, 2],
    // One token before was seen, and the table agrees.
    [4, 4],
    [3, 5],
    [3, 6],
    [1, 6],
    // The table alone.
    [3, 6],
];

/// The tokens of a frame as both ends know them up to here.
#[derive(Debug)]
pub(super) struct FrameModel<'a> {
    table: &'a TokenTable,
    /// Of a token never seen at 0, of the table's tokens, then of those new in this frame.
    weights: Weights,
    /// Ids of the tokens new in this frame, in the order of their weights.
    new_ids: Vec<u32>,
    /// Open addressing: position in `new_ids` and 1, or 0.
    new_slots: Vec<u32>,
    bits: Weights,
    after_two: Guesses,
    after_one: Guesses,
    trust: [[u16; 2]; TRUST.len()],
    before: [u32; 2],
}

/// What a context foretells.
#[derive(Debug, Clone, Copy)]
struct Guess {
    id: u32,
    /// Position in [`TRUST`].
    source: usize,
}

impl<'a> FrameModel<'a> {
    /// Nothing coded yet of a frame of `tokens` tokens.
    pub(super) fn new(table: &'a TokenTable, tokens: usize) -> Self {
        let known = core::iter::once(table.escape_weight()).chain(table.weights().iter().copied());
        let slots = tokens.max(8).next_power_of_two();
        let guess_bits = slots.ilog2().min(MAX_GUESS_BITS);
        Self {
            table,
            weights: Weights::new(known, tokens),
            new_ids: Vec::new(),
            new_slots: vec![0; slots * 2],
            bits: Weights::new(BITS_WEIGHTS.into_iter(), 0),
            after_two: Guesses::new(guess_bits),
            after_one: Guesses::new(guess_bits),
            trust: TRUST,
            before: [START; 2],
        }
    }

    /// A record begins.
    pub(super) fn begin(&mut self) {
        self.before = [START; 2];
    }

    /// Passes the next token: writes `known`, or reads it where nothing is known.
    pub(super) fn pass<C: Channel>(&mut self, channel: &mut C, known: Option<u32>) -> u32 {
        let guess = self.guess();
        let id = match guess {
            Some(guess) if self.pass_trust(channel, guess, known) => guess.id,
            _ => self.pass_by_weight(channel, guess.map(|guess| guess.id), known),
        };
        self.after_two.learn(pair(self.before), id);
        self.after_one.learn(self.before[1].into(), id);
        self.before = [self.before[1], id];
        id
    }

    fn guess(&self) -> Option<Guess> {
        let last = self.before[1];
        if let Some((id, sure)) = self.after_two.of(pair(self.before)) {
            return Some(Guess { id, source: usize::from(sure) });
        }
        let in_table = if last == START { None } else { self.table.successor(last) };
        match self.after_one.of(last.into()) {
            Some((id, sure)) if in_table == Some(id) => Some(Guess { id, source: 8 + usize::from(sure) }),
            Some((id, sure)) => Some(Guess { id, source: 4 + usize::from(sure) }),
            None => in_table.map(|id| Guess { id, source: 12 }),
        }
    }

    /// Passes whether the guess is right.
    fn pass_trust<C: Channel>(&mut self, channel: &mut C, guess: Guess, known: Option<u32>) -> bool {
        let [misses, hits] = self.trust[guess.source].map(u32::from);
        let interval = |hit: bool| match hit {
            false => Interval { index: 0, start: 0, width: misses },
            true => Interval { index: 1, start: misses, width: hits },
        };
        let chosen =
            channel.choose(misses + hits, || interval(known == Some(guess.id)), |at| interval(at >= misses)).index;
        let counts = &mut self.trust[guess.source];
        counts[chosen as usize] += 1;
        if counts[0] + counts[1] > 1 << 10 {
            *counts = counts.map(|count| (count / 2).max(1));
        }
        chosen == 1
    }

    /// Passes a token that is not `excluded`.
    fn pass_by_weight<C: Channel>(&mut self, channel: &mut C, excluded: Option<u32>, known: Option<u32>) -> u32 {
        let weights = &self.weights;
        let gap = excluded.and_then(|id| self.position(id)).map(|at| weights.interval(at));
        let (gap_start, gap_width) = gap.map_or((u32::MAX, 0), |gap| (gap.start, gap.width));
        let shifted = |interval: Interval| {
            let behind = interval.start > gap_start;
            Interval { start: interval.start - if behind { gap_width } else { 0 }, ..interval }
        };
        let chosen = channel.choose(
            weights.total() - gap_width,
            || shifted(weights.interval(known.and_then(|id| self.position(id)).unwrap_or(0))),
            |at| shifted(weights.find(if at >= gap_start { at + gap_width } else { at })),
        );
        let may_learn = self.weights.total() + OCCURRENCE + NOVELTY <= MAX_TOTAL;
        if chosen.index > 0 {
            if may_learn {
                self.weights.add(chosen.index as usize, OCCURRENCE);
            }
            return self.id_at(chosen.index as usize);
        }
        let id = self.pass_spelled(channel, known.unwrap_or(0));
        // Twice the same id can be spelled only by bytes that no encoder made; the second is then never found.
        if may_learn {
            self.weights.add(0, NOVELTY);
            self.weights.push(OCCURRENCE);
            self.insert_new(id);
        }
        id
    }

    /// Passes any id at all.
    fn pass_spelled<C: Channel>(&mut self, channel: &mut C, known: u32) -> u32 {
        let known = u64::from(known) + OFFSET;
        let bits = MIN_BITS + learned(channel, &mut self.bits, BITS_LEARN, known.ilog2() + 1 - MIN_BITS);
        let value = match bits {
            MIN_BITS => {
                OFFSET + u64::from(channel.uniform((1 << MIN_BITS) - OFFSET as u32, || (known - OFFSET) as u32))
            }
            _ => 1 << (bits - 1) | low_bits(channel, bits - 1, known),
        };
        // Beyond 32 bits only by bytes that no encoder made.
        (value - OFFSET) as u32
    }

    /// Where the weight of `id` stands.
    fn position(&self, id: u32) -> Option<usize> {
        if let Some(at) = self.table.position(id) {
            return Some(1 + at);
        }
        let mask = self.new_slots.len() - 1;
        let mut slot = mix(id.into()) as usize & mask;
        loop {
            let at = (self.new_slots[slot] as usize).checked_sub(1)?;
            if self.new_ids[at] == id {
                return Some(1 + self.table.entries().len() + at);
            }
            slot = (slot + 1) & mask;
        }
    }

    fn insert_new(&mut self, id: u32) {
        let mask = self.new_slots.len() - 1;
        let mut slot = mix(id.into()) as usize & mask;
        while self.new_slots[slot] != 0 {
            slot = (slot + 1) & mask;
        }
        self.new_ids.push(id);
        self.new_slots[slot] = self.new_ids.len() as u32;
    }

    fn id_at(&self, position: usize) -> u32 {
        let entries = self.table.entries();
        match position.checked_sub(1 + entries.len()) {
            None => entries[position - 1].id,
            Some(at) => self.new_ids[at],
        }
    }
}

fn pair([second_last, last]: [u32; 2]) -> u64 {
    u64::from(second_last) << 32 | u64::from(last)
}

/// What followed a context the last times, in a table of fixed size where a newer context replaces an older one.
#[derive(Debug)]
struct Guesses {
    slots: Vec<Option<Follower>>,
}

#[derive(Debug, Clone, Copy)]
struct Follower {
    context: u64,
    id: u32,
    /// How often it was right since it was last wrong, up to [`SURE`].
    sure: u8,
}

impl Guesses {
    fn new(bits: u32) -> Self {
        Self { slots: vec![None; 1 << bits] }
    }

    fn slot(&self, context: u64) -> usize {
        mix(context) as usize & (self.slots.len() - 1)
    }

    fn of(&self, context: u64) -> Option<(u32, u8)> {
        let follower = self.slots[self.slot(context)]?;
        (follower.context == context).then_some((follower.id, follower.sure))
    }

    fn learn(&mut self, context: u64, id: u32) {
        let slot = self.slot(context);
        let new = Follower { context, id, sure: 0 };
        let follower = self.slots[slot].get_or_insert(new);
        if follower.context != context {
            *follower = new;
        } else if follower.id == id {
            follower.sure = SURE.min(follower.sure + 1);
        } else if follower.sure > 0 {
            follower.sure -= 1;
        } else {
            follower.id = id;
        }
    }
}
