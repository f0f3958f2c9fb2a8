//! A projection: packed base, optional bias, optional LoRA branch.

use burn::tensor::Tensor;

use super::{Pass, tracked};
use crate::Projection;
use crate::ops::{Frozen, LoraBranch, lora_linear};

/// `y = x · Wᵀ + bias + scaling · (x · Aᵀ) · Bᵀ`, the last term where the pass brings an adapter for this place.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Frozen,
    bias: Option<Tensor<1>>,
    layer: usize,
    projection: Projection,
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

    /// Several projections of one input.
    ///
    /// # Shapes
    /// `x` `[tokens, d_in]`, results `[tokens, d_out]`.
    pub(crate) fn forward_all<const N: usize>(
        projections: [&Self; N],
        x: Tensor<2>,
        pass: &Pass<'_>,
    ) -> [Tensor<2>; N] {
        let y = lora_linear(x, projections.map(|projection| projection.with_branch(pass)), None);
        let mut projections = projections.into_iter();
        y.map(|y| match projections.next() {
            Some(projection) => with_bias(y, &projection.bias),
            None => y,
        })
    }

    /// `residual + x · Wᵀ + …`.
    ///
    /// # Shapes
    /// `x` `[tokens, d_in]`, `residual` and the result `[tokens, d_out]`.
    pub(crate) fn forward_onto(&self, residual: Tensor<2>, x: Tensor<2>, pass: &Pass<'_>) -> Tensor<2> {
        let [y] = lora_linear(x, [self.with_branch(pass)], Some(residual));
        with_bias(y, &self.bias)
    }

    fn with_branch<'a>(&'a self, pass: &Pass<'a>) -> (&'a Frozen, Option<&'a LoraBranch>) {
        (&self.weight, pass.adapter.and_then(|adapter| adapter.branch(self.layer, self.projection)))
    }
}

fn with_bias(y: Tensor<2>, bias: &Option<Tensor<1>>) -> Tensor<2> {
    match bias {
        Some(bias) => y + bias.clone().unsqueeze::<2>(),
        None => y,
    }
}

impl LoraBranch {
    /// The same values as leaves of a graph.
    pub(crate) fn tracked(&self) -> Self {
        let leaf = |tensor: &Tensor<2>| tracked(tensor.clone());
        Self { a: leaf(&self.a), b: leaf(&self.b), scaling: self.scaling }
    }
}
