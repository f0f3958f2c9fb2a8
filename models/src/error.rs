//! What can be wrong with a model file. Facts as fields, so that a caller can act on them.

use std::io;

use thiserror::Error;

/// A model file could not be opened, or says something that cannot be trusted or run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The operating system refused.
    #[error("{file}: {source}")]
    Io {
        /// The file as the caller named it.
        file: String,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// A folder, a pipe or a device: only regular files are mapped.
    #[error("{file}: not a regular file")]
    NotARegularFile {
        /// The file as the caller named it.
        file: String,
    },
    /// The file is larger than this build can map.
    #[error("{file}: {len_bytes} bytes, the limit is {limit_bytes}")]
    TooLarge {
        /// The file as the caller named it.
        file: String,
        /// Its length.
        len_bytes: u64,
        /// The largest length that is mapped.
        limit_bytes: u64,
    },
    /// The bytes are not a GGUF file that we accept.
    #[error("{file}: byte {offset}, {field}: {fault}")]
    Format {
        /// The file as the caller named it.
        file: String,
        /// Where the offending field begins, from the start of the file.
        offset: u64,
        /// The field, with the key or tensor name it belongs to.
        field: String,
        /// What is wrong with it.
        fault: FormatFault,
    },
    /// A family of models that has no implementation here.
    #[error("{file}: architecture `{found}` is not supported, only {}", known.join(", "))]
    UnknownArchitecture {
        /// The file as the caller named it.
        file: String,
        /// `general.architecture` of the file.
        found: String,
        /// The architectures that would be accepted.
        known: Vec<&'static str>,
    },
    /// A metadata key that the model needs is absent, or has another type.
    #[error("{file}: metadata `{key}` is missing or is not {expected}")]
    MissingKey {
        /// The file as the caller named it.
        file: String,
        /// The key.
        key: String,
        /// The type that was looked for.
        expected: &'static str,
    },
    /// A metadata number outside what this runtime computes with.
    #[error("{file}: metadata `{key}` is {found}, expected {expected}")]
    KeyValue {
        /// The file as the caller named it.
        file: String,
        /// The key.
        key: String,
        /// The value found.
        found: String,
        /// What is accepted.
        expected: String,
    },
    /// A tensor that the architecture needs is absent.
    #[error("{file}: tensor `{name}` is missing")]
    MissingTensor {
        /// The file as the caller named it.
        file: String,
        /// The tensor.
        name: String,
    },
    /// A tensor that the architecture has no use for: computing without it would give wrong logits.
    #[error("{file}: tensor `{name}` does not belong to architecture `{architecture}`")]
    UnexpectedTensor {
        /// The file as the caller named it.
        file: String,
        /// The tensor.
        name: String,
        /// `general.architecture` of the file.
        architecture: String,
    },
    /// A tensor has another shape than the metadata says.
    #[error("{file}: tensor `{name}`: expected shape {expected:?}, file has {found:?}")]
    Shape {
        /// The file as the caller named it.
        file: String,
        /// The tensor.
        name: String,
        /// Outermost dimension first.
        expected: Vec<usize>,
        /// Outermost dimension first.
        found: Vec<usize>,
    },
    /// A weight is infinite or not a number.
    #[error("{file}: tensor `{name}`: block {block} is not finite")]
    NotFinite {
        /// The file as the caller named it.
        file: String,
        /// The tensor.
        name: String,
        /// The first such block, counted in blocks of the tensor's type.
        block: usize,
    },
}

/// What is wrong with one field of a GGUF file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FormatFault {
    /// The file ends inside the field.
    #[error("needs {needed} bytes, the file has {available} left")]
    Truncated {
        /// Bytes that the field takes.
        needed: u64,
        /// Bytes up to the end of the file.
        available: u64,
    },
    /// The file does not begin with `GGUF`.
    #[error("not a GGUF file")]
    Magic,
    /// A version of GGUF, or a byte order, that is not read here.
    #[error("GGUF version {found} is not supported, only little-endian 2 and 3")]
    Version {
        /// The version field, read as little-endian.
        found: u32,
    },
    /// A count or a length above the cap.
    #[error("{found} is above the limit of {limit}")]
    AboveLimit {
        /// The value found.
        found: u64,
        /// The largest value accepted.
        limit: u64,
    },
    /// A string that is not UTF-8.
    #[error("not valid UTF-8")]
    Utf8,
    /// A key or a name that occurred before.
    #[error("occurs twice")]
    Duplicate,
    /// An empty key or name.
    #[error("is empty")]
    Empty,
    /// A metadata value type that GGUF does not define.
    #[error("value type {found} is not defined")]
    ValueType {
        /// The type number.
        found: u32,
    },
    /// An array inside an array.
    #[error("arrays of arrays are not accepted")]
    Nested,
    /// A boolean that is neither 0 nor 1.
    #[error("boolean is {found}")]
    Bool {
        /// The byte found.
        found: u8,
    },
    /// `general.alignment` is not a `u32` power of two up to the cap.
    #[error("alignment must be a u32, a power of two, at most {limit}")]
    Alignment {
        /// The largest alignment accepted.
        limit: u64,
    },
    /// A tensor without dimensions, or with one of length 0.
    #[error("a dimension is 0")]
    ZeroDimension,
    /// A product or a sum does not fit the machine's integers.
    #[error("size overflows")]
    Overflow,
    /// A tensor type that this runtime does not compute with.
    #[error("tensor type {} is not supported", name.map_or_else(|| format!("number {id}"), str::to_owned))]
    TensorType {
        /// GGUF's type number.
        id: u32,
        /// The type's usual name, where it has one.
        name: Option<&'static str>,
    },
    /// Rows are not a whole number of blocks.
    #[error("rows of {row_len} values do not divide into blocks of {block_len}")]
    Blocks {
        /// Values in one row.
        row_len: usize,
        /// Values in one block of the tensor's type.
        block_len: usize,
    },
    /// The tensor does not start where the one before it ends: a hole, an overlap or a broken alignment.
    #[error("starts at {found} of the data, expected {expected}")]
    Misplaced {
        /// Where the aligned end of the tensor before is, from the start of the data.
        expected: u64,
        /// Where the file puts it.
        found: u64,
    },
    /// Bytes after the last tensor that are not its padding.
    #[error("{len_bytes} bytes follow the last tensor")]
    Trailing {
        /// How many bytes.
        len_bytes: u64,
    },
}
