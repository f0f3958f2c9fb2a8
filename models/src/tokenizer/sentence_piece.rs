//! SentencePiece BPE: blanks are written as U+2581, text is not split into words, and of all pairs that make a piece the
//! one with the best score is merged first. What no piece can spell is spelled in bytes, `<0x00>` to `<0xFF>`.

use tokenizers::models::bpe::{BPE, Merges, Vocab};

use super::TokenizerError;
use super::byte_level::build;
use super::vocabulary::{Kind, Source};

const BLANK: char = '\u{2581}';

/// Text as the vocabulary writes it.
pub(super) fn escape(text: &str, prefix: bool) -> String {
    let mut escaped = String::with_capacity(text.len() + 3);
    escaped.extend(prefix.then_some(BLANK));
    escaped.extend(text.chars().map(|c| if c == ' ' { BLANK } else { c }));
    escaped
}

/// The bytes of a piece that is not a byte token.
pub(super) fn unescape(piece: &str) -> Vec<u8> {
    piece.replace(BLANK, " ").into_bytes()
}

/// The byte of a piece written `<0xHH>`.
pub(super) fn byte(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    let two = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    if two {
        u8::from_str_radix(digits, 16).ok()
    } else {
        None
    }
}

/// Scores turned into a list of merges, best first.
pub(super) fn bpe(source: &Source, ids: Vocab) -> Result<BPE, TokenizerError> {
    for (id, piece) in source.with_kinds(&[Kind::Byte]) {
        if byte(piece).is_none() {
            return Err(TokenizerError::BytePiece {
                id,
                piece: piece.to_owned(),
            });
        }
    }
    let merges = merges(source, &ids)?;
    let mut builder = BPE::builder().byte_fallback(true).fuse_unk(true);
    if let Some(unknown) = source.unknown {
        builder = builder.unk_token(source.pieces[unknown as usize].to_owned());
    }
    builder = builder.vocab_and_merges(ids, merges);
    Ok(build(builder))
}

/// Every way to make a piece of two others. Of the ways to make one piece, that of the lower ids comes first.
fn merges(source: &Source, ids: &Vocab) -> Result<Merges, TokenizerError> {
    let scores = source.scores()?;
    let mergeable = |id: u32| matches!(source.kinds[id as usize], Kind::Normal | Kind::UserDefined);
    let find = |part: &str| ids.get(part).copied().filter(|id| mergeable(*id));
    let mut ways: Vec<(u32, u32, u32)> = Vec::new();
    for (id, piece) in source.with_kinds(&[Kind::Normal, Kind::UserDefined]) {
        for (at, _) in piece.char_indices().skip(1) {
            if let (Some(left), Some(right)) = (find(&piece[..at]), find(&piece[at..])) {
                ways.push((id, left, right));
            }
        }
    }
    let score = |id: u32| scores[id as usize];
    ways.sort_by(|a, b| score(b.0).total_cmp(&score(a.0)).then(a.cmp(b)));
    let text = |id: u32| source.pieces[id as usize].to_owned();
    Ok(ways
        .into_iter()
        .map(|(_, left, right)| (text(left), text(right)))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_and_bytes_are_written_as_the_vocabulary_has_them() {
        assert_eq!(escape("a b", true), "▁a▁b");
        assert_eq!(escape(" ", false), "▁");
        assert_eq!(unescape("▁a"), b" a");
        assert_eq!(byte("<0x0A>"), Some(10));
        assert!(
            ["<0xA>", "<0x+1>", "0x0A", "<0x0A", "<0xGG>"]
                .iter()
                .all(|piece| byte(piece).is_none())
        );
    }
}
