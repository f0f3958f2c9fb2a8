//! Memory of CPU tensors, and of what kernels need in between, used again and again.
//!
//! A pass asks for the same sizes as the pass before it, layer by layer. From the system such memory would come zeroed, page by page, and
//! for every thread from a heap of its own, which takes time and holds more than is in use.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::{AllocationProperty, Bytes, DType, Shape};
use burn_flex::{FlexTensor, Layout};
use memmap2::MmapMut;

use burn_std::{AccessError, AccessPolicy, AllocationController};

/// Floats, with anything in them at first. Dropping it makes the memory free for the next one of about this size.
pub(crate) struct Buffer {
    /// As many as the shelf says; nothing once it was given back.
    memory: Option<Memory>,
    len: usize,
}

/// Where floats are. What is large is mapped by itself, so that what is given back leaves no hole in a heap.
enum Memory {
    Heap(Vec<f32>),
    Mapped(MmapMut),
}

impl Buffer {
    /// Room for `len` floats.
    pub(crate) fn new(len: usize) -> Self {
        let size = shelf_size(len);
        let memory = shelves().take(size).unwrap_or_else(|| Memory::new(size));
        Self { memory: Some(memory), len }
    }

    /// A tensor of the floats, row-major.
    ///
    /// # Panics
    /// If the shape has another number of them: a mistake of ours.
    pub(crate) fn into_tensor(self, shape: [usize; 2]) -> FlexTensor {
        assert_eq!(self.len, shape[0] * shape[1], "values of a tensor {shape:?}");
        let bytes = self.len * size_of::<f32>();
        // SAFETY: that many bytes are there, and all of them are initialized.
        let bytes = unsafe { Bytes::from_controller(Box::new(self), bytes) };
        FlexTensor::new(bytes, Layout::contiguous(Shape::new(shape)), DType::F32)
    }
}

impl Memory {
    fn new(size: usize) -> Self {
        /// Bytes from which on a call of the system costs little beside the use of the memory.
        const MAPPED_BYTES: usize = 64 << 10;
        let bytes = size * size_of::<f32>();
        let mapped = (bytes >= MAPPED_BYTES).then(|| MmapMut::map_anon(bytes).ok()).flatten();
        mapped.map_or_else(|| Self::Heap(vec![0.0; size]), Self::Mapped)
    }

    fn floats(&self) -> &[f32] {
        match self {
            Self::Heap(floats) => floats,
            Self::Mapped(bytes) => bytemuck::cast_slice(bytes),
        }
    }

    fn floats_mut(&mut self) -> &mut [f32] {
        match self {
            Self::Heap(floats) => floats,
            Self::Mapped(bytes) => bytemuck::cast_slice_mut(bytes),
        }
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        self.memory.as_ref().map_or(&[], |memory| &memory.floats()[..self.len])
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        self.memory.as_mut().map_or(&mut [], |memory| &mut memory.floats_mut()[..self.len])
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            shelves().put(memory);
        }
    }
}

impl AllocationController for Buffer {
    fn alloc_align(&self) -> usize {
        align_of::<f32>()
    }

    fn property(&self) -> AllocationProperty {
        AllocationProperty::Other
    }

    unsafe fn memory_mut(&mut self, _: AccessPolicy) -> Result<&mut [MaybeUninit<u8>], AccessError> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self[..]);
        // SAFETY: the same bytes; the caller writes only initialized ones.
        Ok(unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len()) })
    }

    fn memory(&self, _: AccessPolicy) -> Result<&[MaybeUninit<u8>], AccessError> {
        let bytes: &[u8] = bytemuck::cast_slice(&self[..]);
        // SAFETY: the same bytes, which stay initialized behind a shared reference.
        Ok(unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len()) })
    }
}

/// Gives what was not needed since the last call back to the system. Called at the end of every pass.
pub(crate) fn trim() {
    shelves().trim();
}

/// Gives all that is free back to the system: where something begins that needs other sizes.
pub(crate) fn clear() {
    shelves().0.clear();
}

/// Free memory by its size.
struct Shelves(BTreeMap<usize, Shelf>);

#[derive(Default)]
struct Shelf {
    free: Vec<Memory>,
    /// How many were free at any time since the last [`Shelves::trim`].
    unneeded: usize,
}

fn shelves() -> MutexGuard<'static, Shelves> {
    static SHELVES: Mutex<Shelves> = Mutex::new(Shelves(BTreeMap::new()));
    SHELVES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The size of the memory that so many floats are put in: at most an eighth more.
fn shelf_size(len: usize) -> usize {
    const LEAST_STEP: usize = 64;
    len.next_multiple_of((len.next_power_of_two() / 16).max(LEAST_STEP))
}

impl Shelves {
    fn take(&mut self, size: usize) -> Option<Memory> {
        let shelf = self.0.get_mut(&size)?;
        let memory = shelf.free.pop();
        shelf.unneeded = shelf.unneeded.min(shelf.free.len());
        memory
    }

    fn put(&mut self, memory: Memory) {
        self.0.entry(memory.floats().len()).or_default().free.push(memory);
    }

    fn trim(&mut self) {
        self.0.retain(|_, shelf| {
            // The one used last is warm, and is at the end.
            shelf.free.drain(..shelf.unneeded);
            shelf.unneeded = shelf.free.len();
            !shelf.free.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_trims_have_seen_unused_is_given_back_and_the_rest_is_used_again() {
        let mut shelves = Shelves(BTreeMap::new());
        let memory = |value: f32| Memory::Heap(vec![value; 64]);
        let first = |memory: Option<Memory>| memory.map(|memory| memory.floats()[0]);
        shelves.put(memory(1.0));
        shelves.put(memory(2.0));
        shelves.trim();
        assert_eq!(first(shelves.take(64)), Some(2.0), "the one put last comes first");
        shelves.put(memory(3.0));
        shelves.trim();
        assert_eq!(first(shelves.take(64)), Some(3.0));
        assert_eq!(first(shelves.take(64)), None, "the other was not needed");
        shelves.trim();
        assert!(shelves.0.is_empty());
    }

    #[test]
    fn sizes_grow_by_an_eighth_at_most() {
        for len in [1, 63, 64, 65, 1000, 73_728, 196_608, 1 << 20, (1 << 20) + 1] {
            let size = shelf_size(len);
            assert!(size >= len && size - len <= (len / 8).max(64), "{len} in {size}");
        }
    }

    #[test]
    fn a_tensor_of_a_buffer_has_its_values_and_is_changed_alone() {
        // In a heap, and mapped.
        for rows in [2, 20_000] {
            let mut buffer = Buffer::new(rows * 3);
            (0..rows * 3).for_each(|i| buffer[i] = i as f32);
            let tensor = buffer.into_tensor([rows, 3]);
            let mut other = tensor.clone();
            other.storage_mut::<f32>()[0] = 9.0;
            assert!(tensor.storage::<f32>().iter().enumerate().all(|(i, value)| *value == i as f32));
            assert_eq!(other.storage::<f32>()[..2], [9.0, 1.0]);
        }
    }
}
