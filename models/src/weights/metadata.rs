//! Key-value metadata of a GGUF file: found once, read in place.

use std::collections::BTreeMap;
use std::ops::Range;

/// One value, as the parser left it: scalars decoded, the rest as byte ranges of the file.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Str(Range<usize>),
    Array { element: Element, len: usize, bytes: Range<usize> },
}

/// Element type of an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Str,
    U64,
    I64,
    F64,
}

impl Element {
    /// From GGUF's value type number. Arrays (9) are not elements.
    pub(super) fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::Str,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// Bytes of one element; strings have no fixed size.
    pub(super) fn size_bytes(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::Str => None,
        }
    }
}

/// Where every key's value lies.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) values: BTreeMap<String, Value>,
}

/// The metadata of a model file, borrowed from it.
///
/// A getter gives `None` when the key is absent or has another type.
#[derive(Clone, Copy)]
pub struct Metadata<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) index: &'a Index,
}

impl<'a> Metadata<'a> {
    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.index.values.keys().map(String::as_str)
    }

    /// Whether the file has the key, of whatever type.
    pub fn contains(&self, key: &str) -> bool {
        self.index.values.contains_key(key)
    }

    /// A string.
    pub fn str(&self, key: &str) -> Option<&'a str> {
        match self.index.values.get(key)? {
            Value::Str(range) => std::str::from_utf8(self.bytes.get(range.clone())?).ok(),
            _ => None,
        }
    }

    /// An integer of any width that is not negative.
    pub fn u64(&self, key: &str) -> Option<u64> {
        match self.index.values.get(key)? {
            Value::Unsigned(value) => Some(*value),
            Value::Signed(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// A float of either width.
    pub fn f64(&self, key: &str) -> Option<f64> {
        match self.index.values.get(key)? {
            Value::Float(value) => Some(*value),
            _ => None,
        }
    }

    /// A boolean.
    pub fn bool(&self, key: &str) -> Option<bool> {
        match self.index.values.get(key)? {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// An array of strings, read one at a time.
    pub fn str_array(&self, key: &str) -> Option<StrArray<'a>> {
        let (len, bytes) = self.array(key, &[Element::Str])?;
        Some(StrArray { rest: bytes, len })
    }

    /// An array of `f32`.
    pub fn f32_array(&self, key: &str) -> Option<impl ExactSizeIterator<Item = f32> + use<'a>> {
        let (_, bytes) = self.array(key, &[Element::F32])?;
        Some(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)))
    }

    /// An array of `i32`, or of `u32` read as such.
    pub fn i32_array(&self, key: &str) -> Option<impl ExactSizeIterator<Item = i32> + use<'a>> {
        let (_, bytes) = self.array(key, &[Element::I32, Element::U32])?;
        Some(bytes.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)))
    }

    /// The raw bytes of a string or an array, lengths of array strings included: what a digest over it reads.
    pub(crate) fn raw(&self, key: &str) -> Option<&'a [u8]> {
        match self.index.values.get(key)? {
            Value::Str(range) | Value::Array { bytes: range, .. } => self.bytes.get(range.clone()),
            _ => None,
        }
    }

    fn array(&self, key: &str, wanted: &[Element]) -> Option<(usize, &'a [u8])> {
        match self.index.values.get(key)? {
            Value::Array { element, len, bytes } if wanted.contains(element) => {
                Some((*len, self.bytes.get(bytes.clone())?))
            }
            _ => None,
        }
    }
}

/// The strings of a metadata array, in order.
#[derive(Clone)]
pub struct StrArray<'a> {
    rest: &'a [u8],
    len: usize,
}

impl<'a> Iterator for StrArray<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        self.len = self.len.checked_sub(1)?;
        // The parser walked these lengths; they are read again with checks because the bytes may be a mapped file.
        let (len, rest) = self.rest.split_first_chunk::<8>()?;
        let (text, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
        self.rest = rest;
        std::str::from_utf8(text).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.len, Some(self.len))
    }
}

impl ExactSizeIterator for StrArray<'_> {}
