//! Text becomes token ids, and ids become text again, by the model file's own vocabulary.
//!
//! Two families: byte-level BPE with a list of merges (GPT-2, SmolLM, Llama 3, Qwen), and SentencePiece BPE, where scores
//! say what is merged first (Llama 2, TinyLlama). The ids are those of llama.cpp for the same file. Nothing here knows
//! chats: markers of a chat template are read as special tokens only where the caller says so.

mod byte_level;
mod error;
mod sentence_piece;
mod vocabulary;

#[cfg(test)]
mod data_tests;
#[cfg(test)]
mod tests;

use std::fmt;

use tokenizers::Model as _;
use tokenizers::models::bpe::BPE;

use byte_level::PreTokenizer;
pub use error::TokenizerError;
use vocabulary::{Kind, Source};

use crate::weights::Gguf;

/// Whether text may contain special tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParseSpecial {
    /// The text of a control token becomes that token: for the output of a chat template.
    Yes,
    /// It is text like any other: for what a person wrote.
    No,
}

/// A vocabulary, ready to encode and decode.
pub struct Tokenizer {
    bpe: BPE,
    family: Family,
    kinds: Vec<Kind>,
    /// Pieces that are never split, longest first.
    whole: Vec<(String, u32)>,
    end_of_generation: Vec<u32>,
    special: SpecialIds,
    digest: [u8; 32],
}

enum Family {
    ByteLevel(PreTokenizer),
    SentencePiece { add_space_prefix: bool },
}

/// What the file says about single ids.
#[derive(Debug, Clone, Default)]
struct SpecialIds {
    bos: Option<u32>,
    eos: Option<u32>,
    eot: Option<u32>,
    adds_bos: bool,
    adds_eos: bool,
}

