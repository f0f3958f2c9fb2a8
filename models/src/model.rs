//! A model that computes: passes over batches, losses, decoding.

use std::sync::Arc;

use burn::tensor::Tensor;

use crate::adapter::Adapter;
use crate::batch::TokenBatch;
use crate::compute_error::ComputeError;
use crate::config::ModelConfig;
use crate::device::ComputeDevice;
use crate::device_adapter::DeviceAdapter;
use crate::error::LoadError;
use crate::families;
use crate::load::Loader;
use crate::nn::{AttentionShape, Decoder, KvCache, Pass, Stop};
use crate::ops::{RopeAngles, packed_linear, token_nll};
use crate::tape::Tape;
use crate::weights::Gguf;

/// Positions whose logits are in memory at once, where logits are asked for.
const LOGIT_POSITIONS: usize = 64;

/// A frozen, packed base model on one device. It keeps no state between calls but what the caller hands in.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    decoder: Decoder,
    device: ComputeDevice,
    gguf: Arc<Gguf>,
}

impl Model {
    /// Builds the model that a file describes. Weights stay packed; the device's [`Precision`](crate::Precision) says whether they
    /// stay in the file's mapping.
    ///
    /// # Errors
    /// [`LoadError`] with the tensor or key that is missing, of another shape, or not understood.
    pub fn load(gguf: &Arc<Gguf>, device: &ComputeDevice) -> Result<Self, LoadError> {
        let config = ModelConfig::from_gguf(gguf)?;
        let family = families::find(&config.model_type).ok_or_else(|| LoadError::UnknownArchitecture {
            file: gguf.file().to_owned(),
            found: config.model_type.clone(),
            known: families::FAMILIES.iter().map(|family| family.name).collect(),
        })?;
        let loader = Loader::new(gguf, &config, device)?;
        let decoder = (family.build)(&loader)?;
        loader.finish()?;
        Ok(Self { config, decoder, device: device.clone(), gguf: Arc::clone(gguf) })
    }

    /// What the file says about the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The device that the model computes on.
    pub fn device(&self) -> &ComputeDevice {
        &self.device
    }

    /// The file that the model came from.
    pub fn gguf(&self) -> &Arc<Gguf> {
        &self.gguf
    }

    /// SHA-256 of the model file; read once, at the first call.
    pub fn digest(&self) -> [u8; 32] {
        self.gguf.digest()
    }

    /// Copies an adapter to the device.
    ///
    /// # Errors
    /// [`ComputeError::AdapterShape`] if it was made for another model, [`ComputeError::TensorTooLarge`] for the device.
    pub fn upload(&self, adapter: &Adapter) -> Result<DeviceAdapter, ComputeError> {
        for pair in adapter.layout().pairs() {
            let [d_out, d_in] = self.config.projection_shape(pair.projection);
            if pair.layer >= self.config.num_hidden_layers || [pair.d_out, pair.d_in] != [d_out, d_in] {
                return Err(ComputeError::AdapterShape {
                    layer: pair.layer,
                    projection: pair.projection.name(),
                    found_out: pair.d_out,
                    found_in: pair.d_in,
                    expected_out: d_out,
                    expected_in: d_in,
                });
            }
            self.device.check_tensor("an adapter's matrix", d_out.max(d_in), pair.rank)?;
        }
        Ok(DeviceAdapter::new(adapter, &self.device, self.config.num_hidden_layers))
    }

    /// Hidden states after the final norm.
    ///
    /// # Shapes
    /// Result `[tokens, hidden_size]`, the sequences of the batch one after another.
    ///
    /// # Errors
    /// [`ComputeError::Cancelled`], [`ComputeError::TokenOutOfRange`], [`ComputeError::ContextFull`],
    /// [`ComputeError::TensorTooLarge`].
    pub fn forward(
        &self,
        batch: &TokenBatch,
        adapter: Option<&DeviceAdapter>,
        stop: &Stop,
    ) -> Result<Tensor<2>, ComputeError> {
        let mut hidden = self.hidden_states(batch, &[self.config.num_hidden_layers], adapter, stop)?;
        Ok(hidden.swap_remove(0))
    }

