//! Rotary position embedding in the half-split form: dimension `i` of a head turns with dimension `i + head_dim / 2`.
//! Its gradient is the turn back.

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::device_copy::DeviceCopy;
use super::{contiguous, cpu_matrix};
use crate::kernels::cpu::buffer::Buffer;

/// Turns each head of each row by its position's angles.
///
/// # Shapes
/// `x` and the result `[rows, heads · head_dim]`; `angles` for the same rows.
pub fn rope(x: Tensor<2>, angles: &RopeAngles) -> Tensor<2> {
    let [rows, width] = x.dims();
    assert_eq!(rows, angles.rows(), "x has {rows} rows, the angles {}", angles.rows());
    assert_eq!(width % (2 * angles.half()), 0, "{width} columns are no whole heads of {}", 2 * angles.half());
    Tensor::from_dispatch(<Dispatch as RopeOps>::rope(x.into_dispatch(), angles.clone()))
}

/// Cosines and sines, `[rows, head_dim / 2]` each.
#[derive(Debug)]
struct Turns {
    cos: Vec<f32>,
    sin: Vec<f32>,
    cos_on_device: DeviceCopy,
    sin_on_device: DeviceCopy,
}

/// Cosines and sines of some rows' positions; cloning copies a pointer.
#[derive(Clone, Debug)]
pub struct RopeAngles {
    turns: Arc<Turns>,
    half: usize,
    /// 1, or -1 for the turn back.
    direction: f32,
}

impl RopeAngles {
    /// Angles `position · frequency`, computed in f64 and rounded once.
    ///
    /// `frequencies` has `head_dim / 2` values, in radians per position.
    pub fn new(positions: impl Iterator<Item = usize>, frequencies: &[f64]) -> Self {
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for position in positions {
            for frequency in frequencies {
                // torch rounds the frequency to f32 first and the product again; golden numbers are compared with that.
                let angle = position as f32 * *frequency as f32;
                let (s, c) = f64::from(angle).sin_cos();
                cos.push(c as f32);
                sin.push(s as f32);
            }
        }
        Self {
            turns: Arc::new(Turns {
                cos,
                sin,
                cos_on_device: DeviceCopy::default(),
                sin_on_device: DeviceCopy::default(),
            }),
            half: frequencies.len(),
            direction: 1.0,
        }
    }

    /// The same turns in the other direction.
    pub(crate) fn inverse(&self) -> Self {
        Self { direction: -self.direction, ..self.clone() }
    }

    /// Rows that there are angles for.
    pub(crate) fn rows(&self) -> usize {
        self.turns.cos.len() / self.half
    }

    /// Half of the head size.
    pub(crate) fn half(&self) -> usize {
        self.half
    }

    /// Cosines, `[rows, head_dim / 2]`.
    pub(crate) fn cos(&self) -> &[f32] {
        &self.turns.cos
    }

    /// Sines, `[rows, head_dim / 2]`, to be multiplied with [`Self::direction`].
    pub(crate) fn sin(&self) -> &[f32] {
        &self.turns.sin
    }

    /// Copies of cosines and sines that `upload` made at the first call.
    #[cfg_attr(not(feature = "gpu"), expect(dead_code))]
    pub(crate) fn on_device<T: Send + Sync + 'static>(&self, upload: impl Fn(&[f32]) -> T) -> [&T; 2] {
        let turns = &self.turns;
        [turns.cos_on_device.get(|| upload(&turns.cos)), turns.sin_on_device.get(|| upload(&turns.sin))]
    }

    /// 1, or -1 for the turn back.
    pub(crate) fn direction(&self) -> f32 {
        self.direction
    }
}

/// The rotation, forwards and backwards.
#[backend_extension(Flex, Cube: cfg(feature = "gpu"), Autodiff)]
pub(crate) trait RopeOps: Backend {
    /// Turns `x` `[rows, heads · head_dim]` by `angles`.
    fn rope(x: FloatTensor<Self>, angles: RopeAngles) -> FloatTensor<Self>;
}

impl RopeOps for Flex {
    fn rope(x: FloatTensor<Self>, angles: RopeAngles) -> FloatTensor<Self> {
        let (x, [rows, width]) = cpu_matrix(&x);
        let mut y = Buffer::new(rows * width);
        let half = angles.half();
        let by_row = y.par_chunks_mut(width).zip(contiguous(&x).par_chunks(width));
        let turns = angles.cos().par_chunks(half).zip(angles.sin().par_chunks(half));
        by_row.zip(turns).with_min_len(16).for_each(|((y, x), (cos, sin))| {
            for (y, x) in y.chunks_exact_mut(2 * half).zip(x.chunks_exact(2 * half)) {
                let (y_first, y_second) = y.split_at_mut(half);
                let (x_first, x_second) = x.split_at(half);
                for i in 0..half {
                    let sin = sin[i] * angles.direction();
                    y_first[i] = x_first[i] * cos[i] - x_second[i] * sin;
                    y_second[i] = x_second[i] * cos[i] + x_first[i] * sin;
                }
            }
        });
        y.into_tensor([rows, width])
    }
}

#[derive(Debug)]
struct Turn;

impl<B: RopeOps> Backward<B, 1> for Turn {
    type State = RopeAngles;

    fn backward(self, ops: Ops<RopeAngles, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let angles = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |dy| B::rope(dy, angles.inverse()));
    }
}

impl<B: RopeOps, C: CheckpointStrategy> RopeOps for Autodiff<B, C> {
    fn rope(x: FloatTensor<Self>, angles: RopeAngles) -> FloatTensor<Self> {
        let (x, node) = x.into_parts();
        let y = B::rope(x, angles.clone());
        match Backward::<B, 1>::prepare::<C>(Turn, [node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(angles, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}
