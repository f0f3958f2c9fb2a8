//! A matrix whose rows stay packed.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::TensorType;
use crate::error::LoadError;
use crate::weights::Gguf;

/// Packed bytes, shared: a range of an open model file, or memory of their own. Cloning copies a pointer.
#[derive(Clone)]
pub enum WeightBytes {
    /// A range of a model file.
    File {
        /// The file that holds them.
        gguf: Arc<Gguf>,
        /// Where, from the start of the file.
        range: Range<usize>,
    },
    /// Memory of their own.
    Owned(Arc<[u8]>),
}

impl WeightBytes {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::File { gguf, range } => gguf.bytes_at(range.clone()),
            Self::Owned(bytes) => bytes,
        }
    }
}

/// A matrix `[rows, cols]` in one of the [`TensorType`]s. Blocks run along a row and never cross into the next.
///
/// A weight is stored `[out, in]`: row r holds the inputs' weights of output r. Cloning is cheap.
#[derive(Clone)]
pub struct PackedMatrix {
    rows: usize,
    cols: usize,
    tensor_type: TensorType,
    row_bytes: usize,
    bytes: WeightBytes,
}

impl PackedMatrix {
    /// The tensor `name` of a model file, without reading it.
    ///
    /// # Errors
    /// [`LoadError::MissingTensor`]; [`LoadError::Shape`] if it is not `[rows, cols]`.
    pub fn from_gguf(gguf: &Arc<Gguf>, name: &str, [rows, cols]: [usize; 2]) -> Result<Self, LoadError> {
        let tensor = gguf.expect_tensor(name, &[rows, cols])?;
        let bytes = WeightBytes::File { gguf: Arc::clone(gguf), range: tensor.range() };
        Ok(Self { rows, cols, tensor_type: tensor.tensor_type, row_bytes: tensor.len_bytes / rows, bytes })
    }

    /// Rows that are packed already.
    ///
    /// # Panics
    /// If the bytes are not exactly `rows` rows of `cols` values, or a row is not whole blocks.
    pub fn from_packed(tensor_type: TensorType, [rows, cols]: [usize; 2], bytes: impl Into<Arc<[u8]>>) -> Self {
        let bytes = bytes.into();
        let row_bytes = tensor_type.packed_bytes(cols);
        let Some(row_bytes) = row_bytes.filter(|row| row.checked_mul(rows) == Some(bytes.len())) else {
            panic!("{} bytes are not {rows} rows of {cols} values of {tensor_type}", bytes.len());
        };
        Self { rows, cols, tensor_type, row_bytes, bytes: WeightBytes::Owned(bytes) }
    }

    /// Packs a row-major matrix of floats.
    ///
    /// # Panics
    /// If `values` is not `rows · cols` long, or a row is not whole blocks.
    pub fn quantize(tensor_type: TensorType, [rows, cols]: [usize; 2], values: &[f32]) -> Self {
        assert_eq!(values.len(), rows * cols, "values of a [{rows}, {cols}] matrix");
        let row_bytes = tensor_type.packed_bytes(cols).unwrap_or_else(|| panic!("rows of {cols} in {tensor_type}"));
        let mut bytes = vec![0; rows * row_bytes];
        tensor_type.quantize(values, &mut bytes);
        Self::from_packed(tensor_type, [rows, cols], bytes)
    }

    /// Number of rows: outputs, or pieces of the vocabulary.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns: inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How the values are packed.
    pub fn tensor_type(&self) -> TensorType {
        self.tensor_type
    }

    /// Bytes of one row.
    pub fn row_len_bytes(&self) -> usize {
        self.row_bytes
    }

    /// All rows, one after the other.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_slice()
    }

    /// What keeps the bytes alive, for a kernel that outlives this matrix.
    pub fn shared_bytes(&self) -> &WeightBytes {
        &self.bytes
    }

    /// The packed bytes of one row.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row_bytes(&self, row: usize) -> &[u8] {
        &self.bytes()[row * self.row_bytes..][..self.row_bytes]
    }

    /// Unpacks some rows.
    ///
    /// # Shapes
    /// `values`: `[rows.len(), cols]`, row-major.
    ///
    /// # Panics
    /// If the rows do not exist, or `values` has another length.
    pub fn dequantize_rows(&self, rows: Range<usize>, values: &mut [f32]) {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        assert_eq!(values.len(), rows.len() * self.cols, "values of {} rows of {}", rows.len(), self.cols);
        let bytes = &self.bytes()[rows.start * self.row_bytes..rows.end * self.row_bytes];
        self.tensor_type.dequantize(bytes, values);
    }

    /// A copy whose row r is row `order[r]` of this matrix, still packed.
    ///
    /// # Panics
    /// If a row does not exist.
    pub fn select_rows(&self, order: impl IntoIterator<Item = usize>) -> Self {
        let mut bytes = Vec::new();
        let mut rows = 0;
        for row in order {
            bytes.extend_from_slice(self.row_bytes(row));
            rows += 1;
        }
        Self { rows, bytes: WeightBytes::Owned(bytes.into()), ..self.clone() }
    }
}

impl fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackedMatrix({}, [{}, {}])", self.tensor_type, self.rows, self.cols)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting() -> PackedMatrix {
        let values: Vec<f32> = (0..3 * 64).map(|i| i as f32).collect();
        PackedMatrix::quantize(TensorType::F32, [3, 64], &values)
    }

    #[test]
    fn rows_are_where_they_belong() {
        let matrix = counting();
        assert_eq!(matrix.row_bytes(1)[..4], 64.0f32.to_le_bytes());
        let mut values = [0.0; 128];
        matrix.dequantize_rows(1..3, &mut values);
        assert_eq!((values[0], values[127]), (64.0, 191.0));
    }

    #[test]
    fn selected_rows_come_in_the_order_asked_for() {
        let mut values = [0.0; 128];
        counting().select_rows([2, 0]).dequantize_rows(0..2, &mut values);
        assert_eq!((values[0], values[64]), (128.0, 0.0));
    }

    #[test]
    #[should_panic(expected = "100 bytes are not 1 rows of 64 values of Q4_1")]
    fn bytes_of_another_size_are_our_mistake() {
        PackedMatrix::from_packed(TensorType::Q4_1, [1, 64], vec![0; 100]);
    }
}
