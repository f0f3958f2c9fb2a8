//! GGUF metadata becomes a checked [`ModelConfig`].
//!
//! Every number is capped and held against the shapes of the tensors, and every tensor of the file must have a use: a
//! bias or a norm that is passed over would give wrong logits without a word. What is computed with the numbers is the
//! business of the families.

use crate::error::LoadError;
use crate::families::{self, Family};
use crate::projection::Projection;
use crate::weights::{Gguf, Metadata};

const MAX_LAYERS: usize = 256;
const MAX_WIDTH: usize = 1 << 17;
const MAX_HEADS: usize = 1024;
const MAX_HEAD_DIM: usize = 1024;
const MAX_VOCABULARY: usize = 1 << 20;
const MAX_CONTEXT: usize = 1 << 24;

/// How the pairs of values that rotary embedding turns lie in a head, in the file's q and k rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairing {
    /// Value i with value i + head_dim / 2, as in Hugging Face's files.
    Halves,
    /// Value 2i with value 2i + 1.
    Interleaved,
}

/// What is done to the rotary frequencies for long contexts.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Nothing.
    None,
    /// All are divided by one factor.
    Linear(f32),
    /// Each is divided by its own, head_dim / 2 of them (llama3).
    Factors(Vec<f32>),
}

/// The sizes and constants of a model, named as in `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The family: `llama`, `qwen2` or `qwen3`.
    pub model_type: String,
    /// Pieces of the vocabulary: rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Values per head, even. Not always hidden_size / num_attention_heads.
    pub head_dim: usize,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// What is done to the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// How rotary pairs lie in the file's q and k rows.
    pub rope_pairing: RopePairing,
    /// Longest context the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Whether the embedding is also the output matrix: the file has no `output.weight`.
    pub tie_word_embeddings: bool,
    /// Whether q, k and v add a bias.
    pub qkv_bias: bool,
    /// Whether queries and keys are normed per head.
    pub qk_norm: bool,
}

impl ModelConfig {
    /// Reads and checks the configuration of a model file.
    ///
    /// # Errors
    /// [`LoadError::UnknownArchitecture`]; [`LoadError::MissingKey`] and [`LoadError::KeyValue`] name the key;
    /// [`LoadError::MissingTensor`], [`LoadError::Shape`] and [`LoadError::UnexpectedTensor`] the tensor.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, LoadError> {
        let keys = Keys::new(gguf)?;
        let architecture = keys.architecture;
        let config = keys.config(gguf)?;
        config.check_tensors(gguf, architecture)?;
        Ok(config)
    }

    /// Shape `[d_out, d_in]` of a matrix of every decoder layer, as it is stored: one row per output.
    pub fn projection_shape(&self, projection: Projection) -> [usize; 2] {
        let heads = self.num_attention_heads * self.head_dim;
        let key_value_heads = self.num_key_value_heads * self.head_dim;
        match projection {
            Projection::Q => [heads, self.hidden_size],
            Projection::K | Projection::V => [key_value_heads, self.hidden_size],
            Projection::O => [self.hidden_size, heads],
            Projection::Gate | Projection::Up => [self.intermediate_size, self.hidden_size],
            Projection::Down => [self.hidden_size, self.intermediate_size],
        }
    }

    /// For each output row of `projection` in Hugging Face's order (and an adapter's), the row of the file that holds it.
    ///
    /// `None` when the two orders are one. They differ for q and k where [`RopePairing::Interleaved`] holds: with the
    /// rows taken in this order, rotary pairs lie in halves, as in the other families.
    pub fn file_row_order(&self, projection: Projection) -> Option<Vec<usize>> {
        let heads = match (self.rope_pairing, projection) {
            (RopePairing::Interleaved, Projection::Q) => self.num_attention_heads,
            (RopePairing::Interleaved, Projection::K) => self.num_key_value_heads,
            _ => return None,
        };
        let half = self.head_dim / 2;
        let in_head = (0..half).map(|i| 2 * i).chain((0..half).map(|i| 2 * i + 1));
        Some((0..heads).flat_map(|head| in_head.clone().map(move |row| head * self.head_dim + row)).collect())
    }

    /// Every tensor the file must have, with its shape, and the optional ones that it has.
    fn expected_tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut tensors = vec![
            ("token_embd.weight".to_owned(), vec![self.vocab_size, self.hidden_size]),
            ("output_norm.weight".to_owned(), vec![self.hidden_size]),
        ];
        if !self.tie_word_embeddings {
            tensors.push(("output.weight".to_owned(), vec![self.vocab_size, self.hidden_size]));
        }
        if matches!(self.rope_scaling, RopeScaling::Factors(_)) {
            tensors.push(("rope_freqs.weight".to_owned(), vec![self.head_dim / 2]));
        }
        for layer in 0..self.num_hidden_layers {
            let mut add = |name: &str, shape: &[usize]| tensors.push((format!("blk.{layer}.{name}"), shape.to_vec()));
            add("attn_norm.weight", &[self.hidden_size]);
            add("ffn_norm.weight", &[self.hidden_size]);
            for projection in Projection::ALL {
                let shape = self.projection_shape(projection);
                add(&format!("{}.weight", projection.gguf_name()), &shape);
                if self.qkv_bias && matches!(projection, Projection::Q | Projection::K | Projection::V) {
                    add(&format!("{}.bias", projection.gguf_name()), &shape[..1]);
                }
            }
            if self.qk_norm {
                add("attn_q_norm.weight", &[self.head_dim]);
                add("attn_k_norm.weight", &[self.head_dim]);
            }
        }
        tensors
    }

    fn check_tensors(&self, gguf: &Gguf, architecture: &Family) -> Result<(), LoadError> {
        let expected = self.expected_tensors();
        for (name, shape) in &expected {
            gguf.expect_tensor(name, shape)?;
        }
        let known: std::collections::HashSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        match gguf.tensors().iter().find(|tensor| !known.contains(tensor.name.as_str())) {
            Some(tensor) => Err(LoadError::UnexpectedTensor {
                file: gguf.file().to_owned(),
                name: tensor.name.clone(),
                architecture: architecture.name.to_owned(),
            }),
            None => Ok(()),
        }
    }
}

