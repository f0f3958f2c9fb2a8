//! GGUF, little-endian, versions 2 and 3 (the same layout).
//!
//! ```text
//! "GGUF"  version u32  tensor count u64  key count u64
//! keys:    name (length u64, UTF-8)  value type u32  value
//! tensors: name  rank u32  dimensions u64, innermost first  type u32  offset u64, from the start of the data
//! padding to general.alignment (32 if absent), then the data of the tensors, each padded to the alignment
//! ```
//!
//! The header is parsed once into a plan in which every range lies inside the file and the tensors tile the data exactly;
//! everything after that reads from the plan. Tensor data is not touched by opening.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use memmap2::Mmap;
use sha2::{Digest, Sha256};

use super::metadata::{Element, Index, Metadata, Value};
use super::mmap;
use crate::error::{FormatFault, LoadError};
use crate::quant::TensorType;

const MAX_TENSORS: u64 = 4096;
const MAX_RANK: u32 = 4;
const MAX_NAME_BYTES: u64 = 256;
const MAX_KEYS: u64 = 4096;
/// A chat template or a license text, with room to spare.
const MAX_STRING_BYTES: u64 = 1 << 20;
/// A vocabulary of one million, or the merges of one.
const MAX_ARRAY_LEN: u64 = 1 << 20;
/// Vocabularies of 150 thousand pieces with merges take about 6 MiB; nothing known comes near this.
const MAX_HEADER_BYTES: u64 = 64 << 20;
const MAX_ALIGNMENT: u64 = 4096;
const DEFAULT_ALIGNMENT: u64 = 32;
const ALIGNMENT_KEY: &str = "general.alignment";

/// One tensor of a model file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorInfo {
    /// The name, unique in its file.
    pub name: String,
    /// Dimensions, outermost first: a matrix is `[rows, cols]`. None is 0.
    pub shape: Vec<usize>,
    /// How its values are packed.
    pub tensor_type: TensorType,
    /// Where its bytes begin, from the start of the file.
    pub offset_bytes: usize,
    /// How many bytes it has.
    pub len_bytes: usize,
}

impl TensorInfo {
    /// Where its bytes lie in the file.
    pub fn range(&self) -> Range<usize> {
        self.offset_bytes..self.offset_bytes + self.len_bytes
    }
}

/// An opened model file: the checked plan, and the bytes it points into.
pub struct Gguf {
    file: String,
    bytes: Bytes,
    index: Index,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
    digest: OnceLock<[u8; 32]>,
}

enum Bytes {
    Mapped(Mmap),
    Memory(Cow<'static, [u8]>),
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Memory(bytes) => bytes,
        }
    }
}

impl Gguf {
    /// Maps the file and checks its header. The weights are read when they are used.
    ///
    /// The file must not be changed while it is open: keep it where only this program writes.
    ///
    /// # Errors
    /// [`LoadError::Io`], [`LoadError::NotARegularFile`] and [`LoadError::TooLarge`] before anything is read;
    /// [`LoadError::Format`] names the byte and the field that is wrong.
    pub fn open(path: &Path) -> Result<Arc<Self>, LoadError> {
        let map = mmap::map(path)?;
        Self::parse(path.display().to_string(), Bytes::Mapped(map))
    }

    /// A model in memory, for one that is embedded in the program.
    ///
    /// # Errors
    /// [`LoadError::Format`] names the byte and the field that is wrong.
    pub fn from_bytes(bytes: impl Into<Cow<'static, [u8]>>) -> Result<Arc<Self>, LoadError> {
        Self::parse("<memory>".to_owned(), Bytes::Memory(bytes.into()))
    }

    fn parse(file: String, bytes: Bytes) -> Result<Arc<Self>, LoadError> {
        let plan = Parser { bytes: bytes.as_slice(), at: 0 }
            .plan()
            .map_err(|(offset, field, fault)| LoadError::Format { file: file.clone(), offset, field, fault })?;
        let by_name = plan.tensors.iter().enumerate().map(|(at, tensor)| (tensor.name.clone(), at)).collect();
        Ok(Arc::new(Self { file, bytes, index: plan.index, tensors: plan.tensors, by_name, digest: OnceLock::new() }))
    }

