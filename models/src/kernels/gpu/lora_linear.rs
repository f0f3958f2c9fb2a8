//! A projection with its LoRA branch: the way into few dimensions by burn's product, the way out of them and the residual by
//! the packed product's own kernel.

use burn::backend::tensor::FloatTensor;

use super::device_matrix::{Gpu, contiguous, primitive, tensor};
use super::packed_linear::{Onto, Thin, multiply};
use crate::ops::lora_linear::{
    Branch, Inputs, LoraLinearKernel, LoraLinearOps, Projected, Projection, ProjectionGradients, Returned,
};

impl LoraLinearKernel for Gpu {
    // A shared result costs launches of its own, and saves none.
    const JOINS: bool = false;

    fn project(
        x: &FloatTensor<Self>,
        projections: &[Projection<Self>],
        residual: Option<FloatTensor<Self>>,
    ) -> Vec<Projected<Self>> {
        let residual = residual.map(|residual| contiguous(residual).0);
        let project = |Projection { weight, branch }: &Projection<Self>| match branch {
            Some(Branch { a, b, scaling }) => {
                let (b, _) = contiguous(b.clone());
                let (thin, _) = contiguous(primitive(tensor(x.clone()).matmul(tensor(a.clone()).transpose())));
                let branch = Thin { thin: &thin, wide: &b, is_transposed: false, scaling: *scaling };
                let onto = Onto { base: residual.as_ref(), branch: Some(branch) };
                let y = multiply(x.clone(), weight, false, &onto);
                Projected { y, thin: Some(thin) }
            }
            None => {
                let onto = Onto { base: residual.as_ref(), branch: None };
                Projected { y: multiply(x.clone(), weight, false, &onto), thin: None }
            }
        };
        projections.iter().map(project).collect()
    }

    fn project_back(x: FloatTensor<Self>, returned: Vec<Returned<Self>>, with_dx: bool) -> ProjectionGradients<Self> {
        let mut gradients = ProjectionGradients { branches: Vec::new(), dx: None };
        for Returned { projection, thin, dy } in returned {
            let (of_branch, dx) = go_back(x.clone(), projection, thin, dy, with_dx);
            gradients.branches.push(of_branch);
            gradients.dx = match (gradients.dx, dx) {
                (Some(sum), Some(dx)) => Some(primitive(tensor(sum) + tensor(dx))),
                (sum, dx) => sum.or(dx),
            };
        }
        gradients
    }
}

/// The gradients of one projection: of A and B, and where `with_dx`, what it adds to that of `x`.
fn go_back(
    x: FloatTensor<Gpu>,
    Projection { weight, branch }: Projection<Gpu>,
    thin: Option<FloatTensor<Gpu>>,
    dy: FloatTensor<Gpu>,
    with_dx: bool,
) -> (Option<[FloatTensor<Gpu>; 2]>, Option<FloatTensor<Gpu>>) {
    let (Some(Branch { a, b, scaling }), Some(thin)) = (branch, thin) else {
        let dx = with_dx.then(|| multiply(dy, &weight, true, &Onto { base: None, branch: None }));
        return (None, dx);
    };
    let of_y = tensor(dy.clone());
    let (thin_dy, _) = contiguous(primitive(of_y.clone().matmul(tensor(b))));
    let da = tensor(thin_dy.clone()).transpose().matmul(tensor(x)).mul_scalar(scaling);
    let db = of_y.transpose().matmul(tensor(thin)).mul_scalar(scaling);
    let dx = with_dx.then(|| {
        let (a, _) = contiguous(a);
        let branch = Thin { thin: &thin_dy, wide: &a, is_transposed: true, scaling };
        multiply(dy, &weight, true, &Onto { base: None, branch: Some(branch) })
    });
    (Some([primitive(da), primitive(db)]), dx)
}

impl LoraLinearOps for Gpu {
    fn lora_linear(inputs: Inputs<Self>) -> Vec<FloatTensor<Self>> {
        Self::project(&inputs.x, &inputs.projections, inputs.residual)
            .into_iter()
            .map(|projected| projected.y)
            .collect()
    }
}
