//! A range coder: choices with integer weights in, bytes out, and the same choices back.
//!
//! Integers only, so that every target writes and reads the same bytes. Encoder and decoder are two ends of one
//! [`Channel`], so a model is written once and cannot say one thing and hear another.
//!
//! # Source
//! Martin, *Range encoding: an algorithm for removing redundancy from a digitised message* (1979); carries are held back
//! as in Pavlov's LZMA.

use alloc::vec::Vec;

/// The interval never gets narrower than this before it is widened by a byte.
const MIN_RANGE: u32 = 1 << 24;
/// Most that the weights of one choice may add up to. Leaves 4 bits of precision at the narrowest interval.
pub(super) const MAX_TOTAL: u32 = 1 << 20;

/// One of several alternatives, whose weights lie side by side from 0 to their total.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Interval {
    /// Which alternative.
    pub(super) index: u32,
    /// Weight of those before it.
    pub(super) start: u32,
    /// Its own weight, at least 1.
    pub(super) width: u32,
}

/// One end of a stream of choices.
pub(super) trait Channel {
    /// Passes one choice among alternatives whose weights add up to `total`, at most [`MAX_TOTAL`].
    ///
    /// The writing end takes `known` and the reading end asks `find` for the interval that holds a position in
    /// `0..total`; both return what was chosen.
    fn choose(&mut self, total: u32, known: impl FnOnce() -> Interval, find: impl FnOnce(u32) -> Interval) -> Interval;

    /// Passes a number below `total`, all being equally likely.
    fn uniform(&mut self, total: u32, known: impl FnOnce() -> u32) -> u32 {
        let at = |index| Interval { index, start: index, width: 1 };
        self.choose(total, || at(known()), at).index
    }
}

/// The writing end.
#[derive(Debug)]
pub(super) struct Encoder {
    /// Lower end of the interval; bit 32 is a carry into what was handed on.
    low: u64,
    range: u32,
    /// The byte that a carry may still change, and after it `held - 1` bytes of 0xFF.
    cache: u8,
    held: usize,
    bytes: Vec<u8>,
}

impl Encoder {
    pub(super) fn new() -> Self {
        Self { low: 0, range: u32::MAX, cache: 0, held: 1, bytes: Vec::new() }
    }

    /// Ends the stream with as few bytes as tell it apart; the reading end takes what is missing for zeros.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let last = u64::from(MIN_RANGE - 1);
        self.low = (self.low + last) & !last;
        for _ in 0..5 {
            self.shift();
        }
        // The first byte is the carry out of the whole stream, which never comes.
        self.bytes.remove(0);
        let used = self.bytes.iter().rposition(|&byte| byte != 0).map_or(0, |at| at + 1);
        self.bytes.truncate(used);
        self.bytes
    }

    /// Hands the top byte of `low` on, as far as no carry can change it any more.
    fn shift(&mut self) {
        if self.low < 0xFF00_0000 || self.low > u64::from(u32::MAX) {
            let carry = (self.low >> 32) as u8;
            self.bytes.push(self.cache.wrapping_add(carry));
            self.bytes.extend(core::iter::repeat_n(0xFF_u8.wrapping_add(carry), self.held - 1));
            self.cache = (self.low >> 24) as u8;
            self.held = 0;
        }
        self.held += 1;
        self.low = (self.low & 0x00FF_FFFF) << 8;
    }
}

impl Channel for Encoder {
    fn choose(&mut self, total: u32, known: impl FnOnce() -> Interval, _: impl FnOnce(u32) -> Interval) -> Interval {
        let chosen = known();
        debug_assert!(chosen.width > 0 && chosen.start + chosen.width <= total && total <= MAX_TOTAL);
        let unit = self.range / total;
        self.low += u64::from(unit) * u64::from(chosen.start);
        self.range = unit * chosen.width;
        while self.range < MIN_RANGE {
            self.range <<= 8;
            self.shift();
        }
        chosen
    }
}

/// The reading end. Whatever the bytes are, it only ever makes choices that exist.
#[derive(Debug)]
pub(super) struct Decoder<'a> {
    code: u32,
    range: u32,
    bytes: core::slice::Iter<'a, u8>,
}

