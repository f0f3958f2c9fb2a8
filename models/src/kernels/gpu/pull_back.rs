//! The way into a graph from a known gradient: nothing is computed.

use burn::backend::tensor::FloatTensor;

use super::launch::{Gpu, empty};
use crate::ops::pull_back::PullBackOps;

impl PullBackOps for Gpu {
    fn pull_back(y: FloatTensor<Self>, _: FloatTensor<Self>) -> FloatTensor<Self> {
        empty(&y, 1, 1)
    }
}
