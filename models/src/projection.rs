//! The seven matrices of a decoder layer that can carry an adapter.

use std::fmt;

/// A matrix of a decoder layer. The order is that of [`Projection::ALL`], and of adapters in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Projection {
    /// Queries: hidden to heads.
    Q,
    /// Keys: hidden to key-value heads.
    K,
    /// Values: hidden to key-value heads.
    V,
    /// Attention output: heads to hidden.
    O,
    /// Gate of the feed-forward: hidden to intermediate.
    Gate,
    /// Up matrix of the feed-forward: hidden to intermediate.
    Up,
    /// Down matrix of the feed-forward: intermediate to hidden.
    Down,
}

impl Projection {
    /// All seven, in the order in which a layer uses them.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// The name in `config.json` and PEFT's `target_modules`, as `q_proj`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// The inverse of [`name`](Self::name).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|projection| projection.name() == name)
    }

    /// The name inside a GGUF file's `blk.N.`, as `attn_q`.
    pub fn gguf_name(self) -> &'static str {
        match self {
            Self::Q => "attn_q",
            Self::K => "attn_k",
            Self::V => "attn_v",
            Self::O => "attn_output",
            Self::Gate => "ffn_gate",
            Self::Up => "ffn_up",
            Self::Down => "ffn_down",
        }
    }

    /// The module that holds it in Hugging Face's models: `self_attn` or `mlp`.
    pub(crate) fn parent(self) -> &'static str {
        match self {
            Self::Q | Self::K | Self::V | Self::O => "self_attn",
            Self::Gate | Self::Up | Self::Down => "mlp",
        }
    }
}

impl fmt::Display for Projection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
