//! A projection with its LoRA branch: the packed product by its kernel, the thin ones by burn's operations.

use burn::backend::tensor::FloatTensor;

use super::device_matrix::{Gpu, primitive, tensor};
use crate::ops::Frozen;
use crate::ops::lora_linear::{Branch, LoraLinearKernel, LoraLinearOps};
use crate::ops::packed_linear::PackedLinearOps;

impl LoraLinearKernel for Gpu {
    fn lora_forward(
        x: &FloatTensor<Self>,
        [a, b]: [&FloatTensor<Self>; 2],
        weight: &Frozen,
        scaling: f32,
        residual: Option<FloatTensor<Self>>,
    ) -> [FloatTensor<Self>; 2] {
        let y = tensor(Self::packed_linear(x.clone(), weight.clone()));
        let y = match residual {
            Some(residual) => y + tensor(residual),
            None => y,
        };
        let thin = tensor(x.clone()).matmul(tensor(a.clone()).transpose());
        let y = y + thin.clone().mul_scalar(scaling).matmul(tensor(b.clone()).transpose());
        [primitive(y), primitive(thin)]
    }

    fn lora_backward(
        branch: Branch<Self>,
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        with_dx: bool,
    ) -> ([FloatTensor<Self>; 2], Option<FloatTensor<Self>>) {
        let Branch { a, b, thin, weight, scaling } = branch;
        let of_y = tensor(dy.clone());
        let g = of_y.clone().matmul(tensor(b)).mul_scalar(scaling);
        let da = g.clone().transpose().matmul(tensor(x));
        let db = of_y.transpose().matmul(tensor(thin)).mul_scalar(scaling);
        let dx = with_dx.then(|| {
            let through_base = tensor(Self::packed_linear_transposed(dy, weight));
            primitive(through_base + g.matmul(tensor(a)))
        });
        ([primitive(da), primitive(db)], dx)
    }
}

impl LoraLinearOps for Gpu {
    fn lora_linear(
        x: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        weight: Frozen,
        scaling: f32,
    ) -> FloatTensor<Self> {
        let [y, _] = Self::lora_forward(&x, [&a, &b], &weight, scaling, None);
        y
    }

    fn lora_linear_onto(
        residual: FloatTensor<Self>,
        x: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        weight: Frozen,
        scaling: f32,
    ) -> FloatTensor<Self> {
        let [y, _] = Self::lora_forward(&x, [&a, &b], &weight, scaling, Some(residual));
        y
    }
}
