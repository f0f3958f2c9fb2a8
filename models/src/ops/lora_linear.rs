//! Projections of one input with their LoRA branches: `y = x · Wᵀ + scaling · (x · Aᵀ) · Bᵀ`, a single one onto a residual where there is one.
//!
//! ```text
//! g  = scaling · dy · B                    h = x · Aᵀ
//! dx = Σ over the projections of dy · W + g · A
//! dA = gᵀ · x            dB = scaling · dyᵀ · h            d residual = dy
//! ```
//!
//! One operation, so that full-sized sums and gradients are made once. `x` is not kept where it can be computed again from
//! what is kept anyway: it is asked for by its node.

use std::sync::{Arc, Mutex, PoisonError};

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, Backend, BackendTensor, Dispatch, DispatchAutodiffContext, DispatchTensor, DispatchTensorKind,
    ExtensionType, Flex, backend_extension,
};
use burn::tensor::Tensor;

use super::pull_back::scalar;
use super::{Frozen, contiguous, cpu_matrix};
use crate::kernels::cpu::{lora, lora_linear as kernel};

/// The branch of one projection on the device.
#[derive(Clone, Debug)]
pub struct LoraBranch {
    /// `[rank, d_in]`.
    pub a: Tensor<2>,
    /// `[d_out, rank]`.
    pub b: Tensor<2>,
    /// What the branch's result is multiplied with.
    pub scaling: f32,
}

/// Most projections of one input at once.
const MOST: usize = 3;

/// Several projections of `x`, each with its branch where it has one. A single one is added to `residual` where there is one.
///
/// # Shapes
/// `x` `[tokens, d_in]`, weights `[d_out, d_in]`, `residual` and the results `[tokens, d_out]`.
pub fn lora_linear<const N: usize>(
    x: Tensor<2>,
    projections: [(&Frozen, Option<&LoraBranch>); N],
    residual: Option<Tensor<2>>,
) -> [Tensor<2>; N] {
    const { assert!(N <= MOST) };
    let [_, d_in] = x.dims();
    assert!(N == 1 || residual.is_none(), "{N} projections onto one residual");
    let projections = projections.map(|(weight, branch)| {
        assert_eq!(d_in, weight.weights().cols(), "x has {d_in} columns, {weight:?}");
        let branch = branch.cloned().map(|LoraBranch { a, b, scaling }| {
            let ([rank, a_in], d_out) = (a.dims(), weight.weights().rows());
            assert_eq!((a_in, b.dims()), (d_in, [d_out, rank]), "A and B of rank {rank} and {weight:?}");
            Branch { a: a.into_dispatch(), b: b.into_dispatch(), scaling }
        });
        Projection { weight: weight.clone(), branch }
    });
    let (x, residual) = (x.into_dispatch(), residual.map(Tensor::into_dispatch));
    let y = <Dispatch as LoraLinearOps>::lora_linear(Inputs { x, projections: projections.into(), residual });
    let Ok(y) = <[_; N]>::try_from(y) else { panic!("{N} projections have as many results") };
    y.map(Tensor::from_dispatch)
}

/// What goes into the operation.
pub(crate) struct Inputs<B: Backend> {
    pub(crate) x: FloatTensor<B>,
    pub(crate) projections: Vec<Projection<B>>,
    pub(crate) residual: Option<FloatTensor<B>>,
}

/// One projection.
#[derive(Clone, Debug)]
pub(crate) struct Projection<B: Backend> {
    pub(crate) weight: Frozen,
    pub(crate) branch: Option<Branch<B>>,
}

/// [`LoraBranch`] on one backend.
#[derive(Clone, Debug)]
pub(crate) struct Branch<B: Backend> {
    pub(crate) a: FloatTensor<B>,
    pub(crate) b: FloatTensor<B>,
    pub(crate) scaling: f32,
}

