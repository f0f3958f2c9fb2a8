//! Hidden states become losses: next-token cross entropy over scored positions, and how far two learners' states differ.
//!
//! Everything is given as a sum, so that the caller divides by what the whole step has: parts of a step then add up to
//! exactly the loss of the step in one piece. Knows no method and no adapter.

use burn::tensor::activation::{log_softmax, relu};
use burn::tensor::{Int, Tensor, TensorData};
use mynah_models::Model;
use serde::{Deserialize, Serialize};

use super::methods::MicroBatch;

/// Positions whose logits exist at once in [`logit_divergence`]. A vocabulary of 150,000 makes 10 MB of 16 positions.
const DIVERGENCE_CHUNK_POSITIONS: usize = 16;

/// What the difference of two learners is measured on and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ConsistencyForm {
    /// `(fast - slow)²` of hidden states: the paper's.
    TwoSided,
    /// `relu(slow - fast)²` of hidden states: the released code's; only states below the slow learner's are pulled.
    OneSided,
    /// Kullback-Leibler divergence of the next-token distributions, from the slow learner's to the fast one's, in nats.
    Logits,
}

/// Which hidden states are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum HiddenLayers {
    /// Those after the final norm.
    Last,
    /// Those, and the outputs of every so many decoder layers before.
    Every(usize),
    /// The embedding's and every layer's: what the released code compares.
    All,
}

impl HiddenLayers {
    /// Depths in a model of `num_hidden_layers` layers, ascending: 0 is the embedding, the last one after the final norm.
    pub fn depths(self, num_hidden_layers: usize) -> Vec<usize> {
        match self {
            Self::Last => vec![num_hidden_layers],
            Self::Every(stride) => {
                let stride = stride.max(1);
                let first = num_hidden_layers % stride;
                (first..=num_hidden_layers).step_by(stride).filter(|depth| *depth > 0).collect()
            }
            Self::All => (0..=num_hidden_layers).collect(),
        }
    }
}

/// Which positions of a replayed example are held to the slow learner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum TokenScope {
    /// Every position.
    All,
    /// The positions whose next token is scored: those that predict the answer and the end token.
    Answer,
}

impl TokenScope {
    /// The positions of the replayed rows of `micro` in this scope, among all its tokens.
    pub fn positions(self, micro: &MicroBatch) -> Vec<usize> {
        match self {
            Self::All => (micro.new_tokens()..micro.batch.tokens.ids().len()).collect(),
            Self::Answer => micro.batch.positions[micro.new_positions..].to_vec(),
        }
    }
}

/// Rows `positions` of `hidden`.
///
/// # Shapes
/// `hidden` `[tokens, hidden_size]`; result `[positions.len(), hidden_size]`.
pub fn select(hidden: &Tensor<2>, positions: &[usize]) -> Tensor<2> {
    let indices: Vec<i32> = positions.iter().map(|position| *position as i32).collect();
    let data = TensorData::new(indices, [positions.len()]);
    hidden.clone().select(0, Tensor::<1, Int>::from_data(data, &hidden.device()))
}

/// Sum over positions, and over units where the form compares hidden states, of the difference between two learners.
///
/// # Shapes
/// `fast`, `slow` `[positions, hidden_size]`, after the final norm; result `[1]`. Divide by [`consistency_terms`].
pub fn consistency_sum(form: ConsistencyForm, model: &Model, fast: Tensor<2>, slow: Tensor<2>) -> Tensor<1> {
    match form {
        ConsistencyForm::TwoSided => square(fast - slow).sum(),
        ConsistencyForm::OneSided => square(relu(slow - fast)).sum(),
        ConsistencyForm::Logits => logit_divergence(model, fast, slow),
    }
}

/// How many terms a sum over `positions` positions has: what turns it into a mean.
pub fn consistency_terms(form: ConsistencyForm, positions: usize, hidden_size: usize) -> usize {
    match form {
        ConsistencyForm::TwoSided | ConsistencyForm::OneSided => positions * hidden_size,
        ConsistencyForm::Logits => positions,
    }
}

fn square(x: Tensor<2>) -> Tensor<2> {
    x.clone() * x
}

/// Sum over positions of `Σ p_slow (log p_slow - log p_fast)`.
fn logit_divergence(model: &Model, fast: Tensor<2>, slow: Tensor<2>) -> Tensor<1> {
    let positions = fast.dims()[0];
    let mut sum: Option<Tensor<1>> = None;
    for from in (0..positions).step_by(DIVERGENCE_CHUNK_POSITIONS) {
        let len = DIVERGENCE_CHUNK_POSITIONS.min(positions - from);
        let log_p = |hidden: &Tensor<2>| log_softmax(model.logits(hidden.clone().narrow(0, from, len)), 1);
        let (fast, slow) = (log_p(&fast), log_p(&slow));
        let part = (slow.clone().exp() * (slow - fast)).sum();
        sum = Some(match sum {
            Some(sum) => sum + part,
            None => part,
        });
    }
    sum.unwrap_or_else(|| Tensor::zeros([1], &fast.device()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_always_end_with_the_last() {
        assert_eq!(HiddenLayers::Last.depths(6), [6]);
        assert_eq!(HiddenLayers::Every(4).depths(6), [2, 6]);
        assert_eq!(HiddenLayers::Every(3).depths(6), [3, 6]);
        assert_eq!(HiddenLayers::Every(0).depths(2), [1, 2]);
        assert_eq!(HiddenLayers::All.depths(2), [0, 1, 2]);
    }
}