    /// The file as the caller named it, for messages.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The key-value metadata.
    pub fn metadata(&self) -> Metadata<'_> {
        Metadata { bytes: self.bytes.as_slice(), index: &self.index }
    }

    /// All tensors, in the order of their data.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// A tensor by name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&at| &self.tensors[at])
    }

    /// The packed bytes of a tensor of this file.
    ///
    /// # Panics
    /// If `tensor` belongs to a larger file.
    pub fn bytes(&self, tensor: &TensorInfo) -> &[u8] {
        &self.bytes.as_slice()[tensor.range()]
    }

    /// Gives the memory of a tensor's pages back to the system, where the file is mapped: they are read again when they are used again.
    pub(crate) fn release(&self, name: &str) {
        if let (Bytes::Mapped(map), Some(tensor)) = (&self.bytes, self.tensor(name)) {
            mmap::release(map, tensor.range());
        }
    }

    pub(crate) fn bytes_at(&self, range: Range<usize>) -> &[u8] {
        &self.bytes.as_slice()[range]
    }

    /// A tensor of one dimension as floats, whatever its type.
    ///
    /// # Errors
    /// [`LoadError::MissingTensor`]; [`LoadError::Shape`] if it is not `[len]`.
    pub fn vector_f32(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        let tensor = self.expect_tensor(name, &[len])?;
        let mut values = vec![0.0; len];
        tensor.tensor_type.dequantize(self.bytes(tensor), &mut values);
        Ok(values)
    }

    /// The tensor, if the file has it in this shape (outermost first).
    ///
    /// # Errors
    /// [`LoadError::MissingTensor`], [`LoadError::Shape`].
    pub fn expect_tensor(&self, name: &str, shape: &[usize]) -> Result<&TensorInfo, LoadError> {
        let tensor = self
            .tensor(name)
            .ok_or_else(|| LoadError::MissingTensor { file: self.file.clone(), name: name.to_owned() })?;
        if tensor.shape != shape {
            return Err(LoadError::Shape {
                file: self.file.clone(),
                name: name.to_owned(),
                expected: shape.to_vec(),
                found: tensor.shape.clone(),
            });
        }
        Ok(tensor)
    }

    /// SHA-256 of the whole file, the same as `sha256sum` gives. Reads it once, then remembers.
    pub fn digest(&self) -> [u8; 32] {
        *self.digest.get_or_init(|| Sha256::digest(self.bytes.as_slice()).into())
    }

    /// Checks that every weight is a finite number. Reads the whole file, so it is not part of opening.
    ///
    /// # Errors
    /// [`LoadError::NotFinite`] names the first block that is not.
    pub fn verify(&self) -> Result<(), LoadError> {
        for tensor in &self.tensors {
            if let Some(block) = tensor.tensor_type.first_not_finite(self.bytes(tensor)) {
                return Err(LoadError::NotFinite { file: self.file.clone(), name: tensor.name.clone(), block });
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Gguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gguf")
            .field("file", &self.file)
            .field("len_bytes", &self.bytes.as_slice().len())
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}

struct Plan {
    index: Index,
    tensors: Vec<TensorInfo>,
}

/// Byte offset, field, fault: [`LoadError::Format`] without the file.
type Fault = (u64, String, FormatFault);

/// A tensor as the header lists it, its place not yet checked.
struct Listed {
    name: String,
    shape: Vec<usize>,
    tensor_type: TensorType,
    len_bytes: usize,
    /// From the start of the data.
    offset: u64,
    /// Where the offset field lies in the file.
    field_at: u64,
}

struct Parser<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Parser<'a> {
    fn plan(mut self) -> Result<Plan, Fault> {
        if self.take(4, "magic")? != b"GGUF" {
            return Err((0, "magic".to_owned(), FormatFault::Magic));
        }
        let version = self.u32("version")?;
        if !matches!(version, 2 | 3) {
            return Err((4, "version".to_owned(), FormatFault::Version { found: version }));
        }
        let tensor_count = self.count("tensor count", MAX_TENSORS)?;
        let key_count = self.count("key count", MAX_KEYS)?;
        let index = self.metadata(key_count)?;
        let listed = self.tensor_list(tensor_count)?;
        let tensors = self.place(listed, alignment(&index)?)?;
        Ok(Plan { index, tensors })
    }

    fn metadata(&mut self, key_count: u64) -> Result<Index, Fault> {
        let mut index = Index::default();
        for number in 0..key_count {
            let key_at = self.at;
            let key = self.name("key", number)?;
            let value = self.value(&key)?;
            if index.values.insert(key.clone(), value).is_some() {
                return Err((key_at as u64, format!("key `{key}`"), FormatFault::Duplicate));
            }
            self.check_header_size()?;
        }
        Ok(index)
    }

    fn value(&mut self, key: &str) -> Result<Value, Fault> {
        let at = self.at as u64;
        let field = || format!("value of `{key}`");
        let number = self.u32(key)?;
        if number == 9 {
            return self.array(key);
        }
        let Some(kind) = Element::from_number(number) else {
            return Err((at, field(), FormatFault::ValueType { found: number }));
        };
        Ok(match kind {
            Element::U8 => Value::Unsigned(self.array_of::<1>(key)?[0].into()),
            Element::I8 => Value::Signed(i8::from_le_bytes(self.array_of(key)?).into()),
            Element::U16 => Value::Unsigned(u16::from_le_bytes(self.array_of(key)?).into()),
            Element::I16 => Value::Signed(i16::from_le_bytes(self.array_of(key)?).into()),
            Element::U32 => Value::Unsigned(u32::from_le_bytes(self.array_of(key)?).into()),
            Element::I32 => Value::Signed(i32::from_le_bytes(self.array_of(key)?).into()),
            Element::U64 => Value::Unsigned(u64::from_le_bytes(self.array_of(key)?)),
            Element::I64 => Value::Signed(i64::from_le_bytes(self.array_of(key)?)),
            Element::F32 => Value::Float(f32::from_le_bytes(self.array_of(key)?).into()),
            Element::F64 => Value::Float(f64::from_le_bytes(self.array_of(key)?)),
            Element::Str => Value::Str(self.string(key, MAX_STRING_BYTES)?.0),
            Element::Bool => match self.array_of::<1>(key)?[0] {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                found => return Err((at + 4, field(), FormatFault::Bool { found })),
            },
        })
    }

    fn array(&mut self, key: &str) -> Result<Value, Fault> {
        let at = self.at as u64;
        let field = || format!("value of `{key}`");
        let number = self.u32(key)?;
        if number == 9 {
            return Err((at, field(), FormatFault::Nested));
        }
        let Some(element) = Element::from_number(number) else {
            return Err((at, field(), FormatFault::ValueType { found: number }));
        };
        let len = self.count(key, MAX_ARRAY_LEN)? as usize; // the cap fits any usize
        let start = self.at;
        match element.size_bytes() {
            Some(size_bytes) => {
                self.take(len * size_bytes, key)?; // at most 8 MiB, by the cap
            }
            None => {
                for _ in 0..len {
                    self.string(key, MAX_STRING_BYTES)?;
                }
            }
        }
        Ok(Value::Array { element, len, bytes: start..self.at })
    }

    fn tensor_list(&mut self, tensor_count: u64) -> Result<Vec<Listed>, Fault> {
        let mut listed = Vec::new();
        let mut names = std::collections::HashSet::new();
        for number in 0..tensor_count {
            let name_at = self.at as u64;
            let name = self.name("tensor name", number)?;
            if !names.insert(name.clone()) {
                return Err((name_at, format!("tensor `{name}`"), FormatFault::Duplicate));
            }
            listed.push(self.tensor(name)?);
            self.check_header_size()?;
        }
        Ok(listed)
    }

    fn tensor(&mut self, name: String) -> Result<Listed, Fault> {
        let at = self.at as u64;
        let label = format!("tensor `{name}`");
        let fault = |at, fault| Err((at, label.clone(), fault));
        let rank = self.u32(&label)?;
        if rank > MAX_RANK {
            return fault(at, FormatFault::AboveLimit { found: rank.into(), limit: MAX_RANK.into() });
        }
        let mut shape = Vec::with_capacity(rank as usize);
        for _ in 0..rank {
            let Ok(dimension) = usize::try_from(self.u64(&label)?) else {
                return fault(at, FormatFault::Overflow);
            };
            shape.push(dimension);
        }
        if shape.is_empty() || shape.contains(&0) {
            return fault(at, FormatFault::ZeroDimension);
        }
        let type_at = self.at as u64;
        let id = self.u32(&label)?;
        let Some(tensor_type) = TensorType::from_gguf(id) else {
            return fault(type_at, FormatFault::TensorType { id, name: ggml_type_name(id) });
        };
        // GGUF lists the innermost dimension first: that is the row, and blocks do not cross rows.
        let row_len = shape[0];
        if !row_len.is_multiple_of(tensor_type.block_len()) {
            return fault(at, FormatFault::Blocks { row_len, block_len: tensor_type.block_len() });
        }
        let values = shape.iter().try_fold(1usize, |product, dimension| product.checked_mul(*dimension));
        let Some(len_bytes) = values.and_then(|v| (v / tensor_type.block_len()).checked_mul(tensor_type.block_bytes()))
        else {
            return fault(at, FormatFault::Overflow);
        };
        shape.reverse();
        let field_at = self.at as u64;
        let offset = self.u64(&label)?;
        Ok(Listed { name, shape, tensor_type, len_bytes, offset, field_at })
    }

    /// Checks that the tensors tile the rest of the file, and gives them their place in it.
    fn place(&self, mut listed: Vec<Listed>, alignment: u64) -> Result<Vec<TensorInfo>, Fault> {
        let file_len = self.bytes.len() as u64;
        // The header is at most 64 MiB, so this cannot overflow.
        let data_start = (self.at as u64).next_multiple_of(alignment);
        listed.sort_by_key(|tensor| tensor.offset);
        let mut expected = 0u64;
        let mut data_end = self.at as u64;
        let mut tensors = Vec::with_capacity(listed.len());
        for tensor in listed {
            let fault = |fault| (tensor.field_at, format!("tensor `{}`", tensor.name), fault);
            if tensor.offset != expected {
                return Err(fault(FormatFault::Misplaced { expected, found: tensor.offset }));
            }
            let start = data_start + expected; // both are within the file
            let available = file_len.saturating_sub(start);
            let needed = tensor.len_bytes as u64;
            if needed > available {
                return Err(fault(FormatFault::Truncated { needed, available }));
            }
            data_end = start + needed;
            expected = (expected + needed).next_multiple_of(alignment); // a file length plus at most 4 KiB
            tensors.push(TensorInfo {
                name: tensor.name,
                shape: tensor.shape,
                tensor_type: tensor.tensor_type,
                offset_bytes: start as usize, // within the file, which is a slice
                len_bytes: tensor.len_bytes,
            });
        }
        // The last tensor's padding may be written or not.
        if file_len > data_end.next_multiple_of(alignment) {
            let len_bytes = file_len - data_end;
            return Err((data_end, "end of the file".to_owned(), FormatFault::Trailing { len_bytes }));
        }
        Ok(tensors)
    }

    fn check_header_size(&self) -> Result<(), Fault> {
        let found = self.at as u64;
        if found > MAX_HEADER_BYTES {
            return Err((found, "header".to_owned(), FormatFault::AboveLimit { found, limit: MAX_HEADER_BYTES }));
        }
        Ok(())
    }

    fn take(&mut self, len: usize, field: &str) -> Result<&'a [u8], Fault> {
        let rest = &self.bytes[self.at..];
        let Some(taken) = rest.get(..len) else {
            let fault = FormatFault::Truncated { needed: len as u64, available: rest.len() as u64 };
            return Err((self.at as u64, field.to_owned(), fault));
        };
        self.at += len;
        Ok(taken)
    }

    fn array_of<const N: usize>(&mut self, field: &str) -> Result<[u8; N], Fault> {
        let taken = self.take(N, field)?;
        Ok(*taken.first_chunk().unwrap_or(&[0; N])) // `take` gave exactly N
    }

    fn u32(&mut self, field: &str) -> Result<u32, Fault> {
        Ok(u32::from_le_bytes(self.array_of(field)?))
    }

    fn u64(&mut self, field: &str) -> Result<u64, Fault> {
        Ok(u64::from_le_bytes(self.array_of(field)?))
    }

    /// A length or a number of things, at most `limit`.
    fn count(&mut self, field: &str, limit: u64) -> Result<u64, Fault> {
        let at = self.at as u64;
        let found = self.u64(field)?;
        if found > limit {
            return Err((at, field.to_owned(), FormatFault::AboveLimit { found, limit }));
        }
        Ok(found)
    }

    fn string(&mut self, field: &str, limit: u64) -> Result<(Range<usize>, &'a str), Fault> {
        let len = self.count(field, limit)? as usize; // the limits fit any usize
        let start = self.at;
        let bytes = self.take(len, field)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok((start..self.at, text)),
            Err(_) => Err((start as u64, field.to_owned(), FormatFault::Utf8)),
        }
    }

    fn name(&mut self, what: &str, number: u64) -> Result<String, Fault> {
        let field = format!("{what} number {number}");
        let at = self.at as u64;
        let (_, name) = self.string(&field, MAX_NAME_BYTES)?;
        if name.is_empty() {
            return Err((at, field, FormatFault::Empty));
        }
        Ok(name.to_owned())
    }
}

fn alignment(index: &Index) -> Result<u64, Fault> {
    match index.values.get(ALIGNMENT_KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::Unsigned(value)) if value.is_power_of_two() && *value <= MAX_ALIGNMENT => Ok(*value),
        Some(_) => Err((0, format!("value of `{ALIGNMENT_KEY}`"), FormatFault::Alignment { limit: MAX_ALIGNMENT })),
    }
}

/// Names of types that exist but are not computed with here, for the error message.
fn ggml_type_name(id: u32) -> Option<&'static str> {
    Some(match id {
        6 => "Q5_0",
        7 => "Q5_1",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        12 => "Q4_K",
        13 => "Q5_K",
        14 => "Q6_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return None,
    })
}