/// Metadata under the architecture's prefix, with errors that name the key.
struct Keys<'a> {
    file: &'a str,
    metadata: Metadata<'a>,
    architecture: &'static Family,
}

impl<'a> Keys<'a> {
    fn new(gguf: &'a Gguf) -> Result<Self, LoadError> {
        let (file, metadata) = (gguf.file(), gguf.metadata());
        let key = "general.architecture";
        let found = metadata.str(key).ok_or_else(|| missing(file, key, "a string"))?;
        let architecture = families::find(found).ok_or_else(|| LoadError::UnknownArchitecture {
            file: file.to_owned(),
            found: found.to_owned(),
            known: families::FAMILIES.iter().map(|family| family.name).collect(),
        })?;
        Ok(Self { file, metadata, architecture })
    }

    fn config(&self, gguf: &Gguf) -> Result<ModelConfig, LoadError> {
        let hidden_size = self.size("embedding_length", 1..=MAX_WIDTH)?;
        let num_attention_heads = self.size("attention.head_count", 1..=MAX_HEADS)?;
        let num_key_value_heads =
            self.optional_size("attention.head_count_kv", 1..=MAX_HEADS)?.unwrap_or(num_attention_heads);
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            let expected = format!("a divisor of {num_attention_heads} heads");
            return Err(self.refused("attention.head_count_kv", num_key_value_heads, expected));
        }
        let head_dim =
            self.optional_size("attention.key_length", 2..=MAX_HEAD_DIM)?.unwrap_or(hidden_size / num_attention_heads);
        if !head_dim.is_multiple_of(2) || head_dim == 0 {
            return Err(self.refused("attention.key_length", head_dim, "an even number"));
        }
        for key in ["attention.value_length", "rope.dimension_count"] {
            match self.optional_size(key, 1..=MAX_HEAD_DIM)? {
                Some(found) if found != head_dim => {
                    return Err(self.refused(key, found, format!("{head_dim}, the length of a key")));
                }
                _ => {}
            }
        }
        Ok(ModelConfig {
            model_type: self.architecture.name.to_owned(),
            vocab_size: self.vocab_size(gguf)?,
            hidden_size,
            intermediate_size: self.size("feed_forward_length", 1..=MAX_WIDTH)?,
            num_hidden_layers: self.size("block_count", 1..=MAX_LAYERS)?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            rms_norm_eps: self
                .positive("attention.layer_norm_rms_epsilon", 1.0)?
                .ok_or_else(|| missing(self.file, &self.key("attention.layer_norm_rms_epsilon"), "a float"))?,
            rope_theta: self.positive("rope.freq_base", 1e12)?.unwrap_or(10_000.0),
            rope_scaling: self.rope_scaling(gguf, head_dim)?,
            rope_pairing: self.architecture.rope_pairing,
            max_position_embeddings: self.size("context_length", 1..=MAX_CONTEXT)?,
            tie_word_embeddings: gguf.tensor("output.weight").is_none(),
            qkv_bias: self.architecture.qkv_bias,
            qk_norm: self.architecture.qk_norm,
        })
    }

    /// The key says it, or else the tokens are counted; the embedding's shape is checked against it with the rest.
    fn vocab_size(&self, gguf: &Gguf) -> Result<usize, LoadError> {
        let tokens = self.metadata.str_array("tokenizer.ggml.tokens").map(|tokens| tokens.len());
        let embedding = gguf.tensor("token_embd.weight").map(|tensor| tensor.shape[0]);
        let size = match self.optional_size("vocab_size", 1..=MAX_VOCABULARY)? {
            Some(size) => size,
            None => tokens.or(embedding).unwrap_or(0),
        };
        if !(1..=MAX_VOCABULARY).contains(&size) {
            return Err(self.refused("vocab_size", size, format!("1 to {MAX_VOCABULARY}")));
        }
        match tokens {
            Some(tokens) if tokens != size => {
                Err(self.refused("vocab_size", size, format!("{tokens}, the number of tokens")))
            }
            _ => Ok(size),
        }
    }

    fn rope_scaling(&self, gguf: &Gguf, head_dim: usize) -> Result<RopeScaling, LoadError> {
        let name = "rope_freqs.weight";
        if gguf.tensor(name).is_some() {
            let factors = gguf.vector_f32(name, head_dim / 2)?;
            if !factors.iter().all(|factor| factor.is_finite() && *factor > 0.0) {
                return Err(LoadError::NotFinite { file: self.file.to_owned(), name: name.to_owned(), block: 0 });
            }
            return Ok(RopeScaling::Factors(factors));
        }
        match self.metadata.str(&self.key("rope.scaling.type")) {
            None | Some("none") => Ok(RopeScaling::None),
            Some("linear") => match self.positive("rope.scaling.factor", 1e6)? {
                Some(factor) => Ok(RopeScaling::Linear(factor)),
                None => Err(missing(self.file, &self.key("rope.scaling.factor"), "a float")),
            },
            Some(found) => Err(self.refused("rope.scaling.type", found, "none or linear")),
        }
    }

    fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.architecture.name)
    }

    fn size(&self, suffix: &str, accepted: std::ops::RangeInclusive<usize>) -> Result<usize, LoadError> {
        self.optional_size(suffix, accepted)?.ok_or_else(|| missing(self.file, &self.key(suffix), "an integer"))
    }

    fn optional_size(
        &self,
        suffix: &str,
        accepted: std::ops::RangeInclusive<usize>,
    ) -> Result<Option<usize>, LoadError> {
        let key = self.key(suffix);
        if !self.metadata.contains(&key) {
            return Ok(None);
        }
        let found = self.metadata.u64(&key).ok_or_else(|| missing(self.file, &key, "an integer"))?;
        match usize::try_from(found) {
            Ok(size) if accepted.contains(&size) => Ok(Some(size)),
            _ => Err(self.refused(suffix, found, format!("{} to {}", accepted.start(), accepted.end()))),
        }
    }

    /// A float above 0 and below `limit`.
    fn positive(&self, suffix: &str, limit: f64) -> Result<Option<f32>, LoadError> {
        let key = self.key(suffix);
        if !self.metadata.contains(&key) {
            return Ok(None);
        }
        let found = self.metadata.f64(&key).ok_or_else(|| missing(self.file, &key, "a float"))?;
        if found > 0.0 && found < limit {
            Ok(Some(found as f32))
        } else {
            Err(self.refused(suffix, found, format!("above 0 and below {limit}")))
        }
    }

    fn refused(&self, suffix: &str, found: impl ToString, expected: impl Into<String>) -> LoadError {
        LoadError::KeyValue {
            file: self.file.to_owned(),
            key: self.key(suffix),
            found: found.to_string(),
            expected: expected.into(),
        }
    }
}

