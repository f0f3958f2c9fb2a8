//! Qwen3: as Llama, with queries and keys normed per head, and heads whose sizes do not add up to the hidden size.

use super::Family;
use crate::Projection;
use crate::config::RopePairing;
use crate::error::LoadError;
use crate::load::Loader;
use crate::nn::{Attention, Decoder};

pub(crate) const QWEN3: Family =
    Family { name: "qwen3", rope_pairing: RopePairing::Halves, qkv_bias: false, qk_norm: true, build };

fn build(loader: &Loader<'_>) -> Result<Decoder, LoadError> {
    loader.decoder(|layer| {
        Ok(Attention {
            shape: loader.attention_shape(),
            q_proj: loader.linear(layer, Projection::Q)?,
            k_proj: loader.linear(layer, Projection::K)?,
            v_proj: loader.linear(layer, Projection::V)?,
            o_proj: loader.linear(layer, Projection::O)?,
            q_norm: Some(loader.head_norm(layer, "attn_q_norm")?),
            k_norm: Some(loader.head_norm(layer, "attn_k_norm")?),
        })
    })
}
