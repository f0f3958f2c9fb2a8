//! A projection: packed base, optional bias, optional LoRA branch.

use burn::tensor::Tensor;

use super::{Pass, tracked};
use crate::Projection;
use crate::ops::{Frozen, lora_linear, packed_linear};

/// `y = x · Wᵀ + bias + scaling · (x · Aᵀ) · Bᵀ`, the last term where the pass brings an adapter for this place.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Frozen,
    bias: Option<Tensor<1>>,
    layer: usize,
    projection: Projection,
}

/// The branch of one projection on the device: A `[rank, d_in]`, B `[d_out, rank]`.
#[derive(Clone, Debug)]
pub(crate) struct LoraBranch {
    pub(crate) a: Tensor<2>,
    pub(crate) b: Tensor<2>,
    pub(crate) scaling: f32,
}

impl Linear {
    /// A projection of decoder layer `layer`, counted from 0.
    pub(crate) fn new(weight: Frozen, layer: usize, projection: Projection) -> Self {
        Self { weight, bias: None, layer, projection }
    }

    /// The same with a bias `[d_out]`.
    pub(crate) fn with_bias(self, bias: Tensor<1>) -> Self {
        Self { bias: Some(bias), ..self }
    }

    /// # Shapes
    /// `x` `[tokens, d_in]`, result `[tokens, d_out]`.
    pub(crate) fn forward(&self, x: Tensor<2>, pass: &Pass<'_>) -> Tensor<2> {
        self.project(x, None, pass)
    }

    /// `residual + forward(x)`.
    ///
    /// # Shapes
    /// `x` `[tokens, d_in]`, `residual` and the result `[tokens, d_out]`.
    pub(crate) fn forward_onto(&self, residual: Tensor<2>, x: Tensor<2>, pass: &Pass<'_>) -> Tensor<2> {
        self.project(x, Some(residual), pass)
    }

    fn project(&self, x: Tensor<2>, residual: Option<Tensor<2>>, pass: &Pass<'_>) -> Tensor<2> {
        let y = match pass.adapter.and_then(|adapter| adapter.branch(self.layer, self.projection)) {
            Some(LoraBranch { a, b, scaling }) => {
                lora_linear(x, &self.weight, [a.clone(), b.clone()], *scaling, residual)
            }
            None => match residual {
                Some(residual) => residual + packed_linear(x, &self.weight),
                None => packed_linear(x, &self.weight),
            },
        };
        match &self.bias {
            Some(bias) => y + bias.clone().unsqueeze::<2>(),
            None => y,
        }
    }
}

impl LoraBranch {
    /// The same values as leaves of a graph.
    pub(crate) fn tracked(&self) -> Self {
        let leaf = |tensor: &Tensor<2>| tracked(tensor.clone());
        Self { a: leaf(&self.a), b: leaf(&self.b), scaling: self.scaling }
    }
}
