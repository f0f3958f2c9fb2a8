//! A checked file and its family become a model, one tensor at a time.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};

use crate::Projection;
use crate::config::{ModelConfig, RopeScaling};
use crate::device::ComputeDevice;
use crate::error::LoadError;
use crate::kernels::cpu::tiled::TileArena;
use crate::nn::{Attention, AttentionShape, Decoder, DecoderLayer, Linear, Mlp, RmsNorm};
use crate::ops::Frozen;
use crate::quant::PackedMatrix;
use crate::weights::Gguf;

/// Hands the tensors of one file to the family that puts them together. [`ModelConfig::from_gguf`] has checked that they are
/// there, have their shapes, and that none is left over.
pub(crate) struct Loader<'a> {
    gguf: &'a Arc<Gguf>,
    config: &'a ModelConfig,
    device: &'a ComputeDevice,
    /// Where weights are repacked, if they are.
    arena: Option<TileArena>,
}

impl<'a> Loader<'a> {
    /// # Errors
    /// [`LoadError::Io`] if there is no memory to repack weights in.
    pub(crate) fn new(
        gguf: &'a Arc<Gguf>,
        config: &'a ModelConfig,
        device: &'a ComputeDevice,
    ) -> Result<Self, LoadError> {
        let matrices = gguf.tensors().iter().filter_map(|tensor| match tensor.shape[..] {
            [rows, cols] => Some((tensor.tensor_type, [rows, cols])),
            _ => None,
        });
        let arena = device.computes_with_tiles().then(|| TileArena::new(matrices)).transpose();
        Ok(Self { gguf, config, device, arena: arena.map_err(|source| no_memory(gguf, source))? })
    }

    /// Ends the loading: weights can be used from here on.
    ///
    /// # Errors
    /// [`LoadError::Io`] if the system cannot protect the memory of repacked weights.
    pub(crate) fn finish(self) -> Result<(), LoadError> {
        self.arena.map_or(Ok(()), TileArena::seal).map_err(|source| no_memory(self.gguf, source))
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
        let embed_tokens = PackedMatrix::from_gguf(self.gguf, "token_embd.weight", vocabulary)?;
        let lm_head = match config.tie_word_embeddings {
            true => self.frozen("token_embd.weight", embed_tokens.clone()),
            false => self.frozen("output.weight", PackedMatrix::from_gguf(self.gguf, "output.weight", vocabulary)?),
        };
        // One copy in memory where the form that products need has the same values.
        let embed_tokens = match config.tie_word_embeddings && lm_head.holds_exactly(embed_tokens.tensor_type()) {
            true => lm_head.clone(),
            false => Frozen::new(embed_tokens),
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
        Ok(Linear::new(self.frozen(&name, matrix), layer, projection))
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

    /// The matrix of tensor `name` in the form that the device computes with.
    fn frozen(&self, name: &str, matrix: PackedMatrix) -> Frozen {
        let Some(arena) = &self.arena else { return Frozen::new(matrix) };
        let tiles = arena.tile(&matrix);
        self.gguf.release(name);
        Frozen::new(tiles)
    }

    fn vector(&self, name: &str, len: usize) -> Result<Tensor<1>, LoadError> {
        Ok(Tensor::from_data(TensorData::new(self.gguf.vector_f32(name, len)?, [len]), self.device.burn()))
    }
}

fn no_memory(gguf: &Gguf, source: std::io::Error) -> LoadError {
    LoadError::Io { file: gguf.file().to_owned(), source }
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
