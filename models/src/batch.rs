//! Token ids in the shape that a pass takes.

use std::sync::Arc;

use crate::compute_error::ComputeError;

/// Sequences of any lengths, one after another: there is no padding. None sees another, and positions count from 0 in each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenBatch {
    ids: Vec<u32>,
    lengths: Arc<[usize]>,
}

impl TokenBatch {
    /// `rows` sequences of `cols` tokens each.
    ///
    /// # Errors
    /// [`ComputeError::BatchShape`] if `ids` is not `rows · cols` long, or empty.
    pub fn new(ids: Vec<u32>, rows: usize, cols: usize) -> Result<Self, ComputeError> {
        if ids.is_empty() || rows.checked_mul(cols) != Some(ids.len()) {
            return Err(ComputeError::BatchShape { rows, cols, ids: ids.len() });
        }
        Ok(Self { ids, lengths: vec![cols; rows].into() })
    }

    /// Sequences of any lengths; those without tokens take no room.
    ///
    /// # Errors
    /// [`ComputeError::BatchShape`] if there is no token at all.
    pub fn packed<R: AsRef<[u32]>>(sequences: &[R]) -> Result<Self, ComputeError> {
        let ids: Vec<u32> = sequences.iter().flat_map(|sequence| sequence.as_ref().iter().copied()).collect();
        if ids.is_empty() {
            return Err(ComputeError::BatchShape { rows: sequences.len(), cols: 0, ids: 0 });
        }
        Ok(Self { ids, lengths: sequences.iter().map(|sequence| sequence.as_ref().len()).collect() })
    }

    /// All ids, sequence after sequence.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Tokens of each sequence.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Tokens of each sequence, shared.
    pub(crate) fn shared_lengths(&self) -> Arc<[usize]> {
        Arc::clone(&self.lengths)
    }

    /// Tokens of the longest sequence.
    pub fn longest(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(0)
    }
}
