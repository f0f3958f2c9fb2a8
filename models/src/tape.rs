//! A forward pass that a loss can go back through, one decoder layer at a time.
//!
//! Every layer is differentiated by itself, so that a pass can be left before and after each of them, and so that a layer's
//! activations need not be kept: they can be computed again from its input when the gradient arrives. Kept or computed
//! again, the same operations see the same values, and the gradients are equal bit for bit.

use std::sync::Arc;

use burn::tensor::{Gradients, Tensor};

use crate::batch::TokenBatch;
use crate::compute_error::ComputeError;
use crate::config::ModelConfig;
use crate::device_adapter::{DeviceAdapter, FlatGradients};
use crate::kernels::cpu::head_loss;
use crate::model::Model;
use crate::nn::{Pass, Stop, tracked};
use crate::ops::{RopeAngles, embedding, pull_back};

/// Hidden states of one pass, and what it takes to go back from them to the adapter.
#[derive(Debug)]
pub struct Tape<'a> {
    model: &'a Model,
    adapter: &'a DeviceAdapter,
    stop: &'a Stop,
    lengths: Arc<[usize]>,
    angles: RopeAngles,
    layers: Vec<Recorded>,
    /// Where gradients leave the loss's graph: the states that the caller sees, and the input of the final norm.
    leaves: Vec<Leaf>,
    hidden: Vec<Tensor<2>>,
}

/// One decoder layer of a pass.
#[derive(Debug)]
enum Recorded {
    /// With its activations.
    Whole(Box<LayerGraph>),
    /// Only what went in, `[tokens, hidden_size]`.
    Input(Box<Tensor<2>>),
}

/// A layer's own graph: from its input and its branches to its output.
#[derive(Debug)]
struct LayerGraph {
    input: Tensor<2>,
    output: Tensor<2>,
    branches: DeviceAdapter,
}

/// A hidden state that gradients are wanted for: depth 0 is the embedding, `i` the output of layer `i - 1`.
#[derive(Debug)]
struct Leaf {
    depth: usize,
    state: Tensor<2>,
}

impl<'a> Tape<'a> {
    /// Runs the pass. The last `kept_layers` layers keep their activations.
    ///
    /// # Errors
    /// As [`Model::hidden_states`].
    pub(crate) fn record(
        model: &'a Model,
        batch: &TokenBatch,
        depths: &[usize],
        adapter: &'a DeviceAdapter,
        kept_layers: usize,
        stop: &'a Stop,
    ) -> Result<Self, ComputeError> {
        model.check_batch(batch)?;
        let decoder = model.decoder();
        let depth = decoder.layers.len();
        if let Some(&beyond) = depths.iter().find(|asked| **asked > depth) {
            return Err(ComputeError::NoSuchLayer { depth: beyond, layers: depth });
        }
        let mut tape = Self {
            model,
            adapter,
            stop,
            lengths: batch.shared_lengths(),
            angles: model.angles(batch),
            layers: Vec::with_capacity(depth),
            leaves: Vec::new(),
            hidden: Vec::new(),
        };
        let mut kept = vec![None; depths.len()];
        let mut x = embedding(batch.ids(), &decoder.embed_tokens, model.device().burn());
        for layer in 0..=depth {
            if depths.contains(&layer) {
                let leaf = tape.leaf(layer, x.clone());
                let seen = if layer == depth { decoder.norm.forward(leaf) } else { leaf };
                for (slot, _) in kept.iter_mut().zip(depths).filter(|(_, asked)| **asked == layer) {
                    *slot = Some(seen.clone());
                }
            }
            if layer < depth {
                x = tape.forward_layer(layer, x, layer + kept_layers >= depth)?;
            }
        }
        tape.hidden = kept.into_iter().flatten().collect();
        Ok(tape)
    }

    /// The hidden states that were asked for, in that order, to compute a loss with; the last depth is that after the final
    /// norm.
    ///
    /// # Shapes
    /// `[tokens, hidden_size]` each.
    pub fn hidden(&self) -> &[Tensor<2>] {
        &self.hidden
    }

    /// Goes back from a loss of [`Self::hidden`] to the adapter: gradients flat in the order of
    /// [`Adapter::values`](crate::Adapter::values).
    ///
    /// # Errors
    /// [`ComputeError::Cancelled`] between two layers, on a GPU between two submissions; [`ComputeError::Device`] if the device
    /// failed.
    pub fn gradients(mut self, loss: &Tensor<1>) -> Result<Vec<f32>, ComputeError> {
        let (device, stop) = (self.model.device(), self.stop);
        let mut gradients = FlatGradients::of(self.adapter);
        device.run(stop, || self.go_back(loss, &mut gradients))?;
        gradients.into_values()
    }

