//! Llama, and what shares its shape: SmolLM2, TinyLlama, Llama 3 with its rope scaling.

use super::Family;
use crate::Projection;
use crate::config::RopePairing;
use crate::error::LoadError;
use crate::load::Loader;
use crate::nn::{Attention, Decoder};

pub(crate) const LLAMA: Family =
    Family { name: "llama", rope_pairing: RopePairing::Interleaved, qkv_bias: false, qk_norm: false, build };

fn build(loader: &Loader<'_>) -> Result<Decoder, LoadError> {
    loader.decoder(|layer| {
        Ok(Attention {
            shape: loader.attention_shape(),
            q_proj: loader.linear(layer, Projection::Q)?,
            k_proj: loader.linear(layer, Projection::K)?,
            v_proj: loader.linear(layer, Projection::V)?,
            o_proj: loader.linear(layer, Projection::O)?,
            q_norm: None,
            k_norm: None,
        })
    })
}
