//! One training item: token ids, which of them are the answer, its task and its time.
//!
//! An [`Example`] is checked once, when it is built, and trusted afterwards. It knows no text and no model: the
//! tokenizer runs before it is made. The same item on flash is a *record* (see [`crate::replay`]).

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

/// Most tokens one example may hold, end token included. A record of this size fits the 64 KiB segments of the
/// file medium even when every id takes five bytes.
pub const MAX_EXAMPLE_TOKENS: usize = 4096;

/// Longest task tag in bytes of UTF-8.
pub const MAX_TASK_BYTES: usize = 64;

/// The number of a record in its log: assigned once by the log that stores the example, increasing, never reused
/// for another acknowledged record. The first is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExampleId(pub u64);

impl fmt::Display for ExampleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A 64-bit hash of an example's prompt and answer tokens, to recognize an example that is already stored.
///
/// Task and time are not part of it. It guards against repetition, not against an adversary: two different examples
/// share a key with probability about `n² / 2^65` among `n` stored ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContentKey(pub u64);

impl ContentKey {
    /// Hashes `tokens`, of which the first `prompt_len` are the prompt.
    ///
    /// FNV-1a over the little-endian bytes of `prompt_len` and of each id, then the finalizer of SplitMix64. Keys are
    /// stored on flash, so this function never changes.
    ///
    /// # Source
    /// Fowler, Noll, Vo, *The FNV Non-Cryptographic Hash Algorithm* (IETF draft); Steele, Lea, Flood, *Fast Splittable
    /// Pseudorandom Number Generators* (OOPSLA 2014) for the finalizer.
    pub fn of(tokens: &[u32], prompt_len: u32) -> Self {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for value in core::iter::once(&prompt_len).chain(tokens) {
            for byte in value.to_le_bytes() {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        }
        Self(mix(hash))
    }
}

/// The finalizer of SplitMix64: a bijection on 64 bits in which each input bit moves about half of the output bits.
pub(crate) fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// Why a training item was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExampleError {
    /// No token stands before the answer, so nothing can predict its first token.
    #[error("the prompt is empty; the first answer token needs at least one token before it")]
    EmptyPrompt,
    /// Nothing to learn.
    #[error("the answer is empty")]
    EmptyAnswer,
    /// Prompt, answer and end token together are too long.
    #[error("the example has {tokens} tokens, the limit is {limit}; shorten or split it")]
    TooLong {
        /// Tokens of prompt, answer and end token together.
        tokens: usize,
        /// [`MAX_EXAMPLE_TOKENS`].
        limit: usize,
    },
    /// The task tag is empty.
    #[error("the task tag is empty")]
    EmptyTask,
    /// The task tag is too long.
    #[error("the task tag has {bytes} bytes, the limit is {limit}")]
    TaskTooLong {
        /// Length of the tag in bytes of UTF-8.
        bytes: usize,
        /// [`MAX_TASK_BYTES`].
        limit: usize,
    },
    /// The task tag holds a control character, which would garble lists and logs.
    #[error("the task tag holds a control character at byte {at}")]
    TaskControl {
        /// Byte offset of the character.
        at: usize,
    },
}

/// One training item: prompt tokens, then answer tokens, then the end token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    tokens: Vec<u32>,
    prompt_len: u32,
    task: String,
    key: ContentKey,
    time_unix_s: u64,
}

impl Example {
    /// Joins `prompt`, `answer` and `end_token` into one example of `task`.
    ///
    /// `time_unix_s` is when the interaction happened, in seconds since 1970 (UTC).
    ///
    /// # Errors
    /// Each limit of [`ExampleError`]: prompt and answer must not be empty, all tokens together at most
    /// [`MAX_EXAMPLE_TOKENS`], the tag 1 to [`MAX_TASK_BYTES`] bytes without control characters.
    pub fn new(
        prompt: &[u32],
        answer: &[u32],
        end_token: u32,
        task: &str,
        time_unix_s: u64,
    ) -> Result<Self, ExampleError> {
        if answer.is_empty() {
            return Err(ExampleError::EmptyAnswer);
        }
        check_len(prompt.len().saturating_add(answer.len()).saturating_add(1))?;
        let mut tokens = Vec::with_capacity(prompt.len() + answer.len() + 1);
        tokens.extend_from_slice(prompt);
        tokens.extend_from_slice(answer);
        tokens.push(end_token);
        Self::from_tokens(tokens, prompt.len(), task, time_unix_s)
    }