/// Control tokens that end an answer in the chat formats in use, by their text.
const END_OF_TURN: &[&str] = &[
    "<|im_end|>",
    "<|eot_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<end_of_utterance>",
];
/// Control tokens that end a document or a message, by their text.
const END_OF_TEXT: &[&str] = &["<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "<EOT>"];

/// A stretch of text, or a token found in it whole.
enum Fragment<'t> {
    Text(&'t str),
    Token(u32),
}

impl Tokenizer {
    /// Builds the tokenizer of a model file.
    ///
    /// # Errors
    /// [`TokenizerError`] says what is missing, unknown or inconsistent.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, TokenizerError> {
        Self::from_source(&Source::from_gguf(gguf)?)
    }

    fn from_source(source: &Source) -> Result<Self, TokenizerError> {
        let ids = source.check()?;
        let (bpe, family) = match source.model {
            "gpt2" => {
                let pre = PreTokenizer::new(source.pre, &ids)?;
                (
                    byte_level::bpe(source, ids, pre.ignore_merges())?,
                    Family::ByteLevel(pre),
                )
            }
            "llama" => {
                let add_space_prefix = source.add_space_prefix.unwrap_or(true);
                (
                    sentence_piece::bpe(source, ids)?,
                    Family::SentencePiece { add_space_prefix },
                )
            }
            other => {
                return Err(TokenizerError::UnknownModel {
                    found: other.to_owned(),
                });
            }
        };
        let mut whole: Vec<(String, u32)> = source
            .with_kinds(&[Kind::Control, Kind::UserDefined, Kind::Unknown])
            .map(|(id, piece)| (piece.to_owned(), id))
            .collect();
        whole.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then(a.1.cmp(&b.1)));
        let special = special_ids(source, &whole, &family);
        Ok(Self {
            bpe,
            family,
            end_of_generation: end_of_generation(source, &whole, &special),
            kinds: source.kinds.clone(),
            whole,
            special,
            digest: source.digest(),
        })
    }

    /// Token ids of a text. Nothing is added in front or behind: see [`adds_bos`](Self::adds_bos).
    ///
    /// Characters that the vocabulary cannot spell, not even by bytes, become its unknown token if it is a SentencePiece
    /// vocabulary, and are left out otherwise, as llama.cpp does.
    pub fn encode(&self, text: &str, special: ParseSpecial) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut after_token = true;
        for fragment in self.fragments(text, special) {
            match fragment {
                Fragment::Token(id) => {
                    ids.push(id);
                    after_token = true;
                }
                Fragment::Text(text) => {
                    match &self.family {
                        Family::ByteLevel(pre) => {
                            pre.words(text, &mut |word| self.encode_word(word, &mut ids))
                        }
                        Family::SentencePiece { add_space_prefix } => {
                            let prefix = *add_space_prefix && after_token;
                            self.encode_word(&sentence_piece::escape(text, prefix), &mut ids);
                        }
                    }
                    after_token = false;
                }
            }
        }
        ids
    }

    /// The text of some ids; bytes that are not UTF-8 show as U+FFFD. See [`decode_bytes`](Self::decode_bytes).
    pub fn decode(&self, ids: &[u32]) -> String {
        String::from_utf8(self.decode_bytes(ids))
            .unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
    }

    /// The bytes of some ids, the inverse of [`encode`](Self::encode). Control tokens give their own text. The space that
    /// a SentencePiece vocabulary puts in front of a text is taken away again.
    pub fn decode_bytes(&self, ids: &[u32]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut after_token = true;
        for &id in ids {
            let piece = self.token_bytes(id);
            let prefixed = matches!(
                self.family,
                Family::SentencePiece {
                    add_space_prefix: true
                }
            ) && after_token;
            after_token = self.is_special(id);
            bytes.extend_from_slice(match piece.split_first() {
                Some((b' ', rest)) if prefixed && !after_token => rest,
                _ => &piece,
            });
        }
        bytes
    }

    /// The bytes that one id adds to a text, for streams: they need not be whole characters. Empty for an id that the
    /// vocabulary does not have.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let (Some(piece), Some(kind)) = (self.bpe.id_to_token(id), self.kinds.get(id as usize))
        else {
            return Vec::new();
        };
        match (kind, &self.family) {
            (Kind::Control | Kind::UserDefined | Kind::Unknown, _) => piece.into_bytes(),
            (_, Family::ByteLevel(_)) => byte_level::unescape(&piece),
            (Kind::Byte, _) => {
                sentence_piece::byte(&piece).map_or_else(Vec::new, |byte| vec![byte])
            }
            _ => sentence_piece::unescape(&piece),
        }
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.special.bos
    }

    /// The token that ends a text, and in many chat models an answer.
    pub fn eos(&self) -> Option<u32> {
        self.special.eos
    }

    /// The token that ends an answer in a chat, where the vocabulary has one.
    pub fn eot(&self) -> Option<u32> {
        self.special.eot
    }

    /// Whether the model expects [`bos`](Self::bos) in front of a text without a template.
    pub fn adds_bos(&self) -> bool {
        self.special.adds_bos
    }

    /// Whether the model expects [`eos`](Self::eos) behind a text without a template.
    pub fn adds_eos(&self) -> bool {
        self.special.adds_eos
    }

    /// Whether generation stops at this token.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.end_of_generation.contains(&id)
    }

    /// Whether this is a control token, which no ordinary text encodes to.
    pub fn is_special(&self, id: u32) -> bool {
        matches!(
            self.kinds.get(id as usize),
            Some(Kind::Control | Kind::Unknown)
        )
    }

    /// Number of ids: all are below it.
    pub fn vocab_size(&self) -> usize {
        self.kinds.len()
    }

    /// SHA-256 over everything that decides which ids a text becomes. Token ids stored elsewhere keep their meaning as
    /// long as this stays the same.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    fn encode_word(&self, word: &str, ids: &mut Vec<u32>) {
        // The model fails only on an unknown token that its vocabulary lacks, and that is checked when it is built.
        let tokens = self
            .bpe
            .tokenize(word)
            .expect("a checked vocabulary encodes any text");
        ids.extend(tokens.iter().map(|token| token.id));
    }

    /// Finds the pieces that are never split, longest pieces first whatever their place, as llama.cpp does. User-defined
    /// ones are text of their own and always found; control tokens only on demand.
    fn fragments<'t>(&self, text: &'t str, special: ParseSpecial) -> Vec<Fragment<'t>> {
        let mut fragments = vec![Fragment::Text(text)];
        for (piece, id) in &self.whole {
            if (special == ParseSpecial::No && self.is_special(*id))
                || !text.contains(piece.as_str())
            {
                continue;
            }
            fragments = fragments
                .into_iter()
                .flat_map(|fragment| match fragment {
                    Fragment::Text(text) => split_at_piece(text, piece, *id),
                    token => vec![token],
                })
                .collect();
        }
        fragments.retain(|fragment| !matches!(fragment, Fragment::Text("")));
        fragments
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            Family::ByteLevel(_) => "byte-level BPE",
            Family::SentencePiece { .. } => "SentencePiece BPE",
        };
        write!(f, "Tokenizer({family}, {} pieces)", self.vocab_size())
    }
}

fn split_at_piece<'t>(text: &'t str, piece: &str, id: u32) -> Vec<Fragment<'t>> {
    let mut fragments = Vec::new();
    for (number, between) in text.split(piece).enumerate() {
        if number > 0 {
            fragments.push(Fragment::Token(id));
        }
        fragments.push(Fragment::Text(between));
    }
    fragments
}

fn special_ids(source: &Source, whole: &[(String, u32)], family: &Family) -> SpecialIds {
    let by_text = |texts: &[&str]| {
        texts.iter().find_map(|text| {
            whole
                .iter()
                .find(|(piece, _)| piece == text)
                .map(|(_, id)| *id)
        })
    };
    SpecialIds {
        bos: source.bos,
        eos: source.eos,
        eot: source.eot.or_else(|| by_text(END_OF_TURN)),
        // Absent, llama.cpp adds it for SentencePiece and for Llama 3.
        adds_bos: source.add_bos.unwrap_or(match family {
            Family::ByteLevel(pre) => pre.adds_bos(),
            Family::SentencePiece { .. } => true,
        }),
        adds_eos: source.add_eos.unwrap_or(false),
    }
}

fn end_of_generation(source: &Source, whole: &[(String, u32)], special: &SpecialIds) -> Vec<u32> {
    let named = whole.iter().filter(|(piece, _)| {
        END_OF_TURN.contains(&piece.as_str()) || END_OF_TEXT.contains(&piece.as_str())
    });
    let mut ids: Vec<u32> = named.map(|(_, id)| *id).collect();
    ids.extend([special.eos, special.eot, source.eom].into_iter().flatten());
    ids.sort_unstable();
    ids.dedup();
    ids
}
