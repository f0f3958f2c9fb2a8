//! The vocabulary as the file gives it, and the checks it must pass before anything is built from it.

use sha2::{Digest, Sha256};
use tokenizers::models::bpe::Vocab;

use super::TokenizerError;
use crate::weights::{Gguf, Metadata};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const KINDS: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";
/// Written by some converters for "none".
const NO_ID: u64 = u32::MAX as u64;

/// What a piece is for: GGUF's token types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

impl Kind {
    fn new(number: i32, id: usize) -> Result<Self, TokenizerError> {
        Ok(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            found => {
                return Err(TokenizerError::Kind {
                    id: id as u32,
                    found,
                });
            }
        })
    }
}

/// A vocabulary, borrowed from wherever it is stored.
#[derive(Clone, Default)]
pub(super) struct Source<'a> {
    pub(super) model: &'a str,
    pub(super) pre: &'a str,
    pub(super) pieces: Vec<&'a str>,
    pub(super) kinds: Vec<Kind>,
    /// Empty for byte-level vocabularies.
    pub(super) scores: Vec<f32>,
    /// Empty for SentencePiece vocabularies.
    pub(super) merges: Vec<&'a str>,
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) eot: Option<u32>,
    pub(super) eom: Option<u32>,
    pub(super) unknown: Option<u32>,
    pub(super) add_bos: Option<bool>,
    pub(super) add_eos: Option<bool>,
    pub(super) add_space_prefix: Option<bool>,
}

impl<'a> Source<'a> {
    pub(super) fn from_gguf(gguf: &'a Gguf) -> Result<Self, TokenizerError> {
        let metadata = gguf.metadata();
        let missing = |key, expected| TokenizerError::MissingKey { key, expected };
        let pieces: Vec<&str> = metadata
            .str_array(TOKENS)
            .ok_or_else(|| missing(TOKENS, "an array of strings"))?
            .collect();
        let kinds = match metadata.i32_array(KINDS) {
            Some(kinds) => kinds
                .enumerate()
                .map(|(id, number)| Kind::new(number, id))
                .collect::<Result<_, _>>()?,
            None => vec![Kind::Normal; pieces.len()],
        };
        let id = |key| special_id(&metadata, key, pieces.len());
        Ok(Self {
            model: metadata
                .str(MODEL)
                .ok_or_else(|| missing(MODEL, "a string"))?,
            pre: metadata.str(PRE).unwrap_or(""),
            kinds,
            scores: metadata
                .f32_array(SCORES)
                .map(Iterator::collect)
                .unwrap_or_default(),
            merges: metadata
                .str_array(MERGES)
                .map(Iterator::collect)
                .unwrap_or_default(),
            bos: id("tokenizer.ggml.bos_token_id")?,
            eos: id("tokenizer.ggml.eos_token_id")?,
            eot: id("tokenizer.ggml.eot_token_id")?,
            eom: id("tokenizer.ggml.eom_token_id")?,
            unknown: id("tokenizer.ggml.unknown_token_id")?,
            add_bos: metadata.bool("tokenizer.ggml.add_bos_token"),
            add_eos: metadata.bool("tokenizer.ggml.add_eos_token"),
            add_space_prefix: metadata.bool("tokenizer.ggml.add_space_prefix"),
            pieces,
        })
    }

    /// Checks what both families rely on, and gives each piece's id.
    pub(super) fn check(&self) -> Result<Vocab, TokenizerError> {
        let expected = self.pieces.len();
        if expected == 0 {
            return Err(TokenizerError::EmptyVocabulary);
        }
        if self.kinds.len() != expected {
            return Err(TokenizerError::Length {
                key: KINDS,
                expected,
                found: self.kinds.len(),
            });
        }
        let mut ids = Vocab::with_capacity(expected);
        for (id, piece) in (0..).zip(&self.pieces) {
            if piece.is_empty() {
                return Err(TokenizerError::EmptyPiece { id });
            }
            if let Some(first) = ids.insert((*piece).to_owned(), id) {
                return Err(TokenizerError::DuplicatePiece {
                    piece: (*piece).to_owned(),
                    first,
                    second: id,
                });
            }
        }
        Ok(ids)
    }

    /// Scores, one per piece.
    pub(super) fn scores(&self) -> Result<&[f32], TokenizerError> {
        let (expected, found) = (self.pieces.len(), self.scores.len());
        if found != expected {
            return Err(TokenizerError::Length {
                key: SCORES,
                expected,
                found,
            });
        }
        match self.scores.iter().position(|score| !score.is_finite()) {
            Some(id) => Err(TokenizerError::Score { id: id as u32 }),
            None => Ok(&self.scores),
        }
    }

    /// Ids and texts of the pieces of some kinds, in the order of their ids.
    pub(super) fn with_kinds(&self, kinds: &[Kind]) -> impl Iterator<Item = (u32, &'a str)> {
        let of_kind = (0..)
            .zip(&self.pieces)
            .zip(&self.kinds)
            .filter(|(_, kind)| kinds.contains(kind));
        of_kind.map(|((id, piece), _)| (id, *piece))
    }

    /// SHA-256 over everything that decides which ids a text becomes, each part with its length.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut text = |text: &str| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        text("mynah vocabulary 1");
        text(self.model);
        text(self.pre);
        self.pieces.iter().for_each(|piece| text(piece));
        text("merges");
        self.merges.iter().for_each(|merge| text(merge));
        text("kinds and scores");
        hash.update(
            self.kinds
                .iter()
                .map(|kind| *kind as u8)
                .collect::<Vec<_>>(),
        );
        self.scores
            .iter()
            .for_each(|score| hash.update(score.to_le_bytes()));
        hash.update([self.add_space_prefix.unwrap_or(true).into()]);
        hash.update(self.unknown.unwrap_or(u32::MAX).to_le_bytes());
        hash.finalize().into()
    }
}

fn special_id(
    metadata: &Metadata,
    key: &'static str,
    vocab_size: usize,
) -> Result<Option<u32>, TokenizerError> {
    match metadata.u64(key) {
        None | Some(NO_ID) => Ok(None),
        Some(id) if id < vocab_size as u64 => Ok(Some(id as u32)),
        Some(id) => Err(TokenizerError::IdOutOfRange {
            key,
            id,
            vocab_size,
        }),
    }
}
