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
    /// Uploads `adapter`; where `tracked`, passes through it can be differentiated.
    pub(crate) fn new(adapter: &Adapter, device: &ComputeDevice, num_layers: usize, tracked: bool) -> Self {
        let on = if tracked { device.burn().clone().autodiff() } else { device.burn().clone() };
        let upload = |values: &[f32], shape: [usize; 2]| {
            let tensor = Tensor::<2>::from_data(TensorData::new(values.to_vec(), shape), &on);
            if tracked { tensor.require_grad() } else { tensor }
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

    pub(crate) fn branch(&self, layer: usize, projection: Projection) -> Option<&LoraBranch> {
        self.places.get(layer)?[projection as usize].map(|index| &self.branches[index])
    }

    /// The gradients of a loss, flat in the order of [`Adapter::values`]; read from the device at once.
    ///
    /// # Errors
    /// [`ComputeError::Device`] if the backward pass failed on the device.
    ///
    /// # Panics
    /// If the adapter was uploaded without tracking: a mistake of ours.
    pub fn gradients(&self, gradients: &Gradients) -> Result<Vec<f32>, ComputeError> {
        let flat: Vec<Tensor<1>> = self
            .branches
            .iter()
            .flat_map(|branch| [&branch.a, &branch.b])
            .map(|tensor| match tensor.grad(gradients) {
                Some(gradient) => gradient.flatten(0, 1),
                // A branch that the loss does not depend on.
                None => Tensor::zeros([tensor.shape().num_elements()], self.device.burn()),
            })
            .collect();
        if flat.is_empty() {
            return Ok(Vec::new());
        }
        let values = self.device.read(Tensor::cat(flat, 0))?;
        assert_eq!(values.len(), self.len_values, "gradients in the adapter's layout");
        Ok(values)
    }
}
