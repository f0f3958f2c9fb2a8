//! Model families, one a file, named after `model_type` in `config.json` and `general.architecture` in GGUF.
//!
//! A family says which tensors a layer has and how they are put together. It knows neither quantization nor LoRA: both are
//! inside the linear layer of `nn`.

mod llama;
mod qwen2;
mod qwen3;

use crate::config::RopePairing;
use crate::error::LoadError;
use crate::load::Loader;
use crate::nn::Decoder;

/// One family: what its files hold, and how a model is built from them.
#[derive(Debug)]
pub(crate) struct Family {
    /// `general.architecture` of its files.
    pub(crate) name: &'static str,
    /// How rotary pairs lie in the rows of q and k.
    pub(crate) rope_pairing: RopePairing,
    /// Whether q, k and v add a bias.
    pub(crate) qkv_bias: bool,
    /// Whether queries and keys are normed per head.
    pub(crate) qk_norm: bool,
    /// Puts the layers together.
    pub(crate) build: fn(&Loader<'_>) -> Result<Decoder, LoadError>,
}

/// Every family that can be loaded: a new one is a file and a line here.
pub(crate) const FAMILIES: &[&Family] = &[&llama::LLAMA, &qwen2::QWEN2, &qwen3::QWEN3];

/// The family of this name, if it is known.
pub(crate) fn find(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| family.name == name).copied()
}
