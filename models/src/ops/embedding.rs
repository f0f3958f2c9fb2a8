//! Rows of the packed embedding matrix. The base is frozen, so there is no gradient.

use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;

use super::Frozen;

/// Looks up token ids.
///
/// The ids are on the host and so are the packed rows: for both kinds of devices the few rows that a batch needs are
/// dequantized here and handed over, which costs a GPU one small upload and no kernel, and spares it the whole matrix where
/// the output matrix is another one.
///
/// # Shapes
/// `matrix` `[vocab_size, hidden_size]`, result `[ids.len(), hidden_size]`.
///
/// # Panics
/// If an id is not below `vocab_size`; the caller checks its batch.
pub(crate) fn embedding(ids: &[u32], matrix: &Frozen, device: &Device) -> Tensor<2> {
    let width = matrix.weights().cols();
    let mut rows = vec![0.0; ids.len() * width];
    rows.par_chunks_mut(width).zip(ids).for_each(|(out, &id)| matrix.weights().dequantize_row(id as usize, out));
    Tensor::from_data(TensorData::new(rows, [ids.len(), width]), device)
}