/// What a projection makes of `x`.
pub(crate) struct Projected<B: Backend> {
    pub(crate) y: FloatTensor<B>,
    /// `x · Aᵀ`, `[tokens, rank]`.
    pub(crate) thin: Option<FloatTensor<B>>,
}

/// What comes back to a projection.
pub(crate) struct Returned<B: Backend> {
    pub(crate) projection: Projection<B>,
    /// [`Projected::thin`].
    pub(crate) thin: Option<FloatTensor<B>>,
    pub(crate) dy: FloatTensor<B>,
}

/// Gradients of some projections of one input.
pub(crate) struct ProjectionGradients<B: Backend> {
    /// d loss / d A and d loss / d B of each that has a branch.
    pub(crate) branches: Vec<Option<[FloatTensor<B>; 2]>>,
    pub(crate) dx: Option<FloatTensor<B>>,
}

/// What a device must compute for [`LoraLinearOps`].
pub(crate) trait LoraLinearKernel: Backend {
    /// Whether the gradients of several projections are cheaper together.
    const JOINS: bool;

    /// Every projection of `x`, onto `residual` where there is one.
    fn project(
        x: &FloatTensor<Self>,
        projections: &[Projection<Self>],
        residual: Option<FloatTensor<Self>>,
    ) -> Vec<Projected<Self>>;

    /// What every projection gives, without what only the way back needs.
    fn results(inputs: Inputs<Self>) -> Vec<FloatTensor<Self>> {
        let projected = Self::project(&inputs.x, &inputs.projections, inputs.residual);
        projected.into_iter().map(|projected| projected.y).collect()
    }

    /// The gradients of branches, and where `with_dx`, that of `x`.
    fn project_back(x: FloatTensor<Self>, returned: Vec<Returned<Self>>, with_dx: bool) -> ProjectionGradients<Self>;
}

/// Projections with branches.
#[backend_extension(Flex, Cube: cfg(feature = "gpu"), Autodiff)]
pub(crate) trait LoraLinearOps: Backend {
    /// Every projection of `x`.
    fn lora_linear(#[extension_type] inputs: Inputs<Self>) -> Vec<FloatTensor<Self>>;
}

/// What burn derives for structs that hold no lists.
impl<B: Backend> ExtensionType<B> for Inputs<B> {
    type Target = Inputs<Dispatch>;

    fn map_to_dispatch<F>(self, map_kind: F, autodiff: DispatchAutodiffContext) -> Self::Target
    where
        F: Fn(BackendTensor<B>) -> DispatchTensorKind,
    {
        self.map(|tensor| DispatchTensor { kind: map_kind(BackendTensor::Float(tensor)), autodiff })
    }

    fn map_from_dispatch<F>(target: Self::Target, unwrap_kind: F) -> Self
    where
        F: Fn(DispatchTensor) -> BackendTensor<B>,
    {
        target.map(|tensor| unwrap_kind(tensor).float())
    }

    fn routing_tensor(target: &Self::Target) -> Option<&DispatchTensor> {
        Some(&target.x)
    }

    fn routing_float_tensor(target: &Self::Target) -> Option<&DispatchTensor> {
        Some(&target.x)
    }

    fn autodiff_context(target: &Self::Target) -> DispatchAutodiffContext {
        let branches = target.projections.iter().filter_map(|projection| projection.branch.as_ref());
        let tensors = branches.flat_map(|branch| [&branch.a, &branch.b]).chain(&target.residual).chain([&target.x]);
        tensors.fold(DispatchAutodiffContext::Disabled, |context, tensor| context.merge(tensor.autodiff))
    }
}

impl<B: Backend> Inputs<B> {
    /// The same on another backend.
    fn map<T: Backend>(self, tensor: impl Fn(FloatTensor<B>) -> FloatTensor<T>) -> Inputs<T> {
        let projection = |Projection { weight, branch }| Projection {
            weight,
            branch: branch.map(|Branch::<B> { a, b, scaling }| Branch { a: tensor(a), b: tensor(b), scaling }),
        };
        Inputs {
            projections: self.projections.into_iter().map(projection).collect(),
            residual: self.residual.map(&tensor),
            x: tensor(self.x),
        }
    }
}

impl LoraLinearKernel for Flex {
    const JOINS: bool = true;

