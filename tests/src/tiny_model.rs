//! GGUF files made on the spot: from a published folder (`config.json` and `model.safetensors`), for cases that bring none.

use std::path::Path;

use serde_json::Value;

use crate::golden::Tensors;
use crate::reference::ReferenceError;

/// Writes GGUF version 3, all tensors in f32.
#[derive(Debug, Default)]
pub struct GgufWriter {
    metadata: Vec<u8>,
    num_keys: u64,
    tensors: Vec<(String, Vec<usize>, Vec<u8>)>,
}

const ALIGNMENT: usize = 32;

impl GgufWriter {
    /// A string value.
    pub fn string(&mut self, key: &str, value: &str) {
        self.key(key, 8);
        put_string(&mut self.metadata, value);
    }

    /// A `u32` value.
    pub fn u32(&mut self, key: &str, value: u32) {
        self.key(key, 4);
        self.metadata.extend(value.to_le_bytes());
    }

    /// An `f32` value.
    pub fn f32(&mut self, key: &str, value: f32) {
        self.key(key, 6);
        self.metadata.extend(value.to_le_bytes());
    }

    /// A tensor of f32, its shape outermost dimension first.
    pub fn tensor(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "values of {name}");
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensors.push((name.to_owned(), shape.to_vec(), bytes));
    }

    fn key(&mut self, key: &str, value_type: u32) {
        self.num_keys += 1;
        put_string(&mut self.metadata, key);
        self.metadata.extend(value_type.to_le_bytes());
    }

    /// The file.
    pub fn finish(self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend(self.num_keys.to_le_bytes());
        file.extend(self.metadata);
        let mut offset = 0;
        for (name, shape, bytes) in &self.tensors {
            put_string(&mut file, name);
            file.extend((shape.len() as u32).to_le_bytes());
            for dimension in shape.iter().rev() {
                file.extend((*dimension as u64).to_le_bytes());
            }
            file.extend(0u32.to_le_bytes());
            file.extend((offset as u64).to_le_bytes());
            offset += bytes.len().next_multiple_of(ALIGNMENT);
        }
        for (_, _, bytes) in &self.tensors {
            file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
            file.extend(bytes);
        }
        file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
        file
    }
}

fn put_string(bytes: &mut Vec<u8>, value: &str) {
    bytes.extend((value.len() as u64).to_le_bytes());
    bytes.extend(value.as_bytes());
}

/// The model of a folder with `config.json` and `model.safetensors`, as llama.cpp's conversion would write it.
///
/// # Errors
/// [`ReferenceError`] names the file and what it lacks.
pub fn gguf_from_folder(folder: &Path) -> Result<Vec<u8>, ReferenceError> {
    let config_file = folder.join("config.json");
    let config = crate::reference::read_json(&config_file)?;
    let number = |key: &str| {
        let found = config.get(key).and_then(Value::as_f64);
        found.ok_or_else(|| ReferenceError::Malformed { file: config_file.clone(), what: format!("no number {key}") })
    };
    let model_type = config["model_type"].as_str().unwrap_or_default();
    let rope = &config["rope_parameters"];
    let tensors = Tensors::read(&folder.join("model.safetensors"))?;
    let mut gguf = GgufWriter::default();
    gguf.string("general.architecture", model_type);
    let key = |name: &str| format!("{model_type}.{name}");
    for (name, from) in [
        ("block_count", "num_hidden_layers"),
        ("context_length", "max_position_embeddings"),
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
        ("vocab_size", "vocab_size"),
    ] {
        gguf.u32(&key(name), number(from)? as u32);
    }
    let heads = number("num_attention_heads")?;
    let head_dim = number("head_dim").unwrap_or(number("hidden_size")? / heads) as usize;
    gguf.u32(&key("attention.key_length"), head_dim as u32);
    gguf.f32(&key("attention.layer_norm_rms_epsilon"), number("rms_norm_eps")? as f32);
    let theta = rope["rope_theta"].as_f64().or(config["rope_theta"].as_f64()).unwrap_or(10_000.0);
    gguf.f32(&key("rope.freq_base"), theta as f32);
    if rope["rope_type"] == "llama3" {
        gguf.tensor("rope_freqs.weight", &[head_dim / 2], &llama3_factors(rope, theta, head_dim));
    }
    for (name, shape, values) in tensors.iter_floats() {
        // A tensor that no family knows keeps its name: the loader says what it thinks of it.
        let gguf_name = gguf_name(name).unwrap_or_else(|| name.to_owned());
        let interleaved = model_type == "llama" && (name.ends_with("q_proj.weight") || name.ends_with("k_proj.weight"));
        match interleaved {
            true => gguf.tensor(&gguf_name, shape, &interleave(values, shape, head_dim)),
            false => gguf.tensor(&gguf_name, shape, values),
        }
    }
    Ok(gguf.finish())
}

/// GGUF's name of a tensor.
fn gguf_name(name: &str) -> Option<String> {
    let fixed = match name {
        "model.embed_tokens.weight" => Some("token_embd.weight"),
        "model.norm.weight" => Some("output_norm.weight"),
        "lm_head.weight" => Some("output.weight"),
        _ => None,
    };
    if let Some(fixed) = fixed {
        return Some(fixed.to_owned());
    }
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (part, kind) = part.rsplit_once('.')?;
    let part = match part {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return None,
    };
    Some(format!("blk.{layer}.{part}.{kind}"))
}

/// Rows of a head in the order that turns row 2i with row 2i + 1.
fn interleave(values: &[f32], shape: &[usize], head_dim: usize) -> Vec<f32> {
    let width = shape[1];
    let mut out = Vec::with_capacity(values.len());
    for head in values.chunks_exact(head_dim * width) {
        for i in 0..head_dim / 2 {
            out.extend_from_slice(&head[i * width..(i + 1) * width]);
            out.extend_from_slice(&head[(i + head_dim / 2) * width..(i + head_dim / 2 + 1) * width]);
        }
    }
    out
}

/// Divisors of the frequencies, after Llama 3: long waves are slowed by `factor`, short ones stay, those between are blended.
fn llama3_factors(rope: &Value, theta: f64, head_dim: usize) -> Vec<f32> {
    let of = |key: &str| rope[key].as_f64().unwrap_or(1.0);
    let (factor, low, high) = (of("factor"), of("low_freq_factor"), of("high_freq_factor"));
    let context = of("original_max_position_embeddings");
    (0..head_dim / 2)
        .map(|i| {
            let wavelength = std::f64::consts::TAU * theta.powf(2.0 * i as f64 / head_dim as f64);
            if wavelength < context / high {
                return 1.0;
            }
            if wavelength > context / low {
                return factor as f32;
            }
            let smooth = (context / wavelength - low) / (high - low);
            (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
        })
        .collect()
}
