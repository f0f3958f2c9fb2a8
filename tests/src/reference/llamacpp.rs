//! What llama.cpp makes of SmolLM2 with its weights dequantized: token ids, greedy continuations, perplexity.

use std::fs;
use std::path::Path;

use mynah_models::chat_template::{ChatTemplate, Message};
use mynah_models::tokenizer::{ParseSpecial, Tokenizer};
use mynah_models::{Model, Stop, TokenBatch};
use serde_json::Value;

use super::case::argmax;
use super::{Outcome, ReferenceError, Setting, name_of, read_json, smollm2_file};
use crate::golden::Comparison;

/// At or below this distance between the best and the second logit, rounding may decide.
const DECIDED_MARGIN: f64 = 0.02;
/// Absolute, on perplexity.
const PERPLEXITY: f64 = 0.02;

/// Compares the folder's files, each a case of its own.
///
/// # Errors
/// [`ReferenceError`] for files that are not what the form promises.
pub fn check(folder: &Path, setting: &Setting, report: &mut dyn FnMut(Outcome)) -> Result<(), ReferenceError> {
    let gguf = match smollm2_file(setting) {
        Ok(gguf) => gguf,
        Err(reason) => {
            report(Outcome::Skipped { name: name_of(folder), reason });
            return Ok(());
        }
    };
    let text_error = |error: &dyn std::fmt::Display| ReferenceError::Text(error.to_string());
    let model = Model::load(gguf, &setting.device)?;
    let tokenizer = Tokenizer::from_gguf(gguf).map_err(|error| text_error(&error))?;
    for (file, form) in [("tokens.json", "tokens"), ("greedy.json", "greedy"), ("perplexity.json", "perplexity")] {
        let path = folder.join(file);
        if !path.is_file() {
            continue;
        }
        let figures = read_json(&path)?;
        let mut comparison = Comparison::default();
        let cases = figures["cases"].as_array().map_or(&[][..], Vec::as_slice);
        match form {
            "tokens" => {
                for case in cases {
                    let text = case["text"].as_str().unwrap_or_default();
                    comparison.equal("ids", &tokenizer.encode(text, ParseSpecial::No), &ids(&case["ids"]));
                    comparison.equal(
                        "special ids",
                        &tokenizer.encode(text, ParseSpecial::Yes),
                        &ids(&case["ids_parse_special"]),
                    );
                }
            }
            "greedy" => {
                let template = ChatTemplate::from_gguf(gguf, &tokenizer).map_err(|error| text_error(&error))?;
                for case in cases {
                    let prompt = match case["messages"].as_array() {
                        Some(messages) => {
                            template.render(&read_messages(messages), true).map_err(|error| text_error(&error))?
                        }
                        None => case["prompt"].as_str().unwrap_or_default().to_owned(),
                    };
                    let special = if case["kind"] == "chat" { ParseSpecial::Yes } else { ParseSpecial::No };
                    comparison.equal("prompt ids", &tokenizer.encode(&prompt, special), &ids(&case["prompt_ids"]));
                    compare_greedy(&model, case, &mut comparison)?;
                }
            }
            _ => {
                let text_file = folder.join("eval.txt");
                let text =
                    fs::read_to_string(&text_file).map_err(|source| ReferenceError::Io { file: text_file, source })?;
                compare_perplexity(
                    &model,
                    &tokenizer.encode(&text, ParseSpecial::No),
                    &figures,
                    setting,
                    &mut comparison,
                )?;
            }
        }
        report(Outcome::Compared { name: format!("{} {form}", name_of(folder)), comparison });
    }
    Ok(())
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().into_iter().flatten().filter_map(|id| Some(id.as_u64()? as u32)).collect()
}

fn read_messages(messages: &[Value]) -> Vec<Message> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    messages
        .iter()
        .map(|message| Message { role: text(&message["role"]), content: text(&message["content"]) })
        .collect()
}

/// Greedy ids wherever the margin decides: each step continues from llama.cpp's ids, so that an undecided one does not end
/// the comparison.
fn compare_greedy(model: &Model, case: &Value, comparison: &mut Comparison) -> Result<(), ReferenceError> {
    let (prompt, expected) = (ids(&case["prompt_ids"]), ids(&case["ids"]));
    let margins: Vec<f64> =
        case["margin"].as_array().into_iter().flatten().map(|m| m.as_f64().unwrap_or(0.0)).collect();
    let mut cache = model.new_cache(prompt.len() + expected.len());
    let mut logits = model.decode(&mut cache, &prompt, None, &Stop::new())?;
    let (mut found, mut decided) = (Vec::new(), Vec::new());
    for (&id, &margin) in expected.iter().zip(&margins) {
        if margin > DECIDED_MARGIN {
            found.push(argmax(&logits));
            decided.push(id);
        }
        logits = model.decode(&mut cache, &[id], None, &Stop::new())?;
    }
    comparison.equal("greedy ids", &found, &decided);
    Ok(())
}

/// Perplexity over windows that each start afresh: all positions after the first, and the second half of each.
fn compare_perplexity(
    model: &Model,
    tokens: &[u32],
    figures: &Value,
    setting: &Setting,
    comparison: &mut Comparison,
) -> Result<(), ReferenceError> {
    let number = |key: &str| figures[key].as_f64().unwrap_or(f64::NAN);
    comparison.equal("ids", tokens, &ids(&figures["ids"]));
    let (window, windows) = (number("ctx") as usize, number("chunks") as usize);
    let (mut all, mut half) = (Vec::new(), Vec::new());
    for chunk in tokens.chunks_exact(window).take(windows) {
        let hidden = model.forward(&TokenBatch::new(chunk.to_vec(), 1, window)?, None, &Stop::new())?;
        let [positions, width] = hidden.dims();
        let nll = setting.device.read(model.token_nll(
            hidden.slice([0..positions - 1, 0..width]),
            &chunk[1..],
            &Stop::new(),
        )?)?;
        half.extend_from_slice(&nll[window / 2..]);
        all.extend(nll);
    }
    let perplexity = |nll: &[f32]| (nll.iter().map(|v| f64::from(*v)).sum::<f64>() / nll.len() as f64).exp();
    comparison.distance("scored", all.len().abs_diff(number("scored_all") as usize) as f64, 0.5, 1);
    comparison.distance("perplexity", (perplexity(&all) - number("ppl_all")).abs(), PERPLEXITY, all.len());
    if half.len() as f64 == number("scored_half") {
        comparison.distance("perplexity 2/2", (perplexity(&half) - number("ppl_half")).abs(), PERPLEXITY, half.len());
    }
    Ok(())
}
