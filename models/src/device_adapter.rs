//! An adapter's tensors on a device, for one or several passes.

use burn::tensor::{Gradients, Tensor, TensorData};

use crate::Projection;
use crate::adapter::Adapter;
use crate::compute_error::ComputeError;
use crate::device::ComputeDevice;
use crate::ops::LoraBranch;

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

    /// Values of one layer's branches.
    fn len_layer(&self, layer: usize) -> usize {
        let branches = Projection::ALL.into_iter().filter_map(|projection| self.branch(layer, projection));
        branches.map(|branch| branch.a.shape().num_elements() + branch.b.shape().num_elements()).sum()
    }
}

/// Gradients of an adapter's values, layer by layer in any order; zero where none come.
pub(crate) struct FlatGradients<'a> {
    adapter: &'a DeviceAdapter,
    /// On the CPU they are copied at once, so that they are in memory once.
    values: Vec<f32>,
    /// On a GPU they wait for one transfer at the end.
    waiting: Vec<Vec<Tensor<1>>>,
}

impl<'a> FlatGradients<'a> {
    pub(crate) fn of(adapter: &'a DeviceAdapter) -> Self {
        let values = if adapter.device.is_gpu() { 0 } else { adapter.len_values };
        Self { adapter, values: vec![0.0; values], waiting: vec![Vec::new(); adapter.places.len()] }
    }

    /// Takes those of one layer, as [`DeviceAdapter::gradients`] gives them.
    ///
    /// # Errors
    /// [`ComputeError::Device`] if the backward pass failed on the device.
    pub(crate) fn put(&mut self, layer: usize, gradients: Vec<Tensor<1>>) -> Result<(), ComputeError> {
        if self.adapter.device.is_gpu() {
            self.waiting[layer] = gradients;
            return Ok(());
        }
        let mut place = (0..layer).map(|layer| self.adapter.len_layer(layer)).sum::<usize>();
        for gradient in gradients {
            let values = self.adapter.device.read(gradient)?;
            self.values[place..place + values.len()].copy_from_slice(&values);
            place += values.len();
        }
        Ok(())
    }

    /// All of them, in the order of [`Adapter::values`].
    ///
    /// # Errors
    /// [`ComputeError::Device`] if the backward pass failed on the device.
    pub(crate) fn into_values(self) -> Result<Vec<f32>, ComputeError> {
        let adapter = self.adapter;
        if !adapter.device.is_gpu() || adapter.len_values == 0 {
            return Ok(self.values);
        }
        let counts: Vec<usize> = self.waiting.iter().map(Vec::len).collect();
        let mut read = adapter.device.read_all(self.waiting.into_iter().flatten().collect())?.into_iter();
        let mut values = Vec::with_capacity(adapter.len_values);
        for (layer, count) in counts.into_iter().enumerate() {
            match count {
                0 => values.resize(values.len() + adapter.len_layer(layer), 0.0),
                _ => read.by_ref().take(count).for_each(|gradient| values.extend(gradient)),
            }
        }
        assert_eq!(values.len(), adapter.len_values, "gradients in the adapter's layout");
        Ok(values)
    }
}
