//! Causal attention with grouped queries, a block of queries of one head at a time; scores of a block are the only ones in
//! memory.

use std::ops::Range;

use rayon::prelude::*;

use super::columns::Columns;
use super::dot::{add_scaled, dot};
use super::exp::exp;
use super::microkernel::{COLS, ROWS, Tile, multiply};
use super::simd::{Simd, vectorized};
use super::slab;
use crate::ops::attention::Geometry;

/// Queries of a block: enough to use a transposed key several times, few enough that scores stay in the cache.
const BLOCK: usize = 64;
/// Most queries of a sequence that are answered key by key: decoding.
const FEW_QUERIES: usize = 4;
/// Tokens whose gradients one task adds at least.
const TASK_TOKENS: usize = 16;

/// `out = softmax(q · kᵀ / sqrt(head_dim)) · v`, each query over the keys of its sequence up to its own position.
///
/// # Shapes
/// `q` and `out` `[tokens, num_attention_heads · head_dim]`; `k` and `v` as the geometry says.
pub(crate) fn forward(geometry: &Geometry, q: &[f32], k: &[f32], v: &[f32], out: &mut [f32]) {
    let simd = Simd::detect();
    let out = Columns::new(out, geometry.query_width());
    let tasks: Vec<(Head<'_>, Range<usize>)> = heads(simd, geometry)
        .flat_map(|head| blocks(head.tokens.len()).map(move |queries| (head.clone(), queries)))
        .collect();
    tasks.into_par_iter().for_each(|(head, queries)| {
        // SAFETY: a task alone writes this head's columns of these rows.
        let write = |query: usize| unsafe {
            out.slice(head.tokens.start + query, head.index * geometry.head_dim, geometry.head_dim)
        };
        if head.tokens.len() <= FEW_QUERIES {
            queries.for_each(|query| head.answer_one(q, k, v, query, write(query)));
        } else {
            let probabilities = head.probabilities(q, k, &queries);
            let mut mixed = vec![0.0; queries.len() * geometry.head_dim];
            head.mix(&probabilities, v, &mut mixed);
            for (query, mixed) in queries.zip(mixed.chunks_exact(geometry.head_dim)) {
                write(query).copy_from_slice(mixed);
            }
        }
    });
}

/// Gradients with respect to q, k and v, all `[tokens, heads · head_dim]`; there are no earlier keys than the sequences' own.
///
/// Probabilities are computed again rather than kept.
pub(crate) fn backward(
    geometry: &Geometry,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    d_out: &[f32],
    [dq, dk, dv]: [&mut [f32]; 3],
) {
    let dim = geometry.head_dim;
    let dq = Columns::new(dq, geometry.query_width());
    let heads: Vec<Head<'_>> = heads(Simd::detect(), geometry).collect();
    // Heads of a group share keys: each makes its own share, which are added in order afterwards.
    let shares: Vec<[Vec<f32>; 2]> = heads
        .par_iter()
        .map(|head| {
            let count = head.tokens.len();
            let mut share = [vec![0.0; count * dim], vec![0.0; count * dim]];
            for queries in blocks(count) {
                let dq_block = head.differentiate(q, k, v, d_out, &queries, &mut share);
                for (query, values) in queries.zip(dq_block.chunks_exact(dim)) {
                    // SAFETY: this task alone writes this head's columns of these rows.
                    unsafe { dq.slice(head.tokens.start + query, head.index * dim, dim) }.copy_from_slice(values);
                }
            }
            share
        })
        .collect();
    for (which, gradient) in [dk, dv].into_iter().enumerate() {
        add_shares(geometry, &heads, &shares, which, gradient);
    }
}

/// The gradient of keys (0) or values (1): the sum of what every head of a sequence gives, in order.
fn add_shares(geometry: &Geometry, heads: &[Head<'_>], shares: &[[Vec<f32>; 2]], which: usize, out: &mut [f32]) {
    let dim = geometry.head_dim;
    let width = geometry.key_value_heads * dim;
    let mut rest = out;
    let mut sequences = Vec::new();
    for (heads, shares) in heads.chunks(geometry.heads).zip(shares.chunks(geometry.heads)) {
        let (of_sequence, after) = rest.split_at_mut(heads[0].tokens.len() * width);
        sequences.push((of_sequence, heads, shares));
        rest = after;
    }
    sequences.into_par_iter().for_each(|(out, heads, shares)| {
        out.par_chunks_mut(width).with_min_len(TASK_TOKENS).enumerate().for_each(|(token, out)| {
            out.fill(0.0);
            for (head, share) in heads.iter().zip(shares) {
                let first = geometry.key_head(head.index) * dim;
                add_scaled(head.simd, &mut out[first..first + dim], 1.0, &share[which][token * dim..][..dim]);
            }
        });
    });
}

/// Every head of every sequence that has tokens, the heads of a sequence together.
fn heads(simd: Simd, geometry: &Geometry) -> impl Iterator<Item = Head<'_>> {
    let scale = 1.0 / (geometry.head_dim as f32).sqrt();
    let sequences = geometry.sequences().filter(|tokens| !tokens.is_empty());
    sequences.flat_map(move |tokens| {
        (0..geometry.heads).map(move |index| Head { simd, geometry, tokens: tokens.clone(), index, scale })
    })
}

/// The queries of a sequence in blocks.
fn blocks(queries: usize) -> impl Iterator<Item = Range<usize>> {
    (0..queries).step_by(BLOCK).map(move |first| first..(first + BLOCK).min(queries))
}

/// One query head of one sequence. Queries and positions are counted from the sequence's first.
#[derive(Clone)]
struct Head<'a> {
    simd: Simd,
    geometry: &'a Geometry,
    /// The rows of the batch that are this sequence's.
    tokens: Range<usize>,
    index: usize,
    scale: f32,
}