    fn project(
        x: &FloatTensor<Self>,
        projections: &[Projection<Self>],
        residual: Option<FloatTensor<Self>>,
    ) -> Vec<Projected<Self>> {
        let (x, [tokens, _]) = cpu_matrix(x);
        let residual = residual.map(|residual| cpu_matrix(&residual).0);
        let projected = with_slices(projections, |slices| {
            kernel::forward(contiguous(&x), slices, residual.as_ref().map(contiguous))
        });
        let tensors =
            projected.into_iter().zip(projections).map(|(lora::Projected { y, thin }, projection)| Projected {
                y: y.into_tensor([tokens, projection.weight.weights().rows()]),
                thin: projection.branch.is_some().then(|| {
                    let rank = thin.len() / tokens.max(1);
                    thin.into_tensor([tokens, rank])
                }),
            });
        tensors.collect()
    }

    fn project_back(x: FloatTensor<Self>, returned: Vec<Returned<Self>>, with_dx: bool) -> ProjectionGradients<Self> {
        let (x, x_shape) = cpu_matrix(&x);
        let thins: Vec<_> =
            returned.iter().map(|returned| returned.thin.as_ref().map(|thin| cpu_matrix(thin).0)).collect();
        let (projections, dys): (Vec<_>, Vec<_>) =
            returned.into_iter().map(|returned| (returned.projection, cpu_matrix(&returned.dy).0)).unzip();
        let (branches, dx) = with_slices(&projections, |slices| {
            let returned = slices.iter().zip(&thins).zip(&dys).map(|((&projection, thin), dy)| kernel::Returned {
                projection,
                thin: thin.as_ref().map_or(&[], contiguous),
                dy: contiguous(dy),
            });
            kernel::backward(contiguous(&x), &returned.collect::<Vec<_>>(), with_dx)
        });
        let branches = branches.into_iter().zip(&projections).map(|([da, db], projection)| {
            let (d_out, d_in) = (projection.weight.weights().rows(), projection.weight.weights().cols());
            projection.branch.is_some().then(|| {
                let rank = da.len() / d_in;
                [da.into_tensor([rank, d_in]), db.into_tensor([d_out, rank])]
            })
        });
        ProjectionGradients { branches: branches.collect(), dx: dx.map(|dx| dx.into_tensor(x_shape)) }
    }
}

/// Lends the values of projections.
fn with_slices<R>(projections: &[Projection<Flex>], work: impl FnOnce(&[kernel::Projection<'_>]) -> R) -> R {
    let matrices: Vec<_> = projections
        .iter()
        .map(|projection| {
            projection.branch.as_ref().map(|branch| (cpu_matrix(&branch.a), cpu_matrix(&branch.b).0, branch.scaling))
        })
        .collect();
    let slices = projections.iter().zip(&matrices).map(|(projection, matrices)| kernel::Projection {
        weight: projection.weight.weights(),
        branch: matrices.as_ref().map(|((a, [rank, _]), b, scaling)| lora::Branch {
            a: contiguous(a),
            b: contiguous(b),
            rank: *rank,
            scaling: *scaling,
        }),
    });
    work(&slices.collect::<Vec<_>>())
}

impl LoraLinearOps for Flex {
    fn lora_linear(inputs: Inputs<Self>) -> Vec<FloatTensor<Self>> {
        Self::results(inputs)
    }
}

/// What the way back needs, beside `x`, which is asked for by its node.
#[derive(Clone, Debug)]
struct Saved<B: Backend> {
    x: NodeId,
    projections: Vec<Projection<B>>,
    thins: Vec<Option<FloatTensor<B>>>,
    arrived: Arrived<B>,
}

/// The gradients of several results, from their own nodes.
type Arrived<B> = Arc<Mutex<Vec<Option<FloatTensor<B>>>>>;

/// All projections of one input. Its parents are the input, A and B of every branch, and the residual where there is one. Where there are
/// several results, its own is a scalar that carries nothing but the order of the way back: each of them is a [`Take`] behind it.
#[derive(Debug)]
struct Project;

/// One of several results.
#[derive(Debug)]
struct Take;

impl<B: LoraLinearKernel, const N: usize> Backward<B, N> for Project {
    type State = Saved<B>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let Saved { x, projections, thins, arrived } = ops.state;
        let x = checkpointer.retrieve_node_output::<FloatTensor<B>>(x);
        let mut dys = std::mem::take(&mut *arrived.lock().unwrap_or_else(PoisonError::into_inner));
        let dy = grads.consume::<B>(&ops.node);
        if projections.len() == 1 {
            dys = vec![Some(dy.clone())];
        }
        let mut parents = ops.parents.into_iter().map(|parent| parent.map(|parent| parent.id));
        let mut register = |parent: Option<Option<NodeId>>, gradient: Option<FloatTensor<B>>| {
            if let (Some(Some(parent)), Some(gradient)) = (parent, gradient) {
                grads.register::<B>(parent, gradient);
            }
        };
        let (to_x, mut returned, mut to_branches) = (parents.next(), Vec::new(), Vec::new());
        for ((projection, thin), dy) in projections.into_iter().zip(thins).zip(dys) {
            let to_branch = projection.branch.is_some().then(|| [parents.next(), parents.next()]);
            // A result that the loss does not depend on gives nothing.
            if let Some(dy) = dy {
                returned.push(Returned { projection, thin, dy });
                to_branches.push(to_branch);
            }
        }
        let ProjectionGradients { branches, dx } = B::project_back(x, returned, matches!(to_x, Some(Some(_))));
        register(to_x, dx);
        for ([to_a, to_b], [da, db]) in to_branches.into_iter().zip(branches).filter_map(|(to, of)| Some((to?, of?))) {
            register(to_a, Some(da));
            register(to_b, Some(db));
        }
        register(parents.next(), Some(dy));
    }
}

impl<B: Backend> Backward<B, 1> for Take {
    type State = (Arrived<B>, usize);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (arrived, index) = ops.state;
        let dy = grads.consume::<B>(&ops.node);
        let [parent] = ops.parents;
        if let Some(parent) = parent {
            grads.register::<B>(parent.id, scalar::<B>(&dy));
        }
        arrived.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(dy);
    }
}

impl<B: LoraLinearKernel + LoraLinearOps, C: CheckpointStrategy> LoraLinearOps for Autodiff<B, C> {
    fn lora_linear(inputs: Inputs<Self>) -> Vec<FloatTensor<Self>> {
        let Inputs { x, projections, residual } = inputs;
        if !B::JOINS && projections.len() > 1 {
            let alone = |projection| Inputs { x: x.clone(), projections: vec![projection], residual: None };
            return projections.into_iter().flat_map(|projection| Self::lora_linear(alone(projection))).collect();
        }
        let input = x.clone();
        let (x, x_node) = x.into_parts();
        let mut nodes = vec![x_node];
        let mut inner = |tensor: FloatTensor<Self>| {
            let (tensor, node) = tensor.into_parts();
            nodes.push(node);
            tensor
        };
        let projections: Vec<Projection<B>> = projections
            .into_iter()
            .map(|Projection { weight, branch }| Projection {
                weight,
                branch: branch.map(|Branch::<Self> { a, b, scaling }| Branch { a: inner(a), b: inner(b), scaling }),
            })
            .collect();
        let residual = residual.map(inner);
        let projected = B::project(&x, &projections, residual);
        let record = match nodes.len() {
            1 => record::<B, C, 1>,
            2 => record::<B, C, 2>,
            3 => record::<B, C, 3>,
            4 => record::<B, C, 4>,
            5 => record::<B, C, 5>,
            7 => record::<B, C, 7>,
            nodes => panic!("at most {MOST} projections, or one onto a residual, not {nodes} inputs"),
        };
        record(&input, nodes, projections, projected)
    }
}

/// Puts projections into the graph.
fn record<B: LoraLinearKernel, C: CheckpointStrategy, const N: usize>(
    input: &FloatTensor<Autodiff<B, C>>,
    nodes: Vec<NodeGuard>,
    projections: Vec<Projection<B>>,
    projected: Vec<Projected<B>>,
) -> Vec<FloatTensor<Autodiff<B, C>>> {
    let Ok(nodes) = <[NodeGuard; N]>::try_from(nodes) else { panic!("there are {N} inputs") };
    let (mut results, thins): (Vec<_>, Vec<_>) = projected.into_iter().map(|of| (of.y, of.thin)).unzip();
    let arrived: Arrived<B> = Arc::new(Mutex::new(vec![None; results.len()]));
    let own = if results.len() == 1 { results.remove(0) } else { scalar::<B>(&results[0]) };
    let joint = match Backward::<B, N>::prepare::<C>(Project, nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let x = prep.checkpoint(input);
            prep.finish(Saved { x, projections, thins, arrived: Arc::clone(&arrived) }, own)
        }
        OpsKind::UnTracked(prep) => prep.finish(own),
    };
    if results.is_empty() {
        return vec![joint];
    }
    let take = |(index, y)| match Backward::<B, 1>::prepare::<C>(Take, [joint.node()]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish((Arc::clone(&arrived), index), y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    };
    results.into_iter().enumerate().map(take).collect()
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution, Gradients};

