//! Small vocabularies that can be checked by hand, and hostile ones that must be refused.

use super::*;
use crate::weights::testing::GgufWriter;

const PIECES: [&str; 12] = [
    "<s>",
    "<|im_end|>",
    "a",
    "b",
    "c",
    "Ġ",
    "ab",
    "abc",
    "Ġab",
    "<think>",
    "Ã",
    "©",
];
const MERGES: [&str; 3] = ["a b", "ab c", "Ġ ab"];
const KINDS: [i32; 12] = [3, 3, 1, 1, 1, 1, 1, 1, 1, 4, 1, 1];

fn byte_level(pieces: &[&str], kinds: &[i32], merges: &[&str]) -> GgufWriter {
    GgufWriter::default()
        .str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", "gpt-2")
        .strs("tokenizer.ggml.tokens", pieces)
        .i32s("tokenizer.ggml.token_type", kinds)
        .strs("tokenizer.ggml.merges", merges)
}

fn sentence_piece() -> GgufWriter {
    let pieces = [
        "<unk>", "<s>", "▁", "a", "b", "ab", "▁ab", "ba", "<0xC3>", "<0xA9>",
    ];
    GgufWriter::default()
        .str("tokenizer.ggml.model", "llama")
        .strs("tokenizer.ggml.tokens", &pieces)
        .i32s("tokenizer.ggml.token_type", &[2, 3, 1, 1, 1, 1, 1, 1, 6, 6])
        .f32s(
            "tokenizer.ggml.scores",
            &[0., 0., -9., -9., -9., -2., -1., -3., 0., 0.],
        )
        .u32("tokenizer.ggml.unknown_token_id", 0)
        .u32("tokenizer.ggml.padding_token_id", u32::MAX)
}

fn build(writer: GgufWriter) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::from_gguf(&Gguf::from_bytes(writer.finish()).unwrap())
}

#[track_caller]
fn check(tokenizer: &Tokenizer, text: &str, special: ParseSpecial, expected: &[u32]) {
    assert_eq!(tokenizer.encode(text, special), expected, "{text}");
    assert_eq!(tokenizer.decode(expected), text);
}

#[test]
fn merges_are_taken_in_the_order_of_the_list() {
    let tokenizer = build(byte_level(&PIECES, &KINDS, &MERGES)).unwrap();
    check(&tokenizer, "abc ab", ParseSpecial::No, &[7, 8]);
    check(&tokenizer, "aé", ParseSpecial::No, &[2, 10, 11]);
    check(&tokenizer, "", ParseSpecial::Yes, &[]);
    assert_eq!(
        tokenizer.encode("axb", ParseSpecial::No),
        [2, 3],
        "what cannot be spelled is left out"
    );
}

#[test]
fn control_tokens_are_found_on_demand_and_user_defined_ones_always() {
    let tokenizer = build(byte_level(&PIECES, &KINDS, &MERGES)).unwrap();
    check(&tokenizer, "a<|im_end|>b", ParseSpecial::Yes, &[2, 1, 3]);
    assert!(
        !tokenizer
            .encode("a<|im_end|>b", ParseSpecial::No)
            .contains(&1)
    );
    check(&tokenizer, "a<think>", ParseSpecial::No, &[2, 9]);
    assert!(tokenizer.is_end_of_generation(1) && !tokenizer.is_end_of_generation(0));
    assert_eq!(
        (tokenizer.eot(), tokenizer.eos(), tokenizer.bos()),
        (Some(1), None, None)
    );
    assert!(!tokenizer.adds_bos());
}

#[test]
fn the_longest_special_token_wins() {
    let pieces = ["<s>", "<s><s>", "a"];
    let tokenizer = build(byte_level(&pieces, &[3, 3, 1], &[])).unwrap();
    check(&tokenizer, "<s><s><s>a", ParseSpecial::Yes, &[1, 0, 2]);
}

#[test]
fn scores_decide_what_is_merged_first_and_bytes_spell_the_rest() {
    let tokenizer = build(sentence_piece()).unwrap();
    check(&tokenizer, "ab", ParseSpecial::No, &[6]);
    check(&tokenizer, "bab", ParseSpecial::No, &[2, 4, 5]);
    check(&tokenizer, "a é", ParseSpecial::No, &[2, 3, 2, 8, 9]);
    assert_eq!(tokenizer.encode("x", ParseSpecial::No), [2, 0]);
    check(&tokenizer, "a<s>a", ParseSpecial::Yes, &[2, 3, 1, 2, 3]);
    assert!(tokenizer.adds_bos());
    let plain = build(sentence_piece().bool("tokenizer.ggml.add_space_prefix", false)).unwrap();
    check(&plain, "ab ab", ParseSpecial::No, &[5, 6]);
    check(&plain, " ab", ParseSpecial::No, &[6]);
}

