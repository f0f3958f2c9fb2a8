//! A projection: packed base, optional bias, optional LoRA branch.

use burn::tensor::Tensor;

use super::Pass;
use crate::Projection;
use crate::ops::{Frozen, packed_linear};

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
        let mut y = packed_linear(x.clone(), &self.weight);
        if let Some(bias) = &self.bias {
            y = y + bias.clone().unsqueeze::<2>();
        }
        match pass.adapter.and_then(|adapter| adapter.branch(self.layer, self.projection)) {
            Some(branch) => y + branch.forward(x),
            None => y,
        }
    }
}

impl LoraBranch {
    /// The same values as leaves of a graph.
    pub(crate) fn tracked(&self) -> Self {
        let leaf = |tensor: &Tensor<2>| tensor.clone().autodiff().require_grad();
        Self { a: leaf(&self.a), b: leaf(&self.b), scaling: self.scaling }
    }

    /// `scaling · (x · Aᵀ) · Bᵀ`; the thin product is scaled, never a full-sized one.
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let thin = x.matmul(self.a.clone().transpose()).mul_scalar(self.scaling);
        thin.matmul(self.b.clone().transpose())
    }
}
