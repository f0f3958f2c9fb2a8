//! Byte-level BPE: text is split into words by fixed patterns, every byte is written as a printable character, and pairs
//! are merged in the order of the file's list.
//!
//! The patterns are those of llama.cpp and of the models' own tokenizers. No pattern is ever taken from a file.

use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::utils::SysRegex;

use super::TokenizerError;
use super::vocabulary::Source;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DIGIT: &str = r"\p{N}";

/// A way to split text into words, by the names it has in `tokenizer.ggml.pre`.
struct Splitting {
    names: &'static [&'static str],
    /// Applied one after the other, each inside the words of the one before.
    patterns: &'static [&'static str],
    /// A word that is a piece is taken whole, whatever the merges say.
    ignore_merges: bool,
    adds_bos: bool,
}

const SPLITTINGS: &[Splitting] = &[
    Splitting {
        names: &["gpt-2"],
        patterns: &[GPT2],
        ignore_merges: false,
        adds_bos: false,
    },
    Splitting {
        names: &["smollm"],
        patterns: &[DIGIT, GPT2],
        ignore_merges: false,
        adds_bos: false,
    },
    Splitting {
        names: &["llama-bpe", "llama3"],
        patterns: &[LLAMA3],
        ignore_merges: true,
        adds_bos: true,
    },
    Splitting {
        names: &["qwen2"],
        patterns: &[QWEN2],
        ignore_merges: false,
        adds_bos: false,
    },
];

/// Splits text into words and writes their bytes as characters.
pub(super) struct PreTokenizer {
    splitting: &'static Splitting,
    patterns: Vec<SysRegex>,
    /// Whether the vocabulary has the character of a byte. Some lack those that no training text had.
    spelled: [bool; 256],
}

impl PreTokenizer {
    pub(super) fn new(name: &str, ids: &Vocab) -> Result<Self, TokenizerError> {
        let Some(splitting) = SPLITTINGS
            .iter()
            .find(|splitting| splitting.names.contains(&name))
        else {
            let known = SPLITTINGS
                .iter()
                .flat_map(|splitting| splitting.names)
                .copied()
                .collect();
            return Err(TokenizerError::UnknownPreTokenizer {
                found: name.to_owned(),
                known,
            });
        };
        let compile = |pattern: &&str| SysRegex::new(pattern).expect("our own patterns compile");
        Ok(Self {
            splitting,
            patterns: splitting.patterns.iter().map(compile).collect(),
            spelled: std::array::from_fn(|byte| {
                ids.contains_key(byte_char(byte as u8).encode_utf8(&mut [0; 4]) as &str)
            }),
        })
    }

    pub(super) fn ignore_merges(&self) -> bool {
        self.splitting.ignore_merges
    }

    pub(super) fn adds_bos(&self) -> bool {
        self.splitting.adds_bos
    }

    /// Calls `word` with each word of the text, its bytes written as characters. A byte that cannot be spelled is left
    /// out and parts the word: what stands on its two sides is not merged.
    pub(super) fn words(&self, text: &str, word: &mut impl FnMut(&str)) {
        let mut escaped = String::new();
        split(&self.patterns, text, &mut |part| {
            for run in part
                .as_bytes()
                .split(|byte| !self.spelled[usize::from(*byte)])
            {
                escaped.clear();
                escaped.extend(run.iter().copied().map(byte_char));
                word(&escaped);
            }
        });
    }
}

/// Cuts `text` at the matches of the first pattern; what matches and what lies between goes to the next pattern.
fn split(patterns: &[SysRegex], text: &str, word: &mut dyn FnMut(&str)) {
    if text.is_empty() {
        return;
    }
    let Some((pattern, rest)) = patterns.split_first() else {
        return word(text);
    };
    let mut end_of_last = 0;
    // The search gives up on a run of more than about a million blanks; what is left is then one long word, which
    // still encodes to the same bytes.
    for (start, end) in pattern.find_iter(text) {
        split(rest, &text[end_of_last..start], word);
        split(rest, &text[start..end], word);
        end_of_last = end;
    }
    split(rest, &text[end_of_last..], word);
}

