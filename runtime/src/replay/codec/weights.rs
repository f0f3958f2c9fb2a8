//! Weights that change, and their running sums: a Fenwick tree.
//!
//! # Source
//! Fenwick, *A new data structure for cumulative frequency tables* (1994).

use alloc::vec::Vec;

use super::range::Interval;

/// A sum that no position is behind.
const UNREACHED: u32 = u32::MAX;

/// Weights at positions `0..len`, with sums and search in `O(log n)`.
#[derive(Debug)]
pub(super) struct Weights {
    weights: Vec<u32>,
    /// Node `i` holds the sum of the `i & -i` weights that end at position `i - 1`. Nodes from `end` up to a power of two
    /// are never reached, so that a search has no end to check and no branch to guess.
    nodes: Vec<u32>,
    end: usize,
    total: u32,
}

impl Weights {
    /// Starts with `weights`; up to `more` can be pushed.
    pub(super) fn new(weights: impl Iterator<Item = u32>, more: usize) -> Self {
        let weights: Vec<u32> = weights.collect();
        let len = weights.len() + more;
        let end = len + 1;
        let mut nodes = alloc::vec![0; end];
        let mut total = 0;
        for node in 1..=len {
            let weight = weights.get(node - 1).copied().unwrap_or(0);
            nodes[node] += weight;
            total += weight;
            let parent = node + (node & node.wrapping_neg());
            if parent <= len {
                nodes[parent] += nodes[node];
            }
        }
        nodes.resize(end.next_power_of_two(), UNREACHED);
        Self { weights, nodes, end, total }
    }

    /// Sum of all weights.
    pub(super) fn total(&self) -> u32 {
        self.total
    }

    /// Adds `weight` to the one at `at`.
    pub(super) fn add(&mut self, at: usize, weight: u32) {
        self.weights[at] += weight;
        self.total += weight;
        let mut node = at + 1;
        while node < self.end {
            self.nodes[node] += weight;
            node += node & node.wrapping_neg();
        }
    }

    /// Appends a weight; returns its position.
    pub(super) fn push(&mut self, weight: u32) -> usize {
        let at = self.weights.len();
        self.weights.push(0);
        self.add(at, weight);
        at
    }

    /// Where the weight at `at` lies.
    pub(super) fn interval(&self, at: usize) -> Interval {
        let mut start = 0;
        let mut node = at;
        while node > 0 {
            start += self.nodes[node];
            node -= node & node.wrapping_neg();
        }
        Interval { index: at as u32, start, width: self.weights[at] }
    }

    /// The weight in which `position`, below the total, lies.
    pub(super) fn find(&self, position: u32) -> Interval {
        let mut node = 0;
        let mut left = position;
        let mut step = self.nodes.len() / 2;
        while step > 0 {
            let sum = self.nodes[node + step];
            let is_behind = sum <= left;
            node += if is_behind { step } else { 0 };
            left -= if is_behind { sum } else { 0 };
            step /= 2;
        }
        let start = position - left;
        Interval { index: node as u32, start, width: self.weights[node] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::mix;

    #[test]
    fn sums_and_search_are_those_of_a_plain_list() {
        // Fewer under Miri, which is a thousand times slower.
        const SEEDS: u64 = if cfg!(miri) { 2 } else { 40 };
        for seed in 0..SEEDS {
            let mut plain: Vec<u32> = (0..seed % 9).map(|at| mix(seed ^ at << 20) as u32 % 50).collect();
            plain.push(1);
            let mut weights = Weights::new(plain.iter().copied(), 200);
            for at in 0..200_u64 {
                let bits = mix(seed << 16 | at);
                if bits & 1 == 0 {
                    let weight = (bits >> 8) as u32 % 40;
                    assert_eq!(weights.push(weight), plain.len());
                    plain.push(weight);
                } else {
                    let at = (bits >> 8) as usize % plain.len();
                    weights.add(at, 7);
                    plain[at] += 7;
                }
                let mut start = 0;
                for (at, &width) in plain.iter().enumerate() {
                    let interval = Interval { index: at as u32, start, width };
                    assert_eq!(weights.interval(at), interval);
                    if width > 0 {
                        assert_eq!(weights.find(start), interval);
                        assert_eq!(weights.find(start + width - 1), interval);
                    }
                    start += width;
                }
                assert_eq!(weights.total(), start);
            }
        }
    }
}