impl Head<'_> {
    /// Where a query of this head begins.
    fn query(&self, query: usize) -> usize {
        (self.tokens.start + query) * self.geometry.query_width() + self.index * self.geometry.head_dim
    }

    /// Where the key or value of a position begins that this head reads.
    fn position(&self, position: usize) -> usize {
        let (operand, head) = (self.geometry.operand(), self.geometry.key_head(self.index));
        head * operand.head_stride + (self.tokens.start + position) * operand.token_stride
    }

    /// The answer to one query, key by key.
    fn answer_one(&self, q: &[f32], k: &[f32], v: &[f32], token: usize, out: &mut [f32]) {
        let dim = self.geometry.head_dim;
        let query = &q[self.query(token)..][..dim];
        let seen = self.geometry.past + token + 1;
        let mut scores: Vec<f32> = (0..seen).map(|s| dot(self.simd, query, &k[self.position(s)..][..dim])).collect();
        softmax(self.simd, &mut scores, self.scale);
        out.fill(0.0);
        for (position, probability) in scores.iter().enumerate() {
            add_scaled(self.simd, out, *probability, &v[self.position(position)..][..dim]);
        }
    }

    /// Probabilities of a block's queries over the keys up to the block's last, `[queries, seen]`.
    fn probabilities(&self, q: &[f32], k: &[f32], queries: &Range<usize>) -> Matrix {
        let mut scores = self.against(q, self.query(queries.start), k, queries);
        for (query, row) in queries.clone().zip(scores.values.chunks_exact_mut(scores.cols)) {
            let (seen, future) = row.split_at_mut(self.geometry.past + query + 1);
            softmax(self.simd, seen, self.scale);
            future.fill(0.0);
        }
        scores
    }

    /// Products of a block's rows of `a` with every key or value up to the block's last: `[queries, seen]`.
    fn against(&self, a: &[f32], first: usize, b: &[f32], queries: &Range<usize>) -> Matrix {
        let dim = self.geometry.head_dim;
        let mut scores = Matrix::zeros(queries.len(), self.geometry.past + queries.end);
        let mut slab = vec![0.0; dim * COLS];
        for key in (0..scores.cols).step_by(COLS) {
            let count = COLS.min(scores.cols - key);
            for position in 0..count {
                let from = self.position(key + position);
                for (d, value) in b[from..from + dim].iter().enumerate() {
                    slab[d * COLS + position] = *value;
                }
            }
            let left = Left { values: &a[first..], stride: self.geometry.query_width(), rows: queries.len() };
            left.times(self.simd, &slab, &mut scores.values[key..], scores.cols, count);
        }
        scores
    }

    /// Sums of keys or values weighted by each row of `weights`: `[queries, head_dim]`.
    fn mix(&self, weights: &Matrix, b: &[f32], out: &mut [f32]) {
        let dim = self.geometry.head_dim;
        let mut slab = vec![0.0; weights.cols * COLS];
        for first in (0..dim).step_by(COLS) {
            let count = COLS.min(dim - first);
            let stride = self.geometry.operand().token_stride;
            slab::fill(&mut slab, &b[self.position(0) + first..], stride, count);
            weights.as_left().times(self.simd, &slab, &mut out[first..], dim, count);
        }
    }

    /// The gradient of a block's queries; those of keys and values are added onto `share`, `[cols, head_dim]` each.
    fn differentiate(
        &self,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        d_out: &[f32],
        queries: &Range<usize>,
        [dk, dv]: &mut [Vec<f32>; 2],
    ) -> Vec<f32> {
        let dim = self.geometry.head_dim;
        let first = self.query(queries.start);
        let probabilities = self.probabilities(q, k, queries);
        let mut d_scores = self.against(d_out, first, v, queries);
        for (d, p) in
            d_scores.values.chunks_exact_mut(d_scores.cols).zip(probabilities.values.chunks_exact(probabilities.cols))
        {
            let mean = dot(self.simd, d, p);
            for (d, p) in d.iter_mut().zip(p) {
                *d = p * (*d - mean) * self.scale;
            }
        }
        let mut dq = vec![0.0; queries.len() * dim];
        self.mix(&d_scores, k, &mut dq);
        self.add_transposed(&probabilities, d_out, first, dv);
        self.add_transposed(&d_scores, q, first, dk);
        dq
    }

    /// `sum += weightsᵀ · b` with the block's rows of `b`; `sum` is `[cols, head_dim]`.
    fn add_transposed(&self, weights: &Matrix, b: &[f32], first: usize, sum: &mut [f32]) {
        let (dim, stride) = (self.geometry.head_dim, self.geometry.query_width());
        let transposed = weights.transposed();
        let mut slab = vec![0.0; weights.rows * COLS];
        for column in (0..dim).step_by(COLS) {
            let count = COLS.min(dim - column);
            slab::fill(&mut slab, &b[first + column..], stride, count);
            transposed.as_left().times(self.simd, &slab, &mut sum[column..], dim, count);
        }
    }
}

