//! Published vocabularies with the ids that other tools give. They are too large, or not ours, to keep in the tree:
//! MYNAH_TOKENIZER_DATA names the folder that holds them, MYNAH_MODEL_DATA that of the small model, MYNAH_SMOLLM2 the
//! model file, MYNAH_REFERENCE_DATA the folder with llama.cpp's ids for it.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use super::*;

fn from_env(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os(name).map(PathBuf::from);
    if path.is_none() {
        eprintln!("skipped: {name} is not set");
    }
    path
}

/// The 47 strings that llama.cpp tests its vocabularies with.
#[track_caller]
fn check_strings(folder: &PathBuf, name: &str, tokenizer: &Tokenizer) {
    let strings = fs::read_to_string(folder.join(format!("{name}.inp"))).unwrap();
    let ids = fs::read_to_string(folder.join(format!("{name}.out"))).unwrap();
    let strings: Vec<&str> = strings.split("\n__ggml_vocab_test__\n").collect();
    assert_eq!(strings.len(), 47);
    for (text, line) in strings.iter().zip(ids.split('\n')) {
        let expected: Vec<u32> = line
            .split_whitespace()
            .map(|id| id.parse().unwrap())
            .collect();
        assert_eq!(
            tokenizer.encode(text, ParseSpecial::No),
            expected,
            "{name}: {text:?}"
        );
        assert_eq!(tokenizer.decode(&expected), *text, "{name}");
    }
}

#[test]
fn vocabularies_in_gguf_give_the_published_ids() {
    let Some(data) = from_env("MYNAH_TOKENIZER_DATA") else {
        return;
    };
    for name in ["gpt-2", "llama-spm"] {
        let gguf = Gguf::open(&data.join(name).join("vocab.gguf")).unwrap();
        check_strings(
            &data.join(name),
            name,
            &Tokenizer::from_gguf(&gguf).unwrap(),
        );
    }
}

#[test]
fn the_smollm_vocabulary_gives_the_published_ids() {
    let Some(data) = from_env("MYNAH_TOKENIZER_DATA") else {
        return;
    };
    let text = fs::read_to_string(data.join("smollm/tokenizer.json")).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    let mut pieces: Vec<(&String, u64)> = json["model"]["vocab"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(piece, id)| (piece, id.as_u64().unwrap()))
        .collect();
    pieces.sort_by_key(|(_, id)| *id);
    let mut kinds = vec![Kind::Normal; pieces.len()];
    for token in json["added_tokens"].as_array().unwrap() {
        kinds[token["id"].as_u64().unwrap() as usize] = Kind::Control;
    }
    let source = Source {
        model: "gpt2",
        pre: "smollm",
        pieces: pieces.iter().map(|(piece, _)| piece.as_str()).collect(),
        kinds,
        merges: json["model"]["merges"]
            .as_array()
            .unwrap()
            .iter()
            .map(|merge| merge.as_str().unwrap())
            .collect(),
        ..Source::default()
    };
    check_strings(
        &data.join("smollm"),
        "smollm",
        &Tokenizer::from_source(&source).unwrap(),
    );
}

#[test]
fn the_qwen2_vocabulary_gives_the_published_ids() {
    let Some(data) = from_env("MYNAH_TOKENIZER_DATA") else {
        return;
    };
    let text = fs::read_to_string(data.join("qwen2/vocab.json")).unwrap();
    let json: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
    let mut pieces: Vec<(&str, u64)> = json
        .iter()
        .map(|(piece, id)| (piece.as_str(), id.as_u64().unwrap()))
        .collect();
    pieces.sort_by_key(|(_, id)| *id);
    let mut kinds = vec![Kind::Normal; pieces.len()];
    let control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
    pieces.extend(control.into_iter().zip(151_643..));
    kinds.extend([Kind::Control; 3]);
    let merges = fs::read_to_string(data.join("qwen2/merges.txt")).unwrap();
    let source = Source {
        model: "gpt2",
        pre: "qwen2",
        pieces: pieces.iter().map(|(piece, _)| *piece).collect(),
        kinds,
        merges: merges
            .lines()
            .filter(|line| !line.starts_with("#version") && !line.is_empty())
            .collect(),
        ..Source::default()
    };
    let tokenizer = Tokenizer::from_source(&source).unwrap();
    check_strings(&data.join("qwen2"), "qwen2", &tokenizer);
    assert_eq!(
        tokenizer.encode("<|im_end|>\n", ParseSpecial::Yes),
        [151_645, 198]
    );
}

#[test]
fn the_stories_model_gives_the_golden_ids() {
    let Some(data) = from_env("MYNAH_MODEL_DATA") else {
        return;
    };
    let tokenizer =
        Tokenizer::from_gguf(&Gguf::open(&data.join("stories260K.gguf")).unwrap()).unwrap();
    let golden: Value =
        serde_json::from_str(&fs::read_to_string(data.join("golden.json")).unwrap()).unwrap();
    for case in golden["encode"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(tokenizer.encode(text, ParseSpecial::No), ids, "{text}");
        assert_eq!(tokenizer.decode(&ids), text);
    }
    let ids: Vec<u32> = serde_json::from_value(golden["greedy_ids"].clone()).unwrap();
    let text = fs::read_to_string(data.join("expected-greedy.txt")).unwrap();
    assert_eq!(tokenizer.decode(&ids[1..]), text);
    assert_eq!((tokenizer.bos(), tokenizer.adds_bos()), (Some(1), true));
}

#[test]
fn smollm2_gives_the_ids_of_llama_cpp() {
    let (Some(model), Some(data)) = (from_env("MYNAH_SMOLLM2"), from_env("MYNAH_REFERENCE_DATA"))
    else {
        return;
    };
    let tokenizer = Tokenizer::from_gguf(&Gguf::open(&model).unwrap()).unwrap();
    let text = fs::read_to_string(data.join("llamacpp/tokens.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    for case in golden["cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let ids = |key: &str| -> Vec<u32> { serde_json::from_value(case[key].clone()).unwrap() };
        assert_eq!(
            tokenizer.encode(text, ParseSpecial::No),
            ids("ids"),
            "{text:?}"
        );
        assert_eq!(
            tokenizer.encode(text, ParseSpecial::Yes),
            ids("ids_parse_special"),
            "{text:?}"
        );
        if case["round_trip"] == true {
            assert_eq!(tokenizer.decode(&ids("ids")), text);
        }
    }
    assert_eq!(
        (tokenizer.bos(), tokenizer.eos(), tokenizer.eot()),
        (Some(1), Some(2), Some(2))
    );
    assert!(tokenizer.is_end_of_generation(0) && tokenizer.is_end_of_generation(2));
}
