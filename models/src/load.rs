//! A checked file and its family become a model, one tensor at a time.

use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};

use crate::Projection;
use crate::config::{ModelConfig, RopeScaling};
use crate::error::LoadError;
use crate::nn::{Attention, AttentionShape, Decoder, DecoderLayer, Linear, Mlp, RmsNorm};
use crate::ops::Frozen;
use crate::quant::PackedMatrix;
use crate::weights::Gguf;

/// Hands the tensors of one file to the family that puts them together. [`ModelConfig::from_gguf`] has checked that they are
/// there, have their shapes, and that none is left over.
pub(crate) struct Loader<'a> {
    gguf: &'a Arc<Gguf>,
    config: &'a ModelConfig,
    device: &'a Device,
}

impl<'a> Loader<'a> {
    pub(crate) fn new(gguf: &'a Arc<Gguf>, config: &'a ModelConfig, device: &'a Device) -> Self {
        Self { gguf, config, device }
    }

    /// The model whose layers have the attention that `attention` builds.
    ///
    /// # Errors
    /// [`LoadError`] names the tensor.
    pub(crate) fn decoder(
        &self,
        attention: impl Fn(usize) -> Result<Attention, LoadError>,
    ) -> Result<Decoder, LoadError> {
        let config = self.config;
        let vocabulary = [config.vocab_size, config.hidden_size];
        let embed_tokens = self.matrix("token_embd.weight", vocabulary)?;
        let lm_head = match config.tie_word_embeddings {
            true => embed_tokens.clone(),
            false => self.matrix("output.weight", vocabulary)?,
        };
        let layer = |layer: usize| {
            Ok(DecoderLayer {
                input_layernorm: self.norm(&format!("blk.{layer}.attn_norm.weight"), config.hidden_size)?,
                self_attn: attention(layer)?,
                post_attention_layernorm: self.norm(&format!("blk.{layer}.ffn_norm.weight"), config.hidden_size)?,
                mlp: Mlp {
                    gate_proj: self.linear(layer, Projection::Gate)?,
                    up_proj: self.linear(layer, Projection::Up)?,
                    down_proj: self.linear(layer, Projection::Down)?,
                },
            })
        };
        Ok(Decoder {
            embed_tokens,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_, LoadError>>()?,
            norm: self.norm("output_norm.weight", config.hidden_size)?,
            lm_head,
            rope_frequencies: rope_frequencies(config),
        })
    }

    pub(crate) fn attention_shape(&self) -> AttentionShape {
        AttentionShape::of(self.config)
    }

    /// A projection. Rows that the file holds in another order than adapters do are put into theirs, so that one form of
    /// rope and every adapter fit.
    pub(crate) fn linear(&self, layer: usize, projection: Projection) -> Result<Linear, LoadError> {
        let name = format!("blk.{layer}.{}.weight", projection.gguf_name());
        let matrix = PackedMatrix::from_gguf(self.gguf, &name, self.config.projection_shape(projection))?;
        let matrix = match self.config.file_row_order(projection) {
            Some(order) => matrix.select_rows(order),
            None => matrix,
        };
        Ok(Linear::new(Frozen::new(matrix), layer, projection))
    }

    /// A projection with a bias.
    pub(crate) fn biased_linear(&self, layer: usize, projection: Projection) -> Result<Linear, LoadError> {
        let name = format!("blk.{layer}.{}.bias", projection.gguf_name());
        let [d_out, _] = self.config.projection_shape(projection);
        Ok(self.linear(layer, projection)?.with_bias(self.vector(&name, d_out)?))
    }

    /// A norm over each head.
    pub(crate) fn head_norm(&self, layer: usize, name: &str) -> Result<RmsNorm, LoadError> {
        self.norm(&format!("blk.{layer}.{name}.weight"), self.config.head_dim)
    }

    fn norm(&self, name: &str, len: usize) -> Result<RmsNorm, LoadError> {
        Ok(RmsNorm::new(self.gguf.vector_f32(name, len)?, self.config.rms_norm_eps))
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Frozen, LoadError> {
        Ok(Frozen::new(PackedMatrix::from_gguf(self.gguf, name, shape)?))
    }

    fn vector(&self, name: &str, len: usize) -> Result<Tensor<1>, LoadError> {
        Ok(Tensor::from_data(TensorData::new(self.gguf.vector_f32(name, len)?, [len]), self.device))
    }
}

/// Radians per position of each pair of dimensions: `theta^(-2i / head_dim)`, slowed down as the scaling says.
fn rope_frequencies(config: &ModelConfig) -> Vec<f64> {
    let head_dim = config.head_dim as f64;
    let plain = |i: usize| f64::from(config.rope_theta).powf(-2.0 * i as f64 / head_dim);
    let divisor = |i: usize| match &config.rope_scaling {
        RopeScaling::None => 1.0,
        RopeScaling::Linear(factor) => f64::from(*factor),
        RopeScaling::Factors(factors) => f64::from(factors[i]),
    };
    (0..config.head_dim / 2).map(|i| plain(i) / divisor(i)).collect()
}
