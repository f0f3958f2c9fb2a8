//! Causal attention with grouped queries: `softmax(q · kᵀ / sqrt(head_dim)) · v`, each query over the keys up to its own
//! position. Probabilities are computed again in the backward pass rather than kept.

use std::ops::Range;
use std::sync::Arc;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;

use super::{contiguous, cpu_matrix};
use crate::kernels::cpu::{attention as kernel, buffer::Buffer};

/// Where keys or values lie in their tensor, in floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operand {
    /// From one key-value head to the next.
    pub(crate) head_stride: usize,
    /// From one position to the next.
    pub(crate) token_stride: usize,
}

/// Sizes of one attention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Queries of each sequence of the batch; the sequences lie one after another, and none sees another.
    pub(crate) lengths: Arc<[usize]>,
    /// Positions before the first query, whose keys are there already.
    pub(crate) past: usize,
    /// Query heads.
    pub(crate) heads: usize,
    /// Key and value heads; divides the query heads.
    pub(crate) key_value_heads: usize,
    /// Values of a head.
    pub(crate) head_dim: usize,
    /// Positions that each head of a cache has room for; none where keys and values are those of the batch.
    pub(crate) room: Option<usize>,
}

impl Geometry {
    /// A batch without a cache: keys and values `[tokens, key_value_heads · head_dim]`.
    pub fn of_batch(lengths: Arc<[usize]>, heads: usize, key_value_heads: usize, head_dim: usize) -> Self {
        Self { lengths, past: 0, heads, key_value_heads, head_dim, room: None }
    }

    /// One sequence with a cache: keys and values `[key_value_heads · room, head_dim]`, of which as many positions are filled
    /// as there were before and are new.
    pub fn of_cache(
        lengths: Arc<[usize]>,
        past: usize,
        room: usize,
        heads: usize,
        key_value_heads: usize,
        head_dim: usize,
    ) -> Self {
        assert_eq!(lengths.len(), 1, "a cache is of one sequence");
        Self { lengths, past, heads, key_value_heads, head_dim, room: Some(room) }
    }

    /// Where keys and values lie.
    pub(crate) fn operand(&self) -> Operand {
        match self.room {
            Some(room) => Operand { head_stride: room * self.head_dim, token_stride: self.head_dim },
            None => Operand { head_stride: self.head_dim, token_stride: self.key_value_heads * self.head_dim },
        }
    }

    /// Queries of all sequences.
    pub(crate) fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// The tokens of each sequence.
    pub(crate) fn sequences(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.lengths.iter().scan(0, |end, length| {
            let first = *end;
            *end += length;
            Some(first..*end)
        })
    }

    /// Columns of queries and of the result.
    pub(crate) fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// The key-value head that a query head reads.
    pub(crate) fn key_head(&self, head: usize) -> usize {
        head / (self.heads / self.key_value_heads)
    }
}

/// Answers every query.
///
/// # Shapes
/// `q` and the result `[tokens, heads · head_dim]`; `k` and `v` as the geometry says.
///
/// # Panics
/// In the backward pass if the geometry is that of a cache: nothing is learned while decoding.
pub fn attention(q: Tensor<2>, k: Tensor<2>, v: Tensor<2>, geometry: Geometry) -> Tensor<2> {
    assert_eq!(q.dims(), [geometry.tokens(), geometry.query_width()], "queries of {geometry:?}");
    let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
    Tensor::from_dispatch(<Dispatch as AttentionOps>::causal_attention(q, k, v, geometry))
}

/// What a device must compute for [`AttentionOps`].
pub(crate) trait AttentionKernel: Backend {
    /// d loss / d q, k and v, for a batch without a cache.
    fn attention_backward(
        inputs: [FloatTensor<Self>; 3],
        d_out: FloatTensor<Self>,
        geometry: &Geometry,
    ) -> [FloatTensor<Self>; 3];
}

/// Causal attention.
#[backend_extension(Flex, Cube: cfg(feature = "gpu"), Autodiff)]
pub(crate) trait AttentionOps: Backend {
    /// `softmax(q · kᵀ / sqrt(head_dim)) · v`.
    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        geometry: Geometry,
    ) -> FloatTensor<Self>;
}

impl AttentionOps for Flex {
    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        geometry: Geometry,
    ) -> FloatTensor<Self> {
        let ((q, shape), (k, _), (v, _)) = (cpu_matrix(&q), cpu_matrix(&k), cpu_matrix(&v));
        let mut out = Buffer::new(shape[0] * shape[1]);
        kernel::forward(&geometry, contiguous(&q), contiguous(&k), contiguous(&v), &mut out);
        out.into_tensor(shape)
    }
}

impl AttentionKernel for Flex {
    fn attention_backward(
        inputs: [FloatTensor<Self>; 3],
        d_out: FloatTensor<Self>,
        geometry: &Geometry,
    ) -> [FloatTensor<Self>; 3] {
        let [(q, q_shape), (k, k_shape), (v, v_shape)] = inputs.each_ref().map(cpu_matrix);
        let (d_out, _) = cpu_matrix(&d_out);
        let [mut dq, mut dk, mut dv] = [q_shape, k_shape, v_shape].map(|[rows, cols]| Buffer::new(rows * cols));
        let (q, k, v) = (contiguous(&q), contiguous(&k), contiguous(&v));
        kernel::backward(geometry, q, k, v, contiguous(&d_out), [&mut dq, &mut dk, &mut dv]);
        [dq.into_tensor(q_shape), dk.into_tensor(k_shape), dv.into_tensor(v_shape)]
    }
}

#[derive(Debug)]
struct Attend;

impl<B: AttentionKernel> Backward<B, 3> for Attend {
    type State = ([FloatTensor<B>; 3], Geometry);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let d_out = grads.consume::<B>(&ops.node);
        let (inputs, geometry) = ops.state;
        let gradients = B::attention_backward(inputs, d_out, &geometry);
        for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

impl<B: AttentionKernel + AttentionOps, C: CheckpointStrategy> AttentionOps for Autodiff<B, C> {
    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        geometry: Geometry,
    ) -> FloatTensor<Self> {
        let ((q, q_node), (k, k_node), (v, v_node)) = (q.into_parts(), k.into_parts(), v.into_parts());
        let out = B::causal_attention(q.clone(), k.clone(), v.clone(), geometry.clone());
        match Backward::<B, 3>::prepare::<C>(Attend, [q_node, k_node, v_node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                assert_eq!(geometry.past, 0, "nothing is learned while decoding");
                prep.finish(([q, k, v], geometry), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}