    use super::*;
    use crate::nn::tracked;
    use crate::quant::{PackedMatrix, TensorType};

    fn noise(rows: usize, cols: usize) -> Tensor<2> {
        Tensor::random([rows, cols], Distribution::Uniform(-1.0, 1.0), &Device::flex())
    }

    fn values(tensor: Tensor<2>) -> Vec<f32> {
        tensor.into_data().try_to_vec().expect("f32 values")
    }

    #[test]
    fn together_they_give_what_each_gives_alone_also_where_the_loss_needs_only_some() {
        let (tokens, d_in, rank) = (9, 32, 3);
        let weights = [40, 24, 16].map(|d_out| {
            let numbers: Vec<f32> = (0..d_out * d_in).map(|i| (i * 7919 % 101) as f32 / 50.0 - 1.0).collect();
            Frozen::new(PackedMatrix::quantize(TensorType::Q8_0, [d_out, d_in], &numbers))
        });
        let x = tracked(noise(tokens, d_in));
        let branches = weights.each_ref().map(|weight| LoraBranch {
            a: tracked(noise(rank, d_in)),
            b: tracked(noise(weight.weights().rows(), rank)),
            scaling: 2.0,
        });
        // The second one has no branch, and nothing depends on the first one.
        let places = [(&weights[0], Some(&branches[0])), (&weights[1], None), (&weights[2], Some(&branches[2]))];
        let loss = |[_, b, c]: [Tensor<2>; 3]| (b.powi_scalar(2)).sum() + (c.powi_scalar(2)).sum();
        let alone = |place| {
            let [y] = lora_linear(x.clone(), [place], None);
            y
        };
        let together = lora_linear(x.clone(), places, None);
        for (together, place) in together.iter().zip(places) {
            assert_eq!(values(together.clone().inner()), values(alone(place).inner()));
        }
        let [found, expected]: [Gradients; 2] = [loss(together).backward(), loss(places.map(alone)).backward()];
        for (name, leaf) in [("x", &x), ("A", &branches[2].a), ("B", &branches[2].b)] {
            let of = |gradients| values(leaf.grad(gradients).expect("the loss depends on it"));
            assert_eq!(of(&found), of(&expected), "gradient of {name}");
        }
        assert!(branches[0].a.grad(&found).is_none() && branches[0].b.grad(&found).is_none());
    }
}
