//! One record: what an example, or the removal of one, is inside a frame.

use serde::{Deserialize, Serialize};

use crate::example::{ContentKey, Example, ExampleError, MAX_EXAMPLE_TOKENS};

/// Token codec 0: each id as a little-endian base-128 varint.
const TOKENS_VARINT: u8 = 0;
/// Longest record without its tokens: variant, key, time, tag and five small numbers, each at its varint maximum.
const HEAD_LIMIT_BYTES: usize = 128;

/// A record as it is read. The variants and their fields are the format: new kinds are appended, none is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Record<'a> {
    /// Variant 0: an example.
    Example {
        key: u64,
        time_unix_s: u64,
        task: &'a str,
        prompt_len: u32,
        token_count: u32,
        /// How `tokens` are coded.
        codec: u8,
        tokens: &'a [u8],
    },
    /// Variant 1: the record of this id is removed.
    Tombstone { id: u64 },
}

/// [`Record::Example`] up to the token bytes, with their number last, as postcard writes the length of a byte slice.
#[derive(Serialize)]
enum RecordHead<'a> {
    Example {
        key: u64,
        time_unix_s: u64,
        task: &'a str,
        prompt_len: u32,
        token_count: u32,
        codec: u8,
        token_bytes: u32,
    },
}

/// Hands `example`, encoded as a plain record, to `sink` in parts, without a buffer for the whole.
pub(crate) fn encode_example<E>(example: &Example, sink: &mut impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
    let head = RecordHead::Example {
        key: example.key().0,
        time_unix_s: example.time_unix_s(),
        task: example.task(),
        prompt_len: example.prompt_len() as u32,
        token_count: example.tokens().len() as u32,
        codec: TOKENS_VARINT,
        token_bytes: example.tokens().iter().map(|&id| varint_bytes(id)).sum(),
    };
    let mut buffer = [0; HEAD_LIMIT_BYTES];
    let head = postcard::to_slice(&head, &mut buffer);
    sink(head.expect("the task tag is bounded, so a record head is too"))?;
    for &id in example.tokens() {
        let mut buffer = [0; 5];
        sink(write_varint(id, &mut buffer))?;
    }
    Ok(())
}

/// Why a record inside a sound frame could not be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The bytes are no record of a kind this version knows.
    #[error("no record of a known kind")]
    Malformed,
    /// The tokens are coded in a way this version does not know.
    #[error("token codec {codec} is not known to this version")]
    Codec {
        /// The codec byte.
        codec: u8,
    },
    /// The token bytes do not hold as many tokens as the record says.
    #[error("the token bytes do not hold {expected} tokens")]
    Tokens {
        /// Tokens the record says it has.
        expected: u32,
    },
    /// The record breaks a rule for examples.
    #[error("not a valid example")]
    Example(#[source] ExampleError),
    /// The stored key is not the hash of the stored tokens.
    #[error("the content key does not match the tokens")]
    Key,
}

impl<'a> Record<'a> {
    /// The record at the start of `bytes`, and what follows it.
    pub(crate) fn take(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        postcard::take_from_bytes(bytes).ok()
    }

    /// Decodes an example record fully.
    pub(crate) fn to_example(self) -> Result<Example, RecordError> {
        let Self::Example { key, time_unix_s, task, prompt_len, token_count, codec, tokens } = self else {
            return Err(RecordError::Malformed);
        };
        if codec != TOKENS_VARINT {
            return Err(RecordError::Codec { codec });
        }
        let wrong = RecordError::Tokens { expected: token_count };
        let count = token_count as usize;
        // Each token takes a byte at least, so nothing is allocated for tokens that are not there.
        if count > tokens.len() || count > MAX_EXAMPLE_TOKENS {
            return Err(wrong);
        }
        let mut ids = alloc::vec::Vec::with_capacity(count);
        let mut rest = tokens;
        for _ in 0..count {
            let (id, after) = read_varint(rest).ok_or(wrong)?;
            ids.push(id);
            rest = after;
        }
        if !rest.is_empty() {
            return Err(wrong);
        }
        let example =
            Example::from_tokens(ids, prompt_len as usize, task, time_unix_s).map_err(RecordError::Example)?;
        if example.key() != ContentKey(key) {
            return Err(RecordError::Key);
        }
        Ok(example)
    }
}