    /// Takes tokens that are already joined: `prompt_len` prompt tokens, the answer, the end token.
    ///
    /// # Errors
    /// As [`Example::new`].
    pub fn from_tokens(
        tokens: Vec<u32>,
        prompt_len: usize,
        task: &str,
        time_unix_s: u64,
    ) -> Result<Self, ExampleError> {
        check_len(tokens.len())?;
        check_task(task)?;
        if prompt_len == 0 {
            return Err(ExampleError::EmptyPrompt);
        }
        // One answer token and the end token at least.
        if prompt_len.saturating_add(2) > tokens.len() {
            return Err(ExampleError::EmptyAnswer);
        }
        let prompt_len = prompt_len as u32;
        Ok(Self { key: ContentKey::of(&tokens, prompt_len), tokens, prompt_len, task: String::from(task), time_unix_s })
    }

    /// Prompt, answer and end token.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// How many of [`Example::tokens`] are the prompt; everything from here on is scored by the loss.
    pub fn prompt_len(&self) -> usize {
        self.prompt_len as usize
    }

    /// The prompt tokens.
    pub fn prompt(&self) -> &[u32] {
        &self.tokens[..self.prompt_len()]
    }

    /// The answer tokens and the end token.
    pub fn answer(&self) -> &[u32] {
        &self.tokens[self.prompt_len()..]
    }

    /// The tag of the task this example belongs to.
    pub fn task(&self) -> &str {
        &self.task
    }

    /// Hash of prompt and answer, for de-duplication.
    pub fn key(&self) -> ContentKey {
        self.key
    }

    /// When the interaction happened, in seconds since 1970 (UTC).
    pub fn time_unix_s(&self) -> u64 {
        self.time_unix_s
    }
}

fn check_len(tokens: usize) -> Result<(), ExampleError> {
    if tokens > MAX_EXAMPLE_TOKENS {
        return Err(ExampleError::TooLong { tokens, limit: MAX_EXAMPLE_TOKENS });
    }
    Ok(())
}

pub(crate) fn check_task(task: &str) -> Result<(), ExampleError> {
    if task.is_empty() {
        return Err(ExampleError::EmptyTask);
    }
    if task.len() > MAX_TASK_BYTES {
        return Err(ExampleError::TaskTooLong { bytes: task.len(), limit: MAX_TASK_BYTES });
    }
    match task.char_indices().find(|(_, c)| c.is_control()) {
        Some((at, _)) => Err(ExampleError::TaskControl { at }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn tokens_are_prompt_answer_end() {
        let example = Example::new(&[1, 2], &[3, 4], 9, "math", 77).unwrap();
        assert_eq!(example.tokens(), [1, 2, 3, 4, 9]);
        assert_eq!(example.prompt(), [1, 2]);
        assert_eq!(example.answer(), [3, 4, 9]);
        assert_eq!((example.task(), example.time_unix_s()), ("math", 77));
    }

    #[test]
    fn each_limit_is_checked() {
        let refused =
            |prompt: &[u32], answer: &[u32], task: &str| Example::new(prompt, answer, 0, task, 0).unwrap_err();
        assert_eq!(refused(&[], &[1], "t"), ExampleError::EmptyPrompt);
        assert_eq!(refused(&[1], &[], "t"), ExampleError::EmptyAnswer);
        assert_eq!(refused(&[1], &[1], ""), ExampleError::EmptyTask);
        assert_eq!(refused(&[1], &[1], "a\nb"), ExampleError::TaskControl { at: 1 });
        assert_eq!(refused(&[1], &[1], &"x".repeat(65)), ExampleError::TaskTooLong { bytes: 65, limit: 64 });
        let longest = vec![5; MAX_EXAMPLE_TOKENS - 2];
        assert!(Example::new(&[1], &longest, 0, "t", 0).is_ok());
        assert_eq!(refused(&[1, 1], &longest, "t"), ExampleError::TooLong { tokens: 4097, limit: 4096 });
        // An end token alone is no answer.
        assert_eq!(Example::from_tokens(vec![1, 2], 1, "t", 0).unwrap_err(), ExampleError::EmptyAnswer);
    }

    #[test]
    fn the_key_sees_content_and_its_split_but_not_task_or_time() {
        let key =
            |prompt: &[u32], answer: &[u32], task, time| Example::new(prompt, answer, 0, task, time).unwrap().key();
        let first = key(&[1, 2], &[3], "a", 1);
        assert_eq!(first, key(&[1, 2], &[3], "b", 2));
        assert_ne!(first, key(&[1], &[2, 3], "a", 1));
        assert_ne!(first, key(&[1, 2], &[4], "a", 1));
        // Stored on flash: this number must never change.
        assert_eq!(first, ContentKey(5258564497147269240));
    }
}
