//! What can be wrong with a vocabulary.

use thiserror::Error;

/// A model file's vocabulary cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A metadata key is absent, or has another type.
    #[error("vocabulary: metadata `{key}` is missing or is not {expected}")]
    MissingKey {
        /// The key.
        key: &'static str,
        /// The type that was looked for.
        expected: &'static str,
    },
    /// `tokenizer.ggml.model` names a kind of tokenizer that is not built here.
    #[error("tokenizer model `{found}` is not supported, only gpt2 and llama")]
    UnknownModel {
        /// The name found.
        found: String,
    },
    /// `tokenizer.ggml.pre` names a way to split text into words that is not built here.
    #[error("pre-tokenizer `{found}` is not supported, only {}", known.join(", "))]
    UnknownPreTokenizer {
        /// The name found; empty if the key is absent.
        found: String,
        /// The names that would be accepted.
        known: Vec<&'static str>,
    },
    /// A vocabulary without pieces.
    #[error("the vocabulary is empty")]
    EmptyVocabulary,
    /// A piece without text.
    #[error("token {id} is empty")]
    EmptyPiece {
        /// Its id.
        id: u32,
    },
    /// Two ids with the same text.
    #[error("tokens {first} and {second} are both `{piece}`")]
    DuplicatePiece {
        /// The text.
        piece: String,
        /// The lower id.
        first: u32,
        /// The higher id.
        second: u32,
    },
    /// A list that must have one value per piece.
    #[error("`{key}` has {found} values for {expected} tokens")]
    Length {
        /// The metadata key.
        key: &'static str,
        /// Number of pieces.
        expected: usize,
        /// Length of the list.
        found: usize,
    },
    /// A token type that GGUF does not define.
    #[error("token {id} has type {found}, which is not defined")]
    Kind {
        /// The token.
        id: u32,
        /// The type number.
        found: i32,
    },
    /// A byte token that is not written `<0xHH>`.
    #[error("token {id} is a byte token but reads `{piece}`")]
    BytePiece {
        /// The token.
        id: u32,
        /// Its text.
        piece: String,
    },
    /// A score that orders nothing.
    #[error("token {id} has a score that is not finite")]
    Score {
        /// The token.
        id: u32,
    },
    /// A merge that is not two pieces with a blank between them.
    #[error("merge {rank} is `{merge}`, not two pieces")]
    Merge {
        /// Its place in the list, from 0.
        rank: usize,
        /// Its text.
        merge: String,
    },
    /// A merge of or into a piece that the vocabulary does not have.
    #[error("merge {rank} needs `{piece}`, which is not in the vocabulary")]
    MergePiece {
        /// Its place in the list, from 0.
        rank: usize,
        /// The piece.
        piece: String,
    },
    /// A special id outside the vocabulary.
    #[error("`{key}` is {id}, but there are only {vocab_size} tokens")]
    IdOutOfRange {
        /// The metadata key.
        key: &'static str,
        /// The id.
        id: u64,
        /// Number of pieces.
        vocab_size: usize,
    },
}
