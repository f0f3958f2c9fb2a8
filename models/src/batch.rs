//! Token ids in the shape that a pass takes.

use crate::compute_error::ComputeError;

/// `rows` sequences of `cols` tokens, row-major, padded on the right; positions count from 0 in each row.
///
/// What a padding position gives means nothing; nothing else depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenBatch {
    ids: Vec<u32>,
    rows: usize,
    cols: usize,
}

impl TokenBatch {
    /// A batch of equally long rows.
    ///
    /// # Errors
    /// [`ComputeError::BatchShape`] if `ids` is not `rows · cols` long, or empty.
    pub fn new(ids: Vec<u32>, rows: usize, cols: usize) -> Result<Self, ComputeError> {
        if ids.is_empty() || rows.checked_mul(cols) != Some(ids.len()) {
            return Err(ComputeError::BatchShape { rows, cols, ids: ids.len() });
        }
        Ok(Self { ids, rows, cols })
    }

    /// Rows of any lengths, padded with `padding` to the longest.
    ///
    /// # Errors
    /// [`ComputeError::BatchShape`] if there is no token at all.
    pub fn padded<R: AsRef<[u32]>>(sequences: &[R], padding: u32) -> Result<Self, ComputeError> {
        let cols = sequences.iter().map(|row| row.as_ref().len()).max().unwrap_or(0);
        let mut ids = Vec::with_capacity(sequences.len() * cols);
        for row in sequences {
            ids.extend_from_slice(row.as_ref());
            ids.resize(ids.len() + cols - row.as_ref().len(), padding);
        }
        Self::new(ids, sequences.len(), cols)
    }

    /// All ids, row after row.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Sequences.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Tokens of a sequence, padding included.
    pub fn cols(&self) -> usize {
        self.cols
    }
}
