//! A decoder model: embedding, layers, final norm, output matrix.

use burn::tensor::{Device, Tensor};

use super::{DecoderLayer, Pass, RmsNorm};
use crate::compute_error::ComputeError;
use crate::ops::{Frozen, embedding};

/// What every family builds.
#[derive(Debug)]
pub(crate) struct Decoder {
    /// The embedding `[vocab_size, hidden_size]`.
    pub(crate) embed_tokens: Frozen,
    pub(crate) layers: Vec<DecoderLayer>,
    pub(crate) norm: RmsNorm,
    /// The output matrix `[vocab_size, hidden_size]`; of the embedding's values where the two are tied.
    pub(crate) lm_head: Frozen,
    /// Turn per position of each pair of dimensions, in radians.
    pub(crate) rope_frequencies: Vec<f64>,
}

impl Decoder {
    /// Hidden states at the asked depths: 0 is the embedding, `i` the output of layer `i`, the last one after the final norm.
    ///
    /// # Shapes
    /// `ids` `[tokens]`, results `[tokens, hidden_size]`, in the order of `depths`.
    ///
    /// # Errors
    /// [`ComputeError::Cancelled`] between two layers.
    pub(crate) fn forward(
        &self,
        ids: &[u32],
        depths: &[usize],
        pass: &mut Pass<'_>,
        device: &Device,
    ) -> Result<Vec<Tensor<2>>, ComputeError> {
        let mut kept = vec![None; depths.len()];
        let mut keep = |depth: usize, x: &Tensor<2>| {
            for (slot, _) in kept.iter_mut().zip(depths).filter(|(_, asked)| **asked == depth) {
                *slot = Some(x.clone());
            }
        };
        let mut x = embedding(ids, &self.embed_tokens, device);
        keep(0, &x);
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(x, index, pass)?;
            if index + 1 < self.layers.len() {
                keep(index + 1, &x);
            }
        }
        keep(self.layers.len(), &self.norm.forward(x));
        kept.into_iter()
            .zip(depths)
            .map(|(x, &depth)| x.ok_or(ComputeError::NoSuchLayer { depth, layers: self.layers.len() }))
            .collect()
    }
}