/// A small row-major matrix of its own.
struct Matrix {
    values: Vec<f32>,
    rows: usize,
    cols: usize,
}

impl Matrix {
    fn zeros(rows: usize, cols: usize) -> Self {
        Self { values: vec![0.0; rows * cols], rows, cols }
    }

    fn transposed(&self) -> Self {
        let mut transposed = Self::zeros(self.cols, self.rows);
        for (row, values) in self.values.chunks_exact(self.cols).enumerate() {
            for (col, value) in values.iter().enumerate() {
                transposed.values[col * self.rows + row] = *value;
            }
        }
        transposed
    }

    fn as_left(&self) -> Left<'_> {
        Left { values: &self.values, stride: self.cols, rows: self.rows }
    }
}

/// The left side of a product: rows of some stride.
struct Left<'a> {
    values: &'a [f32],
    stride: usize,
    rows: usize,
}

impl Left<'_> {
    /// `out += self · slab`, the first `count` columns of it; `out` has rows of `out_stride`.
    fn times(&self, simd: Simd, slab: &[f32], out: &mut [f32], out_stride: usize, count: usize) {
        for row in (0..self.rows).step_by(ROWS) {
            let rows = ROWS.min(self.rows - row);
            let mut tile: Tile = [[0.0; COLS]; ROWS];
            for (index, sums) in tile.iter_mut().enumerate().take(rows) {
                sums[..count].copy_from_slice(&out[(row + index) * out_stride..][..count]);
            }
            multiply(simd, &self.values[row * self.stride..], self.stride, rows, slab, &mut tile);
            for (index, sums) in tile.iter().enumerate().take(rows) {
                out[(row + index) * out_stride..][..count].copy_from_slice(&sums[..count]);
            }
        }
    }
}

vectorized! {
    /// `scores = softmax(scale · scores)`.
    fn softmax(scores: &mut [f32], scale: f32) = softmax_body
}