/// The merges of the file over its vocabulary.
pub(super) fn bpe(source: &Source, ids: Vocab, ignore_merges: bool) -> Result<BPE, TokenizerError> {
    let mut merges = Merges::with_capacity(source.merges.len());
    let mut joined = String::new();
    for (rank, merge) in source.merges.iter().enumerate() {
        let parts = merge
            .split_once(' ')
            .filter(|(left, right)| !left.is_empty() && !right.is_empty());
        let Some((left, right)) = parts else {
            return Err(TokenizerError::Merge {
                rank,
                merge: (*merge).to_owned(),
            });
        };
        joined.clear();
        joined.extend([left, right]);
        // Checked here with an error of ours: the builder would panic on a product longer than any piece.
        if let Some(piece) = [left, right, &joined]
            .into_iter()
            .find(|piece| !ids.contains_key(*piece))
        {
            return Err(TokenizerError::MergePiece {
                rank,
                piece: piece.to_owned(),
            });
        }
        merges.push((left.to_owned(), right.to_owned()));
    }
    Ok(build(
        BPE::builder()
            .vocab_and_merges(ids, merges)
            .ignore_merges(ignore_merges),
    ))
}

/// Builds without the cache: it lives in thread-locals that would outlive the tokenizer.
pub(super) fn build(builder: tokenizers::models::bpe::BpeBuilder) -> BPE {
    builder
        .cache_capacity(0)
        .build()
        .expect("every merge was checked against the vocabulary")
}

/// Printable Latin-1 stands for itself, the other 68 bytes for U+0100 and up, in order (GPT-2).
fn byte_char(byte: u8) -> char {
    char::from_u32(match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => byte.into(),
        0..=b' ' => 0x100 + u32::from(byte),
        0x7f..=0xa0 => 0x100 + u32::from(byte) - 0x7f + 33,
        0xad => 0x100 + 67,
    })
    .unwrap_or_default() // all of these are characters
}

fn char_byte(c: char) -> Option<u8> {
    Some(match u32::from(c) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => code as u8,
        code @ 0x100..=0x120 => (code - 0x100) as u8,
        code @ 0x121..=0x142 => (code - 0x100 - 33) as u8 + 0x7f,
        0x143 => 0xad,
        _ => return None,
    })
}

/// The bytes of a piece. A character that stands for no byte is itself: some vocabularies have such pieces.
pub(super) fn unescape(piece: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(piece.len());
    for c in piece.chars() {
        match char_byte(c) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_character_of_its_own_and_comes_back() {
        let chars: std::collections::BTreeSet<char> = (0..=255).map(byte_char).collect();
        assert_eq!(chars.len(), 256);
        assert!((0..=255).all(|byte| char_byte(byte_char(byte)) == Some(byte)));
        assert!(chars.iter().all(|c| !c.is_whitespace() && !c.is_control()));
        assert_eq!((byte_char(b' '), byte_char(b'\n')), ('Ġ', 'Ċ'));
    }

    fn all_bytes() -> Vocab {
        (0..=255)
            .map(|byte| (byte_char(byte).to_string(), byte.into()))
            .collect()
    }

    #[track_caller]
    fn check_words(pre: &str, text: &str, expected: &[&str]) {
        let mut words = Vec::new();
        PreTokenizer::new(pre, &all_bytes())
            .unwrap()
            .words(text, &mut |word| {
                words.push(String::from_utf8(unescape(word)).unwrap())
            });
        assert_eq!(words, expected, "{pre}");
    }

    #[test]
    fn words_are_cut_as_each_family_cuts_them() {
        check_words(
            "gpt-2",
            "It's 2024,  ok",
            &["It", "'s", " 2024", ",", " ", " ok"],
        );
        check_words("smollm", "x 42", &["x", " ", "4", "2"]);
        check_words(
            "llama-bpe",
            "1234 I'M\r\n\n",
            &["123", "4", " I", "'M", "\r\n\n"],
        );
        check_words("qwen2", "12\n(ok)", &["1", "2", "\n", "(ok", ")"]);
        check_words("gpt-2", "", &[]);
    }

    #[test]
    fn a_very_long_run_of_blanks_loses_nothing() {
        let text = format!("a{}b", " ".repeat(3_000_000));
        let mut len = 0;
        PreTokenizer::new("gpt-2", &all_bytes())
            .unwrap()
            .words(&text, &mut |word| len += word.chars().count());
        assert_eq!(len, text.len());
    }
}