fn varint_bytes(value: u32) -> u32 {
    (32 - (value | 1).leading_zeros()).div_ceil(7)
}

fn write_varint(mut value: u32, buffer: &mut [u8; 5]) -> &[u8] {
    let mut len = 0;
    loop {
        let low = (value & 0x7F) as u8;
        value >>= 7;
        if value == 0 {
            buffer[len] = low;
            return &buffer[..=len];
        }
        buffer[len] = low | 0x80;
        len += 1;
    }
}

/// The varint at the start of `bytes`, and what follows it. Refuses padding and values above 32 bits, so that each
/// id has one encoding.
fn read_varint(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let mut value = 0_u32;
    for (at, &byte) in bytes.iter().take(5).enumerate() {
        let low = u32::from(byte & 0x7F);
        if at == 4 && low > 0x0F {
            return None;
        }
        value |= low << (7 * at);
        if byte & 0x80 == 0 {
            let padded = at > 0 && byte == 0;
            return (!padded).then_some((value, &bytes[at + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn encoded(example: &Example) -> Vec<u8> {
        let mut bytes = Vec::new();
        let done: Result<(), ()> = encode_example(example, &mut |part| {
            bytes.extend_from_slice(part);
            Ok(())
        });
        done.unwrap();
        bytes
    }

    #[test]
    fn an_example_is_the_postcard_of_its_record() {
        let ids = [0, 1, 127, 128, 16_383, 16_384, 2_097_152, u32::MAX];
        let example = Example::new(&ids[..3], &ids[3..], 2, "math", 1_700_000_000).unwrap();
        let bytes = encoded(&example);
        let (record, rest) = Record::take(&bytes).unwrap();
        assert!(rest.is_empty());
        assert_eq!(record.to_example().unwrap(), example);
        let mut buffer = [0; 256];
        assert_eq!(postcard::to_slice(&record, &mut buffer).unwrap(), bytes);
    }

    #[test]
    fn a_tombstone_takes_a_few_bytes() {
        let bytes = [1, 0xAC, 0x02];
        let (record, _) = Record::take(&bytes).unwrap();
        assert_eq!(record, Record::Tombstone { id: 300 });
        assert_eq!(record.to_example(), Err(RecordError::Malformed));
    }

    #[test]
    fn the_largest_head_fits_its_buffer() {
        let task = "t".repeat(crate::example::MAX_TASK_BYTES);
        let answer = alloc::vec![u32::MAX; MAX_EXAMPLE_TOKENS - 2];
        let example = Example::new(&[1], &answer, 0, &task, u64::MAX).unwrap();
        assert!(encoded(&example).len() < 5 * MAX_EXAMPLE_TOKENS + 128);
    }

    #[test]
    fn a_token_has_one_encoding_and_damage_is_an_error() {
        assert_eq!(read_varint(&[0x80, 0x00]), None, "padded");
        assert_eq!(read_varint(&[0xFF, 0xFF, 0xFF, 0xFF, 0x1F]), None, "33 bits");
        assert_eq!(read_varint(&[0xFF; 9]), None, "endless");
        assert_eq!(read_varint(&[]), None);
        let example = Example::new(&[1, 2], &[3], 4, "t", 0).unwrap();
        let bytes = encoded(&example);
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                let decoded = Record::take(&flipped)
                    .filter(|(_, rest)| rest.is_empty())
                    .and_then(|(record, _)| record.to_example().ok());
                // Only task and time are outside the key; a frame's CRC covers those.
                if let Some(decoded) = decoded {
                    assert_eq!(decoded.tokens(), example.tokens());
                }
            }
        }
    }
}