#[test]
fn a_stream_gives_the_bytes_of_each_token() {
    let tokenizer = build(sentence_piece()).unwrap();
    assert_eq!(tokenizer.token_bytes(6), b" ab");
    assert_eq!(tokenizer.token_bytes(8), [0xc3]);
    assert_eq!(tokenizer.token_bytes(1), b"<s>");
    assert_eq!(tokenizer.token_bytes(999), b"");
    assert_eq!(tokenizer.decode(&[8]), "\u{fffd}");
}

#[test]
fn the_digest_follows_everything_that_changes_ids() {
    let digest = |writer| build(writer).unwrap().digest();
    let first = digest(byte_level(&PIECES, &KINDS, &MERGES));
    assert_eq!(
        first,
        digest(byte_level(&PIECES, &KINDS, &MERGES).str("tokenizer.chat_template", "x"))
    );
    assert_ne!(first, digest(byte_level(&PIECES, &KINDS, &MERGES[..2])));
    let mut kinds = KINDS;
    kinds[9] = 3;
    assert_ne!(first, digest(byte_level(&PIECES, &kinds, &MERGES)));
    assert_ne!(
        digest(sentence_piece()),
        digest(sentence_piece().bool("tokenizer.ggml.add_space_prefix", false))
    );
}

#[test]
fn hostile_vocabularies_are_refused_by_name() {
    let check = |writer: GgufWriter, expected: &str| {
        assert_eq!(build(writer).unwrap_err().to_string(), expected)
    };
    let ab = ["a", "b"];
    check(byte_level(&[], &[], &[]), "the vocabulary is empty");
    check(
        byte_level(&["a", "a"], &[1, 1], &[]),
        "tokens 0 and 1 are both `a`",
    );
    check(byte_level(&["a", ""], &[1, 1], &[]), "token 1 is empty");
    check(
        byte_level(&ab, &[1], &[]),
        "`tokenizer.ggml.token_type` has 1 values for 2 tokens",
    );
    check(
        byte_level(&ab, &[1, 7], &[]),
        "token 1 has type 7, which is not defined",
    );
    check(
        byte_level(&ab, &[1, 1], &["ab"]),
        "merge 0 is `ab`, not two pieces",
    );
    check(
        byte_level(&ab, &[1, 1], &[" b"]),
        "merge 0 is ` b`, not two pieces",
    );
    check(
        byte_level(&ab, &[1, 1], &["a c"]),
        "merge 0 needs `c`, which is not in the vocabulary",
    );
    check(
        byte_level(&ab, &[1, 1], &["a b"]),
        "merge 0 needs `ab`, which is not in the vocabulary",
    );
    check(
        byte_level(&ab, &[1, 1], &[]).u32("tokenizer.ggml.bos_token_id", 2),
        "`tokenizer.ggml.bos_token_id` is 2, but there are only 2 tokens",
    );
    check(
        GgufWriter::default(),
        "vocabulary: metadata `tokenizer.ggml.tokens` is missing or is not an array of strings",
    );
    let other = |model: &str, pre: &str| {
        GgufWriter::default()
            .str("tokenizer.ggml.model", model)
            .str("tokenizer.ggml.pre", pre)
            .strs("tokenizer.ggml.tokens", &ab)
    };
    check(
        other("bert", ""),
        "tokenizer model `bert` is not supported, only gpt2 and llama",
    );
    check(
        other("gpt2", "tekken"),
        "pre-tokenizer `tekken` is not supported, only gpt-2, smollm, llama-bpe, llama3, qwen2",
    );
    check(
        other("llama", ""),
        "`tokenizer.ggml.scores` has 0 values for 2 tokens",
    );
    check(
        other("llama", "").f32s("tokenizer.ggml.scores", &[0.0, f32::NAN]),
        "token 1 has a score that is not finite",
    );
    check(
        other("llama", "")
            .f32s("tokenizer.ggml.scores", &[0.0; 2])
            .i32s("tokenizer.ggml.token_type", &[1, 6]),
        "token 1 is a byte token but reads `b`",
    );
}

#[test]
fn a_flipped_bit_in_a_vocabulary_never_panics() {
    for file in [
        byte_level(&PIECES, &KINDS, &MERGES).finish(),
        sentence_piece().finish(),
    ] {
        for at in 0..file.len() {
            let mut file = file.clone();
            file[at] ^= 1 << (at % 8);
            if let Ok(tokenizer) = Gguf::from_bytes(file)
                .map_err(drop)
                .and_then(|g| Tokenizer::from_gguf(&g).map_err(drop))
            {
                let ids = tokenizer.encode("abc ab<s> é", ParseSpecial::Yes);
                tokenizer.decode(&ids);
            }
        }
    }
}
