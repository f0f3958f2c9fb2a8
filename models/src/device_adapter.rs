//! An adapter's tensors on a device, for one or several passes.

use burn::tensor::{Gradients, Tensor, TensorData};

use crate::Projection;
use crate::adapter::Adapter;
use crate::compute_error::ComputeError;
use crate::device::ComputeDevice;
use crate::nn::LoraBranch;

/// A copy of an [`Adapter`] on the device. The host's values stay the authority: they are uploaded for each step.
#[derive(Debug)]
pub struct DeviceAdapter {
    device: ComputeDevice,
    branches: Vec<LoraBranch>,
    /// `[layer][projection]`: which branch, if any.
    places: Vec<[Option<usize>; Projection::ALL.len()]>,
    len_values: usize,
}

impl DeviceAdapter {
    /// Uploads `adapter`.
    pub(crate) fn new(adapter: &Adapter, device: &ComputeDevice, num_layers: usize) -> Self {
        let upload = |values: &[f32], shape: [usize; 2]| {
            Tensor::<2>::from_data(TensorData::new(values.to_vec(), shape), device.burn())
        };
        let mut places = vec![[None; Projection::ALL.len()]; num_layers];
        let mut branches = Vec::new();
        for pair in adapter.layout().pairs() {
            places[pair.layer][pair.projection as usize] = Some(branches.len());
            branches.push(LoraBranch {
                a: upload(&adapter.values()[pair.a.clone()], [pair.rank, pair.d_in]),
                b: upload(&adapter.values()[pair.b.clone()], [pair.d_out, pair.rank]),
                scaling: adapter.scaling(),
            });
        }
        Self { device: device.clone(), branches, places, len_values: adapter.values().len() }
    }

    /// The largest rank of its branches; 0 where there are none.
    pub fn rank(&self) -> usize {
        self.branches.iter().map(|branch| branch.a.dims()[0]).max().unwrap_or(0)
    }

    pub(crate) fn branch(&self, layer: usize, projection: Projection) -> Option<&LoraBranch> {
        self.places.get(layer)?[projection as usize].map(|index| &self.branches[index])
    }

    /// The branches of one layer alone, as leaves of a graph; the values are shared.
    pub(crate) fn tracked_layer(&self, layer: usize) -> Self {
        let mut places = vec![[None; Projection::ALL.len()]; self.places.len()];
        let mut branches = Vec::new();
        for projection in Projection::ALL {
            if let Some(branch) = self.branch(layer, projection) {
                places[layer][projection as usize] = Some(branches.len());
                branches.push(branch.tracked());
            }
        }
        Self { device: self.device.clone(), branches, places, len_values: self.len_values }
    }

    /// The gradients of a layer's branches, A and B of each in the adapter's order.
    pub(crate) fn gradients(&self, gradients: &Gradients) -> Vec<Tensor<1>> {
        let of_leaf = |tensor: &Tensor<2>| match tensor.grad(gradients) {
            Some(gradient) => gradient.flatten(0, 1),
            // A branch that the loss does not depend on.
            None => Tensor::zeros([tensor.shape().num_elements()], self.device.burn()),
        };
        self.branches.iter().flat_map(|branch| [of_leaf(&branch.a), of_leaf(&branch.b)]).collect()
    }

    /// Gradients of all layers, each as [`Self::gradients`] gives them or empty for zeros, as one vector in the order of
    /// [`Adapter::values`].
    ///
    /// # Errors
    /// [`ComputeError::Device`] if the backward pass failed on the device.
    pub(crate) fn read_gradients(&self, by_layer: Vec<Vec<Tensor<1>>>) -> Result<Vec<f32>, ComputeError> {
        let counts: Vec<usize> = by_layer.iter().map(Vec::len).collect();
        let mut read = self.device.read_all(by_layer.into_iter().flatten().collect())?.into_iter();
        let mut values = Vec::with_capacity(self.len_values);
        for (layer, count) in counts.into_iter().enumerate() {
            match count {
                0 => values.resize(values.len() + self.layer_len(layer), 0.0),
                _ => read.by_ref().take(count).for_each(|gradient| values.extend(gradient)),
            }
        }
        assert_eq!(values.len(), self.len_values, "gradients in the adapter's layout");
        Ok(values)
    }

    /// Values of a layer's branches.
    fn layer_len(&self, layer: usize) -> usize {
        let branches = Projection::ALL.into_iter().filter_map(|projection| self.branch(layer, projection));
        branches.map(|branch| branch.a.shape().num_elements() + branch.b.shape().num_elements()).sum()
    }
}