fn missing(file: &str, key: &str, expected: &'static str) -> LoadError {
    LoadError::MissingKey { file: file.to_owned(), key: key.to_owned(), expected }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::quant::TensorType;
    use crate::weights::testing::GgufWriter;

    /// A llama of one layer: 2 heads of 4 values, one key-value head, hidden 8, intermediate 12, 16 tokens.
    pub(crate) fn tiny() -> ModelConfig {
        ModelConfig {
            model_type: "llama".to_owned(),
            vocab_size: 16,
            hidden_size: 8,
            intermediate_size: 12,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            head_dim: 4,
            rms_norm_eps: 1e-5,
            rope_theta: 1e4,
            rope_scaling: RopeScaling::None,
            rope_pairing: RopePairing::Interleaved,
            max_position_embeddings: 32,
            tie_word_embeddings: true,
            qkv_bias: false,
            qk_norm: false,
        }
    }

    /// The keys of [`tiny`] for another architecture.
    pub(crate) fn keys(architecture: &str) -> GgufWriter {
        let key = |suffix: &str| format!("{architecture}.{suffix}");
        GgufWriter::default()
            .str("general.architecture", architecture)
            .u32(&key("vocab_size"), 16)
            .u32(&key("embedding_length"), 8)
            .u32(&key("feed_forward_length"), 12)
            .u32(&key("block_count"), 2)
            .u32(&key("attention.head_count"), 2)
            .u32(&key("attention.head_count_kv"), 1)
            .f32(&key("attention.layer_norm_rms_epsilon"), 1e-5)
            .u32(&key("context_length"), 32)
    }

    /// Zeros for every tensor of `config`.
    pub(crate) fn with_tensors(mut writer: GgufWriter, config: &ModelConfig) -> GgufWriter {
        for (name, shape) in config.expected_tensors() {
            let zeros = vec![0.0; shape.iter().product()];
            let shape: Vec<u64> = shape.iter().map(|&dimension| dimension as u64).collect();
            writer = writer.tensor(&name, &shape, TensorType::F32, &zeros);
        }
        writer
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{keys, tiny, with_tensors};
    use super::*;
    use crate::quant::TensorType;
    use crate::weights::testing::GgufWriter;

    fn read(writer: GgufWriter) -> Result<ModelConfig, LoadError> {
        ModelConfig::from_gguf(&Gguf::from_bytes(writer.finish()).unwrap())
    }

    #[test]
    fn a_llama_file_gives_its_numbers() {
        assert_eq!(read(with_tensors(keys("llama"), &tiny())).unwrap(), tiny());
    }

    #[test]
    fn the_families_differ_in_biases_norms_and_rotary_pairs() {
        let halves = ModelConfig { rope_pairing: RopePairing::Halves, ..tiny() };
        let qwen2 = ModelConfig { model_type: "qwen2".to_owned(), qkv_bias: true, ..halves.clone() };
        assert_eq!(read(with_tensors(keys("qwen2"), &qwen2)).unwrap(), qwen2);
        let qwen3 = ModelConfig { model_type: "qwen3".to_owned(), qk_norm: true, head_dim: 6, ..halves };
        let writer = keys("qwen3").u32("qwen3.attention.key_length", 6);
        assert_eq!(read(with_tensors(writer, &qwen3)).unwrap(), qwen3);
    }

    #[test]
    fn an_output_matrix_of_its_own_and_rotary_factors_are_found() {
        let config = ModelConfig {
            tie_word_embeddings: false,
            rope_scaling: RopeScaling::Factors(vec![1.0, 8.0]),
            rope_theta: 5e5,
            ..tiny()
        };
        let plain = ModelConfig { rope_scaling: RopeScaling::None, ..config.clone() };
        let writer = with_tensors(keys("llama").f32("llama.rope.freq_base", 5e5), &plain).tensor(
            "rope_freqs.weight",
            &[2],
            TensorType::F32,
            &[1.0, 8.0],
        );
        assert_eq!(read(writer).unwrap(), config);
    }

    #[test]
    fn an_unknown_architecture_is_named_with_those_we_know() {
        let error = read(keys("mamba")).unwrap_err().to_string();
        assert_eq!(error, "<memory>: architecture `mamba` is not supported, only llama, qwen2, qwen3");
    }

    #[track_caller]
    fn check_refused(writer: GgufWriter, expected: &str) {
        assert_eq!(read(writer).unwrap_err().to_string(), format!("<memory>: {expected}"));
    }

    #[test]
    fn numbers_out_of_range_are_refused_by_name() {
        let without = |key: &str| {
            // A later duplicate is refused by the parser, so the file is written without the key under test.
            let mut writer = GgufWriter::default().str("general.architecture", "llama");
            for (name, value) in [
                ("vocab_size", 16),
                ("embedding_length", 8),
                ("feed_forward_length", 12),
                ("block_count", 2),
                ("attention.head_count", 2),
                ("context_length", 32),
            ] {
                if name != key {
                    writer = writer.u32(&format!("llama.{name}"), value);
                }
            }
            if key == "attention.layer_norm_rms_epsilon" {
                writer
            } else {
                writer.f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
            }
        };
        check_refused(without("block_count"), "metadata `llama.block_count` is missing or is not an integer");
        check_refused(
            without("block_count").u32("llama.block_count", 100_000),
            "metadata `llama.block_count` is 100000, expected 1 to 256",
        );
        check_refused(
            without("attention.head_count").u32("llama.attention.head_count", 0),
            "metadata `llama.attention.head_count` is 0, expected 1 to 1024",
        );
        check_refused(
            without("").u32("llama.attention.head_count_kv", 3),
            "metadata `llama.attention.head_count_kv` is 3, expected a divisor of 2 heads",
        );
        check_refused(
            without("").u32("llama.rope.dimension_count", 2),
            "metadata `llama.rope.dimension_count` is 2, expected 4, the length of a key",
        );
        check_refused(
            without("attention.layer_norm_rms_epsilon").f32("llama.attention.layer_norm_rms_epsilon", f32::NAN),
            "metadata `llama.attention.layer_norm_rms_epsilon` is NaN, expected above 0 and below 1",
        );
        check_refused(
            without("").str("llama.rope.scaling.type", "yarn"),
            "metadata `llama.rope.scaling.type` is yarn, expected none or linear",
        );
        check_refused(
            without("").strs("tokenizer.ggml.tokens", &["a"]),
            "metadata `llama.vocab_size` is 16, expected 1, the number of tokens",
        );
    }

    #[test]
    fn tensors_must_have_the_shapes_that_the_numbers_say_and_all_have_a_use() {
        check_refused(keys("llama"), "tensor `token_embd.weight` is missing");
        let wider = ModelConfig { intermediate_size: 16, ..tiny() };
        check_refused(
            with_tensors(keys("llama"), &wider),
            "tensor `blk.0.ffn_gate.weight`: expected shape [12, 8], file has [16, 8]",
        );
        check_refused(
            with_tensors(keys("llama"), &tiny()).tensor("blk.0.attn_q.bias", &[8], TensorType::F32, &[1.0; 8]),
            "tensor `blk.0.attn_q.bias` does not belong to architecture `llama`",
        );
    }

    #[test]
    fn interleaved_rows_are_found_in_halves_order() {
        // Two heads of 4: pairs (0, 1) and (2, 3) of the file are (0, 2) and (1, 3) of a head in halves.
        assert_eq!(tiny().file_row_order(Projection::Q), Some(vec![0, 2, 1, 3, 4, 6, 5, 7]));
        assert_eq!(tiny().file_row_order(Projection::K), Some(vec![0, 2, 1, 3]));
        assert_eq!(tiny().file_row_order(Projection::V), None);
    }
}
