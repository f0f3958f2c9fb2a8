//! Writes small GGUF files for the tests of this crate.

use crate::quant::TensorType;

/// A file under construction; nothing is checked.
#[derive(Default)]
pub(crate) struct GgufWriter {
    keys: Vec<u8>,
    key_count: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
    data: Vec<u8>,
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl GgufWriter {
    pub(crate) fn raw_value(mut self, key: &str, value_type: u32, value: &[u8]) -> Self {
        string(&mut self.keys, key);
        self.keys.extend(value_type.to_le_bytes());
        self.keys.extend(value);
        self.key_count += 1;
        self
    }

    pub(crate) fn u32(self, key: &str, value: u32) -> Self {
        self.raw_value(key, 4, &value.to_le_bytes())
    }

    pub(crate) fn f32(self, key: &str, value: f32) -> Self {
        self.raw_value(key, 6, &value.to_le_bytes())
    }

    pub(crate) fn bool(self, key: &str, value: bool) -> Self {
        self.raw_value(key, 7, &[value.into()])
    }

    pub(crate) fn str(self, key: &str, value: &str) -> Self {
        let mut bytes = Vec::new();
        string(&mut bytes, value);
        self.raw_value(key, 8, &bytes)
    }

    pub(crate) fn strs<S: AsRef<str>>(self, key: &str, values: &[S]) -> Self {
        let mut bytes = 8u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| string(&mut bytes, value.as_ref()));
        self.raw_value(key, 9, &bytes)
    }

    pub(crate) fn i32s(self, key: &str, values: &[i32]) -> Self {
        let mut bytes = 5u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        self.raw_value(key, 9, &bytes)
    }

    pub(crate) fn f32s(self, key: &str, values: &[f32]) -> Self {
        let mut bytes = 6u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        self.raw_value(key, 9, &bytes)
    }

    /// Lists a tensor (shape outermost first) without giving it data.
    pub(crate) fn listed(mut self, name: &str, shape: &[u64], type_number: u32, offset: u64) -> Self {
        string(&mut self.tensors, name);
        self.tensors.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|dimension| self.tensors.extend(dimension.to_le_bytes()));
        self.tensors.extend(type_number.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
        self.tensor_count += 1;
        self
    }

    pub(crate) fn data(mut self, bytes: &[u8]) -> Self {
        self.data.extend(bytes);
        self
    }

    /// A tensor with its values packed as `tensor_type`, padded to 32 bytes.
    pub(crate) fn tensor(mut self, name: &str, shape: &[u64], tensor_type: TensorType, values: &[f32]) -> Self {
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        let offset = self.data.len() as u64;
        let mut bytes = vec![0; tensor_type.packed_bytes(values.len()).unwrap()];
        tensor_type.quantize(values, &mut bytes);
        self.listed(name, shape, tensor_type.gguf_number(), offset).data(&bytes)
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(self.tensor_count.to_le_bytes());
        file.extend(self.key_count.to_le_bytes());
        file.extend(self.keys);
        file.extend(self.tensors);
        if self.tensor_count > 0 {
            file.resize(file.len().next_multiple_of(32), 0);
            file.extend(self.data);
        }
        file
    }
}
