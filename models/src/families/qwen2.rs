//! Qwen2 and Qwen2.5: as Llama, with biases on q, k and v.

use super::Family;
use crate::Projection;
use crate::config::RopePairing;
use crate::error::LoadError;
use crate::load::Loader;
use crate::nn::{Attention, Decoder};

pub(crate) const QWEN2: Family =
    Family { name: "qwen2", rope_pairing: RopePairing::Halves, qkv_bias: true, qk_norm: false, build };

fn build(loader: &Loader<'_>) -> Result<Decoder, LoadError> {
    loader.decoder(|layer| {
        Ok(Attention {
            shape: loader.attention_shape(),
            q_proj: loader.biased_linear(layer, Projection::Q)?,
            k_proj: loader.biased_linear(layer, Projection::K)?,
            v_proj: loader.biased_linear(layer, Projection::V)?,
            o_proj: loader.linear(layer, Projection::O)?,
            q_norm: None,
            k_norm: None,
        })
    })
}