#[inline(always)]
fn softmax_body(scores: &mut [f32], scale: f32) {
    let mut largest = f32::NEG_INFINITY;
    for score in scores.iter() {
        largest = if *score > largest { *score } else { largest };
    }
    for score in scores.iter_mut() {
        *score = exp((*score - largest) * scale);
    }
    let mut lanes = [0.0f32; 16];
    let (chunks, rest) = scores.as_chunks::<16>();
    for chunk in chunks {
        for lane in 0..16 {
            lanes[lane] += chunk[lane];
        }
    }
    let total = lanes.iter().sum::<f32>() + rest.iter().sum::<f32>();
    for score in scores.iter_mut() {
        *score /= total;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| (((i + seed * 7) * 7919 % 2003) as f32 - 1001.0) / 800.0).collect()
    }

    /// Attention in f64, straight from the formula, a sequence after another; keys and values token by token.
    fn reference(g: &Geometry, q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
        let (dim, key_width) = (g.head_dim, g.key_value_heads * g.head_dim);
        let mut out = vec![0.0; q.len()];
        for tokens in g.sequences() {
            for token in 0..tokens.len() {
                for head in 0..g.heads {
                    let at = |position: usize| (tokens.start + position) * key_width + g.key_head(head) * dim;
                    let query = (tokens.start + token) * g.query_width() + head * dim;
                    let score =
                        |p: usize| (0..dim).map(|d| q[query + d] * k[at(p) + d]).sum::<f64>() / (dim as f64).sqrt();
                    let weights: Vec<f64> = (0..=token).map(|p| score(p).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    for d in 0..dim {
                        out[query + d] = (0..=token).map(|p| weights[p] / total * v[at(p) + d]).sum();
                    }
                }
            }
        }
        out
    }

    fn wide(values: &[f32]) -> Vec<f64> {
        values.iter().map(|v| f64::from(*v)).collect()
    }

    fn check(lengths: &[usize], heads: usize, key_value_heads: usize, head_dim: usize) {
        let g = Geometry::of_batch(lengths.into(), heads, key_value_heads, head_dim);
        let (tokens, key_width) = (g.tokens(), key_value_heads * head_dim);
        let (q, k, v) =
            (numbers(tokens * g.query_width(), 1), numbers(tokens * key_width, 2), numbers(tokens * key_width, 3));
        let d_out = numbers(tokens * g.query_width(), 4);
        let mut out = vec![f32::NAN; q.len()];
        forward(&g, &q, &k, &v, &mut out);
        let expected = reference(&g, &wide(&q), &wide(&k), &wide(&v));
        for (i, (found, expected)) in out.iter().zip(&expected).enumerate() {
            assert!((f64::from(*found) - expected).abs() < 1e-5, "out[{i}] of {g:?}: {found} is not {expected}");
        }
        let (mut dq, mut dk, mut dv) = (vec![f32::NAN; q.len()], vec![f32::NAN; k.len()], vec![f32::NAN; v.len()]);
        backward(&g, &q, &k, &v, &d_out, [&mut dq, &mut dk, &mut dv]);
        let loss = |q: &[f64], k: &[f64], v: &[f64]| -> f64 {
            reference(&g, q, k, v).iter().zip(&d_out).map(|(y, d)| y * f64::from(*d)).sum()
        };
        for (which, gradient) in [&dq, &dk, &dv].into_iter().enumerate() {
            for i in (0..gradient.len()).step_by(gradient.len() / 40 + 1) {
                let slope = |step: f64| {
                    let mut inputs = [wide(&q), wide(&k), wide(&v)];
                    inputs[which][i] += step;
                    loss(&inputs[0], &inputs[1], &inputs[2])
                };
                let expected = (slope(1e-5) - slope(-1e-5)) / 2e-5;
                let found = f64::from(gradient[i]);
                assert!((found - expected).abs() < 1e-4, "gradient {which}[{i}] of {g:?}: {found} is not {expected}");
            }
        }
    }

    #[test]
    fn values_and_gradients_equal_f64_and_its_differences() {
        check(&[5], 2, 1, 8);
        check(&[70, 70], 3, 1, 16);
        check(&[9], 4, 2, 40);
        check(&[3, 3], 4, 4, 8);
        check(&[7, 1, 66, 0, 3], 4, 2, 16);
    }
}
