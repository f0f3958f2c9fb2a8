//! A projection with its LoRA branch: the way into few dimensions by burn's product, the way out of them and the residual by
//! the packed product's own kernel.

use burn::backend::tensor::FloatTensor;

use super::device_matrix::{Gpu, contiguous, primitive, tensor};
use super::packed_linear::{Onto, Thin, multiply};
use crate::ops::Frozen;
use crate::ops::lora_linear::{Branch, LoraLinearKernel, LoraLinearOps};

impl LoraLinearKernel for Gpu {
    fn lora_forward(
        x: &FloatTensor<Self>,
        [a, b]: [&FloatTensor<Self>; 2],
        weight: &Frozen,
        scaling: f32,
        residual: Option<FloatTensor<Self>>,
    ) -> [FloatTensor<Self>; 2] {
        let (residual, (b, _)) = (residual.map(|residual| contiguous(residual).0), contiguous(b.clone()));
        let (thin, _) = contiguous(primitive(tensor(x.clone()).matmul(tensor(a.clone()).transpose())));
        let branch = Thin { thin: &thin, wide: &b, is_transposed: false, scaling };
        let onto = Onto { base: residual.as_ref(), branch: Some(branch) };
        let y = multiply(x.clone(), weight, false, &onto);
        [y, thin]
    }

    fn lora_backward(
        branch: Branch<Self>,
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        with_dx: bool,
    ) -> ([FloatTensor<Self>; 2], Option<FloatTensor<Self>>) {
        let Branch { a, b, thin, weight, scaling } = branch;
        let of_y = tensor(dy.clone());
        let (thin_dy, _) = contiguous(primitive(of_y.clone().matmul(tensor(b))));
        let da = tensor(thin_dy.clone()).transpose().matmul(tensor(x)).mul_scalar(scaling);
        let db = of_y.transpose().matmul(tensor(thin)).mul_scalar(scaling);
        let dx = with_dx.then(|| {
            let (a, _) = contiguous(a);
            let branch = Thin { thin: &thin_dy, wide: &a, is_transposed: true, scaling };
            multiply(dy, &weight, true, &Onto { base: None, branch: Some(branch) })
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
