//! `Precision::Fast` held against `Precision::Exact`.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::Tensor;
use mynah::{Session, SessionBuilder};
use mynah_models::adapter::{Adapter, LoraConfig};
use mynah_models::tokenizer::{ParseSpecial, Tokenizer};
use mynah_models::weights::Gguf;
use mynah_models::{ComputeDevice, Model, Precision, Stop, TokenBatch};
use mynah_tests::{cached_smollm2, skip, stories};

/// Largest relative change of a perplexity: what bf16 may cost.
const PERPLEXITY: f64 = 3e-3;
/// The same where tokens are decoded one by one, quantized to 8 bits.
const DECODED_PERPLEXITY: f64 = 1e-2;
/// Least cosine between the gradients of an adapter.
const GRADIENT_COSINE: f64 = 0.999;

fn load(gguf: &Arc<Gguf>, precision: Precision) -> Model {
    Model::load(gguf, &ComputeDevice::cpu().with_precision(precision)).unwrap_or_else(|error| panic!("{error}"))
}

/// Tokens of the texts that come with SmolLM2's golden figures.
fn text(gguf: &Gguf) -> Vec<u32> {
    let figures = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/smollm2/reference.json");
    let figures: serde_json::Value = serde_json::from_slice(&std::fs::read(figures).unwrap()).unwrap();
    let tokenizer = Tokenizer::from_gguf(gguf).unwrap();
    let texts = figures["texts"].as_array().unwrap().iter();
    texts.flat_map(|text| tokenizer.encode(text["text"].as_str().unwrap(), ParseSpecial::No)).collect()
}

fn one_row(ids: &[u32]) -> TokenBatch {
    TokenBatch::new(ids.to_vec(), 1, ids.len()).unwrap()
}

fn mean_nll(model: &Model, ids: &[u32], hidden: Tensor<2>) -> Tensor<1> {
    let [positions, width] = hidden.dims();
    model.token_nll(hidden.slice([0..positions - 1, 0..width]), &ids[1..], &Stop::new()).unwrap().mean()
}

/// Mean negative log-likelihood where each token is decoded by itself.
fn mean_decoded_nll(model: &Model, ids: &[u32]) -> f64 {
    let mut cache = model.new_cache(ids.len());
    let nll = ids.windows(2).map(|pair| {
        let logits = model.decode(&mut cache, &pair[..1], None, &Stop::new()).unwrap();
        let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
        sum.ln() - f64::from(logits[pair[1] as usize])
    });
    nll.sum::<f64>() / (ids.len() - 1) as f64
}

fn gradient(model: &Model, ids: &[u32]) -> Vec<f32> {
    let mut adapter = Adapter::init(model.config(), &LoraConfig::default(), 5).unwrap();
    // B is zero at first, and with it the gradient of A.
    adapter
        .values_mut()
        .iter_mut()
        .enumerate()
        .for_each(|(i, value)| *value += ((i * 7919 % 101) as f32 - 50.0) * 1e-4);
    let on_device = model.upload(&adapter).unwrap();
    let (layers, stop) = (model.config().num_hidden_layers, Stop::new());
    let tape = model.record(&one_row(ids), &[layers], &on_device, layers, &stop).unwrap();
    let loss = mean_nll(model, ids, tape.hidden()[0].clone());
    tape.gradients(&loss).unwrap()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn fast_stays_near_exact() {
    let Some(file) = cached_smollm2() else {
        let reason = "the model is not in the cache: `mynah pull smollm2-135m-instruct`";
        return skip("the error of fast computing", reason, "MYNAH_REQUIRE_MODEL");
    };
    let gguf = Gguf::open(&file).unwrap_or_else(|error| panic!("{error}"));
    let ids = text(&gguf);
    let [exact, fast] = [Precision::Exact, Precision::Fast].map(|precision| load(&gguf, precision));
    let nll = |model: &Model| {
        let hidden = model.forward(&one_row(&ids), None, &Stop::new()).unwrap();
        f64::from(mean_nll(model, &ids, hidden).into_scalar::<f32>())
    };
    let change = (nll(&fast) - nll(&exact)).exp() - 1.0;
    eprintln!("perplexity changes by {:.3} % over {} tokens", 100.0 * change, ids.len());
    assert!(change.abs() <= PERPLEXITY, "{change}");
    let change = (mean_decoded_nll(&fast, &ids) - nll(&exact)).exp() - 1.0;
    eprintln!("decoded one by one, by {:.3} %", 100.0 * change);
    assert!(change.abs() <= DECODED_PERPLEXITY, "{change}");
    let cosine = cosine(&gradient(&exact, &ids), &gradient(&fast, &ids));
    eprintln!("cosine of gradients {cosine:.6}");
    assert!(cosine >= GRADIENT_COSINE, "{cosine}");
}

#[test]
fn a_session_computes_as_it_was_told() {
    let open = |builder: SessionBuilder| builder.open().unwrap().model().device().precision();
    let builder = || Session::builder(stories::gguf());
    assert_eq!(open(builder()), Precision::Fast);
    assert_eq!(open(builder().precision(Precision::Exact)), Precision::Exact);
}

#[test]
fn a_tiny_models_gradients_are_near_and_the_same_each_time() {
    let gguf = stories::gguf();
    let ids: Vec<u32> = (3..60).collect();
    let [exact, fast, again] =
        [Precision::Exact, Precision::Fast, Precision::Fast].map(|precision| gradient(&load(&gguf, precision), &ids));
    assert!(fast.iter().zip(&again).all(|(a, b)| a.to_bits() == b.to_bits()));
    assert!(cosine(&exact, &fast) >= GRADIENT_COSINE);
}
