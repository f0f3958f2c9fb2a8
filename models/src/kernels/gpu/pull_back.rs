//! The way into a graph from a known gradient: nothing is computed.

use burn::backend::tensor::FloatTensor;

use super::device_matrix::Gpu;
use crate::ops::pull_back::{PullBackOps, scalar};

impl PullBackOps for Gpu {
    fn pull_back(y: FloatTensor<Self>, _: FloatTensor<Self>) -> FloatTensor<Self> {
        scalar::<Self>(&y)
    }
}