    /// Hidden states at several depths: 0 is the embedding, `i` the output of layer `i`, `num_hidden_layers` that after the
    /// final norm. They come in the order of `depths`.
    ///
    /// # Shapes
    /// Results `[tokens, hidden_size]`.
    ///
    /// # Errors
    /// As [`Self::forward`]; [`ComputeError::NoSuchLayer`] for a depth beyond the last layer.
    pub fn hidden_states(
        &self,
        batch: &TokenBatch,
        depths: &[usize],
        adapter: Option<&DeviceAdapter>,
        stop: &Stop,
    ) -> Result<Vec<Tensor<2>>, ComputeError> {
        self.check_batch(batch)?;
        let (lengths, angles) = (batch.shared_lengths(), self.angles(batch));
        let mut pass = Pass { lengths, angles, adapter, cache: None, stop };
        self.device.run(stop, || self.decoder.forward(batch.ids(), depths, &mut pass, self.device.burn()))
    }

    /// Hidden states as [`Self::hidden_states`] gives them, from which a loss can go back to the adapter.
    ///
    /// The last `kept_layers` layers keep their activations until then, the others are computed once more on the way back:
    /// more time for less memory, and the same gradients to the bit.
    ///
    /// # Errors
    /// As [`Self::hidden_states`].
    pub fn record<'a>(
        &'a self,
        batch: &TokenBatch,
        depths: &[usize],
        adapter: &'a DeviceAdapter,
        kept_layers: usize,
        stop: &'a Stop,
    ) -> Result<Tape<'a>, ComputeError> {
        self.device.run(stop, || Tape::record(self, batch, depths, adapter, kept_layers, stop))
    }

    /// Negative log-likelihood in nats of one target per row of `hidden`, differentiable in `hidden`. Logits are never
    /// stored whole.
    ///
    /// # Shapes
    /// `hidden` `[positions, hidden_size]`, `targets` and the result `[positions]`.
    ///
    /// # Errors
    /// [`ComputeError::TokenOutOfRange`]; [`ComputeError::Cancelled`] between some positions and the next.
    pub fn token_nll(&self, hidden: Tensor<2>, targets: &[u32], stop: &Stop) -> Result<Tensor<1>, ComputeError> {
        self.check_ids(targets)?;
        self.device.run(stop, || {
            let nll = token_nll(hidden, targets, &self.decoder.lm_head, stop);
            // What a stopped operation gives is not all of it.
            stop.check().map(|()| nll)
        })
    }

    /// Raw logits, for as few positions as the caller can hold: `[positions, vocab_size]`, differentiable in `hidden`.
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        packed_linear(hidden, &self.decoder.lm_head)
    }

    /// The likeliest token of each row of `hidden` `[positions, hidden_size]`; the lowest id where two are equal.
    ///
    /// # Errors
    /// [`ComputeError::Device`].
    pub fn argmax(&self, hidden: Tensor<2>) -> Result<Vec<u32>, ComputeError> {
        let [positions, width] = hidden.dims();
        let mut best = Vec::with_capacity(positions);
        for first in (0..positions).step_by(LOGIT_POSITIONS) {
            let end = (first + LOGIT_POSITIONS).min(positions);
            let logits = self.device.read(self.logits(hidden.clone().slice([first..end, 0..width])))?;
            best.extend(logits.chunks_exact(self.config.vocab_size).map(argmax));
        }
        Ok(best)
    }

    /// An empty cache for one conversation of at most `capacity_tokens`, or the model's context if that is less.
    pub fn new_cache(&self, capacity_tokens: usize) -> KvCache {
        let capacity = capacity_tokens.min(self.config.max_position_embeddings);
        KvCache::new(self.config.num_hidden_layers, AttentionShape::of(&self.config), capacity, self.device.burn())
    }

    /// Appends tokens to a conversation and gives the logits after the last one, `[vocab_size]`. Earlier tokens are not
    /// computed again.
    ///
    /// The cache grows only if the whole pass succeeds.
    ///
    /// # Errors
    /// [`ComputeError::ContextFull`] if they do not fit the cache; as [`Self::forward`] otherwise.
    pub fn decode(
        &self,
        cache: &mut KvCache,
        ids: &[u32],
        adapter: Option<&DeviceAdapter>,
        stop: &Stop,
    ) -> Result<Vec<f32>, ComputeError> {
        self.check_ids(ids)?;
        let past = cache.len();
        if ids.is_empty() {
            return Err(ComputeError::BatchShape { rows: 1, cols: 0, ids: 0 });
        }
        if past + ids.len() > cache.capacity() {
            return Err(ComputeError::ContextFull { needed: past + ids.len(), capacity: cache.capacity() });
        }
        self.check_activations(ids.len())?;
        self.device.check_tensor("a layer's cached keys", cache.room_for(past + ids.len()), self.key_value_width())?;
        let logits = self.device.run(stop, || self.last_logits(cache, ids, adapter, stop))?;
        cache.advance(ids.len());
        Ok(logits)
    }

    /// The logits after the last of `ids`, which are appended to every layer of the cache, but not counted.
    fn last_logits(
        &self,
        cache: &mut KvCache,
        ids: &[u32],
        adapter: Option<&DeviceAdapter>,
        stop: &Stop,
    ) -> Result<Vec<f32>, ComputeError> {
        let (depth, past) = (self.config.num_hidden_layers, cache.len());
        let mut pass = Pass {
            lengths: Arc::from([ids.len()]),
            angles: RopeAngles::new(past..past + ids.len(), &self.decoder.rope_frequencies),
            adapter,
            cache: Some(cache),
            stop,
        };
        let mut hidden = self.decoder.forward(ids, &[depth], &mut pass, self.device.burn())?;
        let width = self.config.hidden_size;
        let last = hidden.swap_remove(0).slice([ids.len() - 1..ids.len(), 0..width]);
        self.device.read(self.logits(last))
    }

    fn key_value_width(&self) -> usize {
        self.config.num_key_value_heads * self.config.head_dim
    }

    pub(crate) fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The turns of every token of a batch.
    pub(crate) fn angles(&self, batch: &TokenBatch) -> RopeAngles {
        let positions = batch.lengths().iter().flat_map(|length| 0..*length);
        RopeAngles::new(positions, &self.decoder.rope_frequencies)
    }

    /// [`ComputeError::TokenOutOfRange`], [`ComputeError::ContextFull`] or [`ComputeError::TensorTooLarge`] if the batch is
    /// not one for this model and device.
    pub(crate) fn check_batch(&self, batch: &TokenBatch) -> Result<(), ComputeError> {
        let (needed, capacity) = (batch.longest(), self.config.max_position_embeddings);
        if needed > capacity {
            return Err(ComputeError::ContextFull { needed, capacity });
        }
        self.check_activations(batch.ids().len())?;
        self.check_ids(batch.ids())
    }

    /// [`ComputeError::TensorTooLarge`] if the device cannot hold the widest of the tensors that so many tokens make.
    fn check_activations(&self, tokens: usize) -> Result<(), ComputeError> {
        let config = &self.config;
        let queries = config.num_attention_heads * config.head_dim;
        let widest = config.intermediate_size.max(config.hidden_size).max(queries);
        self.device.check_tensor("a layer's activations", tokens, widest)
    }

    fn check_ids(&self, ids: &[u32]) -> Result<(), ComputeError> {
        match ids.iter().find(|&&id| id as usize >= self.config.vocab_size) {
            Some(&id) => Err(ComputeError::TokenOutOfRange { id, vocab_size: self.config.vocab_size }),
            None => Ok(()),
        }
    }
}

/// Index of the largest value; the first where several are equal.
fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (index, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = index;
        }
    }
    best as u32
}
