//! Examples become what a forward pass takes: ids, and the positions whose next token is scored.
//!
//! Also decides which examples make up a step. Both are pure functions of their arguments: a resumed run rebuilds the
//! batch of any step. Knows no tensors.

use std::ops::Range;

use mynah_models::{ComputeError, TokenBatch};

use crate::example::Example;

use super::rng::{Purpose, shuffle, stream};

/// The tokens of one example, prompt first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'a> {
    /// Prompt, answer and end token.
    pub tokens: &'a [u32],
    /// How many of them are the prompt, which is not scored.
    pub prompt_len: usize,
}

impl Row<'_> {
    /// The tokens that are scored: each has one before it.
    pub fn scored(&self) -> Range<usize> {
        self.prompt_len.max(1).min(self.tokens.len())..self.tokens.len()
    }
}

impl<'a> From<&'a Example> for Row<'a> {
    fn from(example: &'a Example) -> Self {
        Self { tokens: example.tokens(), prompt_len: example.prompt_len() }
    }
}

/// Rows of tokens, one after another and without padding, with what is scored in them.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Their ids.
    pub tokens: TokenBatch,
    /// Positions among all tokens whose next token is scored; ascending.
    pub positions: Vec<usize>,
    /// The token that follows each of `positions`.
    pub targets: Vec<u32>,
}

impl Batch {
    /// Puts rows behind one another.
    ///
    /// Every answer token is scored, and the end token; the position of a token's prediction is the one before it, so the
    /// very first token is never scored.
    ///
    /// # Errors
    /// [`ComputeError::BatchShape`] if there is no token at all.
    pub fn new(rows: &[Row<'_>]) -> Result<Self, ComputeError> {
        let sequences: Vec<&[u32]> = rows.iter().map(|row| row.tokens).collect();
        let tokens = TokenBatch::packed(&sequences)?;
        let (mut positions, mut targets, mut start) = (Vec::new(), Vec::new(), 0);
        for row in rows {
            positions.extend(row.scored().map(|token| start + token - 1));
            targets.extend_from_slice(&row.tokens[row.scored()]);
            start += row.tokens.len();
        }
        Ok(Self { tokens, positions, targets })
    }

    /// The mean over each row of a value at each of [`Batch::positions`]; 0 for a row without any.
    pub fn row_means(&self, values: &[f32]) -> Vec<f32> {
        let mut scored = self.positions.iter().zip(values).peekable();
        let mut end = 0;
        let means = self.tokens.lengths().iter().map(|length| {
            end += length;
            let (mut sum, mut count) = (0.0, 0_u16);
            while let Some((_, value)) = scored.next_if(|(position, _)| **position < end) {
                sum += value;
                count += 1;
            }
            sum / f32::from(count.max(1))
        });
        means.collect()
    }
}

/// Which examples, by index, each step of a run trains on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// Examples of the run; at least 1.
    pub examples: usize,
    /// Examples of one step, at least 1; the last step of an epoch has what is left.
    pub batch_rows: usize,
    /// The session's seed.
    pub seed: u64,
    /// Number of the run.
    pub run: u64,
}

impl Schedule {
    /// Steps of one epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.examples.div_ceil(self.batch_rows) as u64
    }

    /// Indices of the examples of step `step`, counted from 0. Each epoch has each example once, in its own order.
    pub fn examples_of_step(&self, step: u64) -> Vec<usize> {
        let (epoch, within) = (step / self.steps_per_epoch(), (step % self.steps_per_epoch()) as usize);
        let mut order: Vec<usize> = (0..self.examples).collect();
        shuffle(&mut stream(self.seed, Purpose::EpochOrder, self.run, epoch), &mut order);
        let from = within * self.batch_rows;
        order[from..self.examples.min(from + self.batch_rows)].to_vec()
    }
}

/// Splits rows, in their order, so that no part has more than `max_tokens` tokens; a longer row is alone.
pub fn split<'a>(rows: &[Row<'a>], max_tokens: usize) -> Vec<Vec<Row<'a>>> {
    let mut parts: Vec<Vec<Row<'a>>> = Vec::new();
    let mut tokens = 0;
    for row in rows {
        tokens += row.tokens.len();
        match parts.last_mut() {
            Some(part) if tokens <= max_tokens => part.push(*row),
            _ => {
                parts.push(vec![*row]);
                tokens = row.tokens.len();
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_scored_one_position_early() {
        let batch = Batch::new(&[
            Row { tokens: &[5, 6, 7, 2], prompt_len: 2 },
            Row { tokens: &[8, 9], prompt_len: 1 },
            Row { tokens: &[3, 4, 1], prompt_len: 0 },
        ])
        .unwrap();
        assert_eq!(batch.tokens.lengths(), [4, 2, 3]);
        assert_eq!(batch.tokens.ids(), [5, 6, 7, 2, 8, 9, 3, 4, 1]);
        assert_eq!(batch.positions, [1, 2, 4, 6, 7]);
        assert_eq!(batch.targets, [7, 2, 9, 4, 1]);
        assert_eq!(batch.row_means(&[1.0, 2.0, 5.0, 3.0, 4.0]), [1.5, 5.0, 3.5]);
    }

    #[test]
    fn every_epoch_has_every_example_once_in_an_order_of_its_own() {
        let schedule = Schedule { examples: 10, batch_rows: 4, seed: 1, run: 2 };
        assert_eq!(schedule.steps_per_epoch(), 3);
        let epoch = |number: u64| (0..3).flat_map(|k| schedule.examples_of_step(3 * number + k)).collect::<Vec<_>>();
        for number in 0..5 {
            let mut sorted = epoch(number);
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(epoch(0), epoch(1));
        assert_ne!(
            epoch(0),
            (0..3).flat_map(|k| Schedule { run: 3, ..schedule }.examples_of_step(k)).collect::<Vec<_>>()
        );
        assert_eq!(schedule.examples_of_step(2).len(), 2);
    }

    #[test]
    fn parts_stay_within_their_tokens_and_keep_the_order() {
        let tokens = [0; 9];
        let rows: Vec<Row<'_>> =
            [3, 4, 2, 9, 1, 1].iter().map(|len| Row { tokens: &tokens[..*len], prompt_len: 0 }).collect();
        let lens = |max| -> Vec<Vec<usize>> {
            split(&rows, max).iter().map(|part| part.iter().map(|row| row.tokens.len()).collect()).collect()
        };
        assert_eq!(lens(8), [vec![3, 4], vec![2], vec![9], vec![1, 1]]);
        assert_eq!(lens(9), [vec![3, 4, 2], vec![9], vec![1, 1]]);
        assert_eq!(lens(1), [vec![3], vec![4], vec![2], vec![9], vec![1], vec![1]]);
        assert_eq!(lens(1000), [vec![3, 4, 2, 9, 1, 1]]);
    }
}