    fn go_back(&mut self, loss: &Tensor<1>, into: &mut FlatGradients<'_>) -> Result<(), ComputeError> {
        let of_states = loss.backward();
        self.hidden.clear();
        let mut dx: Option<Tensor<2>> = None;
        while let Some(recorded) = self.layers.pop() {
            let layer = self.layers.len();
            dx = sum(dx, self.leaf_gradient(layer + 1, &of_states));
            // A layer that no loss depends on.
            let Some(d_output) = dx.take() else { continue };
            let graph = match recorded {
                Recorded::Whole(graph) => *graph,
                Recorded::Input(input) => self.graph(layer, *input)?,
            };
            self.check_stop()?;
            let gradients = pull_back(graph.output, d_output).backward();
            into.put(layer, graph.branches.gradients(&gradients))?;
            dx = graph.input.grad(&gradients);
        }
        Ok(())
    }

    fn check_stop(&self) -> Result<(), ComputeError> {
        self.stop.check()
    }

    /// A state whose gradient is wanted.
    fn leaf(&mut self, depth: usize, x: Tensor<2>) -> Tensor<2> {
        let state = tracked(x);
        self.leaves.push(Leaf { depth, state: state.clone() });
        state
    }

    fn leaf_gradient(&self, depth: usize, gradients: &Gradients) -> Option<Tensor<2>> {
        self.leaves.iter().find(|leaf| leaf.depth == depth)?.state.grad(gradients)
    }

    /// The output of a layer, without its graph.
    fn forward_layer(&mut self, layer: usize, x: Tensor<2>, is_kept: bool) -> Result<Tensor<2>, ComputeError> {
        if is_kept {
            let graph = self.graph(layer, x)?;
            let output = graph.output.clone().inner();
            self.layers.push(Recorded::Whole(Box::new(graph)));
            return Ok(output);
        }
        let output = self.apply(layer, x.clone(), self.adapter)?;
        self.layers.push(Recorded::Input(Box::new(x)));
        Ok(output)
    }

    /// A layer with what its gradient needs. The embedding is frozen: nothing is wanted below the first layer.
    fn graph(&self, layer: usize, x: Tensor<2>) -> Result<LayerGraph, ComputeError> {
        let input = if layer == 0 { x } else { tracked(x) };
        let branches = self.adapter.tracked_layer(layer);
        let output = self.apply(layer, input.clone(), &branches)?;
        Ok(LayerGraph { input, output, branches })
    }

    fn apply(&self, layer: usize, x: Tensor<2>, adapter: &DeviceAdapter) -> Result<Tensor<2>, ComputeError> {
        let (lengths, angles) = (Arc::clone(&self.lengths), self.angles.clone());
        let mut pass = Pass { lengths, angles, adapter: Some(adapter), cache: None, stop: self.stop };
        self.model.decoder().layers[layer].forward(x, layer, &mut pass)
    }
}

/// What a [`Tape`] over some tokens takes, on the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TapeMemory {
    /// Bytes of the inputs of all layers, which are always kept.
    pub inputs_bytes: u64,
    /// Bytes that each layer takes whose activations are kept, beside its input.
    pub layer_bytes: u64,
    /// Bytes that are in use only for a while: what a layer needs beyond what it keeps, or the head's logits.
    pub passing_bytes: u64,
}

impl TapeMemory {
    /// What a pass of `tokens` tokens takes, with branches of rank `rank` on every projection.
    pub fn of(config: &ModelConfig, rank: usize, tokens: usize) -> Self {
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let queries = config.num_attention_heads * config.head_dim;
        let keys = config.num_key_value_heads * config.head_dim;
        let normed_heads = if config.qk_norm { queries + keys } else { 0 };
        // Queries, keys, values and what attention makes of them, the sum with the input, gate and up; norms and the gated
        // activation are computed again.
        let kept = 2 * queries + 2 * keys + normed_heads + hidden + 2 * intermediate + 7 * rank;
        // Going back: normed inputs, the activation, and gradients of about as much as was kept.
        let in_hand = kept + 2 * hidden + 3 * intermediate;
        let bytes = |floats: usize| 4 * (floats * tokens) as u64;
        Self {
            inputs_bytes: bytes(hidden * config.num_hidden_layers),
            layer_bytes: bytes(kept),
            passing_bytes: bytes(kept + in_hand).max(head_loss::LOGITS_BYTES as u64 + bytes(4 * hidden)),
        }
    }

    /// Bytes at the most, if `kept_layers` layers keep their activations.
    pub fn total_bytes(&self, kept_layers: usize) -> u64 {
        self.inputs_bytes + kept_layers as u64 * self.layer_bytes + self.passing_bytes
    }

    /// How many of `layers` layers may keep their activations within `budget_bytes`. Even with none of them a pass needs
    /// [`Self::total_bytes`] of 0.
    pub fn kept_layers(&self, layers: usize, budget_bytes: u64) -> usize {
        let left = budget_bytes.saturating_sub(self.total_bytes(0));
        layers.min((left / self.layer_bytes.max(1)) as usize)
    }
}

/// The sum of what there is.
fn sum(a: Option<Tensor<2>>, b: Option<Tensor<2>>) -> Option<Tensor<2>> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a + b),
        (a, b) => a.or(b),
    }
}