impl<'a> Decoder<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        let mut decoder = Self { code: 0, range: u32::MAX, bytes: bytes.iter() };
        for _ in 0..4 {
            decoder.shift();
        }
        decoder
    }

    fn shift(&mut self) {
        self.code = self.code << 8 | u32::from(self.bytes.next().copied().unwrap_or(0));
    }
}

impl Channel for Decoder<'_> {
    fn choose(&mut self, total: u32, _: impl FnOnce() -> Interval, find: impl FnOnce(u32) -> Interval) -> Interval {
        let unit = self.range / total;
        let chosen = find((self.code / unit).min(total - 1));
        self.code -= unit * chosen.start;
        self.range = unit * chosen.width;
        while self.range < MIN_RANGE {
            self.range <<= 8;
            self.shift();
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::mix;

    /// Weights `1, 2, .., n` side by side.
    fn triangle(index: u32) -> Interval {
        Interval { index, start: index * (index + 1) / 2, width: index + 1 }
    }

    #[test]
    fn choices_come_back_and_cost_what_their_weights_say() {
        // Fewer under Miri, which is a thousand times slower.
        const CHOICES: u64 = if cfg!(miri) { 50 } else { 2000 };
        for seed in 0..CHOICES / 40 {
            let choices: Vec<(u32, u32)> = (0..CHOICES)
                .map(|at| {
                    let bits = mix(seed << 32 | at);
                    let alternatives = 1 + (bits >> 8) as u32 % 1000;
                    (alternatives, (bits >> 32) as u32 % alternatives)
                })
                .collect();
            let total = |alternatives| triangle(alternatives).start;
            let mut encoder = Encoder::new();
            let mut bits = 0.0;
            for &(alternatives, index) in &choices {
                encoder.choose(total(alternatives), || triangle(index), |_| unreachable!("an encoder asks nothing"));
                bits -= (f64::from(index + 1) / f64::from(total(alternatives))).log2();
            }
            let bytes = encoder.finish();
            let mut decoder = Decoder::new(&bytes);
            for &(alternatives, index) in &choices {
                let find = |at| triangle((0..alternatives).rfind(|&index| triangle(index).start <= at).unwrap());
                let chosen = decoder.choose(total(alternatives), || unreachable!("a decoder knows nothing"), find);
                assert_eq!(chosen.index, index);
            }
            // Rounding of the interval, at most 1 part in 16 of a choice's weight, and the last byte.
            const ROUNDING: f64 = 1.01;
            assert!(bytes.len() as f64 * 8.0 <= bits * ROUNDING + 16.0, "{} bytes for {bits} bits", bytes.len());
        }
    }

    #[test]
    fn carries_run_through_held_back_bytes() {
        // The last of 256 alternatives keeps the interval at its upper end: long runs of 0xFF, then a carry or none.
        for (run, last) in [(1, 0), (40, 0), (40, 255), (1000, 3)] {
            let mut encoder = Encoder::new();
            let choices: Vec<u32> = core::iter::repeat_n(255, run).chain([last, 254, 255, 0]).collect();
            for &choice in &choices {
                encoder.uniform(256, || choice);
            }
            let bytes = encoder.finish();
            let mut decoder = Decoder::new(&bytes);
            let read: Vec<u32> = choices.iter().map(|_| decoder.uniform(256, || unreachable!())).collect();
            assert_eq!(read, choices);
        }
    }

    #[test]
    fn any_bytes_decode_to_choices_that_exist() {
        // Fewer under Miri, which is a thousand times slower.
        const SEEDS: u64 = if cfg!(miri) { 5 } else { 200 };
        for seed in 0..SEEDS {
            let bytes: Vec<u8> = (0..40).map(|at| mix(seed << 8 | at) as u8).collect();
            let mut decoder = Decoder::new(&bytes);
            for at in 0..100 {
                let total = 1 + mix(at) as u32 % MAX_TOTAL;
                assert!(decoder.uniform(total, || unreachable!()) < total);
            }
        }
    }
}
