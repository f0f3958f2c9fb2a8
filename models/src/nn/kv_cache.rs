//! Keys and values of the tokens that were already seen.

use burn::tensor::{Device, Tensor};

use super::AttentionShape;

/// The state of one conversation: append by decoding, [`truncate`](Self::truncate), [`reset`](Self::reset).
///
/// Keys are stored after their rotation, so a cached token keeps its position. Room grows by doubling up to the capacity.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    shape: AttentionShape,
    device: Device,
    len_tokens: usize,
    capacity_tokens: usize,
}

/// `[num_key_value_heads, room, head_dim]` each.
#[derive(Debug)]
struct LayerCache {
    keys: Tensor<3>,
    values: Tensor<3>,
}

/// Room that a cache starts with.
const FIRST_ROOM_TOKENS: usize = 64;

impl KvCache {
    pub(crate) fn new(num_layers: usize, shape: AttentionShape, capacity_tokens: usize, device: &Device) -> Self {
        let mut cache = Self {
            layers: Vec::with_capacity(num_layers),
            shape,
            device: device.clone(),
            len_tokens: 0,
            capacity_tokens,
        };
        let room = cache.room_for(0);
        cache.layers.extend(
            (0..num_layers)
                .map(|_| LayerCache { keys: cache.shape.zeros(room, device), values: cache.shape.zeros(room, device) }),
        );
        cache
    }

    /// Tokens in the cache.
    pub fn len(&self) -> usize {
        self.len_tokens
    }

    /// Whether no token is in the cache.
    pub fn is_empty(&self) -> bool {
        self.len_tokens == 0
    }

    /// Most tokens that the cache may hold.
    pub fn capacity(&self) -> usize {
        self.capacity_tokens
    }

    /// Forgets all but the first `len` tokens; a longer `len` changes nothing.
    pub fn truncate(&mut self, len: usize) {
        self.len_tokens = self.len_tokens.min(len);
    }

    /// Forgets every token.
    pub fn reset(&mut self) {
        self.truncate(0);
    }

    /// Tokens that there is room for where there are so many.
    pub(crate) fn room_for(&self, tokens: usize) -> usize {
        tokens.next_power_of_two().max(FIRST_ROOM_TOKENS).min(self.capacity_tokens)
    }

    /// Puts new keys and values `[new, num_key_value_heads · head_dim]` of a layer behind the cached ones. Gives all of them,
    /// `[num_key_value_heads · room, head_dim]`, and the room. The length grows with [`advance`](Self::advance), once all
    /// layers have theirs.
    pub(crate) fn append(&mut self, layer: usize, keys: Tensor<2>, values: Tensor<2>) -> (Tensor<2>, Tensor<2>, usize) {
        let AttentionShape { num_key_value_heads: heads, head_dim: width, .. } = self.shape;
        let [new, _] = keys.dims();
        let (past, end) = (self.len_tokens, self.len_tokens + new);
        assert!(end <= self.capacity_tokens, "{end} tokens do not fit a cache of {}", self.capacity_tokens);
        let (room, shape, device) = (self.room_for(end), self.shape, &self.device);
        let slot = &mut self.layers[layer];
        let put = |stored: &mut Tensor<3>, added: Tensor<2>| {
            // Taken out, so that it is the only handle and may be written in place.
            let mut all = std::mem::replace(stored, Tensor::empty([0, 0, 0], device));
            if all.dims()[1] < room {
                let kept = all.slice([0..heads, 0..past, 0..width]);
                all = shape.zeros(room, device).slice_assign([0..heads, 0..past, 0..width], kept);
            }
            let added = added.reshape([new, heads, width]).swap_dims(0, 1);
            *stored = all.slice_assign([0..heads, past..end, 0..width], added);
            let room = stored.dims()[1];
            (stored.clone().reshape([heads * room, width]), room)
        };
        let (keys, room) = put(&mut slot.keys, keys);
        let (values, _) = put(&mut slot.values, values);
        (keys, values, room)
    }

    /// Counts `new` tokens that every layer has appended.
    pub(crate) fn advance(&mut self, new: usize) {
        self.len_tokens += new;
    }
}
