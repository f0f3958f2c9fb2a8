//! A packed matrix in device memory.

use burn::tensor::Tensor;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;
use cubecl::server::Handle;

use crate::gpu_device;
use crate::quant::{PackedMatrix, TensorType};

/// Largest buffer that a kernel binds: the storage-buffer limit of Pixel 7 and Galaxy S23.
pub(crate) const MAX_BINDING_BYTES: usize = 128 << 20;

/// How the kernels read a weight; one compiled variant each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Encoding {
    /// 4 bits: `(q - offset) · scale + minimum`.
    Bits4,
    /// 8 bits, sign flipped: `(q - 128) · scale + minimum`.
    Bits8,
    /// The upper half of a float.
    Bf16,
    /// A half-precision float.
    F16,
    /// A float.
    F32,
}

/// Rows of a packed matrix in words of 32 bits, split so that no buffer exceeds the binding limit.
pub(super) struct DeviceMatrix {
    pub(super) encoding: Encoding,
    /// Subtracted from a quant before scaling.
    pub(super) offset: f32,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) parts: Vec<Part>,
}

/// Consecutive rows.
pub(super) struct Part {
    pub(super) first_row: usize,
    pub(super) rows: usize,
    /// Weights of a row one after another, the first in the low bits of a word.
    pub(super) words: Handle,
    pub(super) len_words: usize,
    /// Scale and minimum of each block of 32 weights, `[rows, cols / 32, 2]`; one unused pair for floats.
    pub(super) scales: Handle,
    pub(super) len_scales: usize,
}

impl DeviceMatrix {
    /// Copies a matrix to the device, still packed: quants keep their bits, scales become f32.
    pub(super) fn upload(matrix: &PackedMatrix, client: &Client) -> Self {
        let (encoding, offset) = match matrix.tensor_type() {
            TensorType::Q4_0 => (Encoding::Bits4, 8.0),
            TensorType::Q4_1 => (Encoding::Bits4, 0.0),
            TensorType::Q8_0 => (Encoding::Bits8, 128.0),
            TensorType::BF16 => (Encoding::Bf16, 0.0),
            TensorType::F16 => (Encoding::F16, 0.0),
            TensorType::F32 => (Encoding::F32, 0.0),
        };
        let (rows, cols) = (matrix.rows(), matrix.cols());
        let rows_per_part = (MAX_BINDING_BYTES / (4 * row_words(encoding, cols))).clamp(1, rows);
        let parts = (0..rows)
            .step_by(rows_per_part)
            .map(|first_row| {
                let count = rows_per_part.min(rows - first_row);
                let (mut words, mut scales) = (Vec::new(), Vec::new());
                for row in first_row..first_row + count {
                    pack_row(matrix.tensor_type(), matrix.row_bytes(row), cols, &mut words, &mut scales);
                }
                if scales.is_empty() {
                    scales.extend([1.0, 0.0]);
                }
                Part {
                    first_row,
                    rows: count,
                    words: client.create_from_slice(bytemuck::cast_slice(&words)),
                    len_words: words.len(),
                    scales: client.create_from_slice(bytemuck::cast_slice(&scales)),
                    len_scales: scales.len(),
                }
            })
            .collect();
        Self { encoding, offset, rows, cols, parts }
    }
}

/// Words that a row takes; a row begins on a word.
pub(super) fn row_words(encoding: Encoding, cols: usize) -> usize {
    cols.div_ceil(per_word(encoding))
}

/// Weights in a word.
pub(super) fn per_word(encoding: Encoding) -> usize {
    match encoding {
        Encoding::Bits4 => 8,
        Encoding::Bits8 => 4,
        Encoding::Bf16 | Encoding::F16 => 2,
        Encoding::F32 => 1,
    }
}

fn pack_row(tensor_type: TensorType, bytes: &[u8], cols: usize, words: &mut Vec<u32>, scales: &mut Vec<f32>) {
    let f16 = |low: u8, high: u8| half::f16::from_le_bytes([low, high]).to_f32();
    // GGUF's 4-bit blocks hold weight i in the low half of byte i, weight i + 16 in the high half.
    let nibble = |quants: &[u8], i: usize| u32::from(if i < 16 { quants[i] & 0x0f } else { quants[i - 16] >> 4 });
    let nibbles = |quants: &[u8], words: &mut Vec<u32>| {
        words.extend((0..4).map(|word| (0..8).map(|i| nibble(quants, word * 8 + i) << (4 * i)).sum::<u32>()));
    };
    match tensor_type {
        TensorType::Q4_0 => {
            for block in bytes.chunks_exact(18) {
                scales.extend([f16(block[0], block[1]), 0.0]);
                nibbles(&block[2..], words);
            }
        }
        TensorType::Q4_1 => {
            for block in bytes.chunks_exact(20) {
                scales.extend([f16(block[0], block[1]), f16(block[2], block[3])]);
                nibbles(&block[4..], words);
            }
        }
        TensorType::Q8_0 => {
            for block in bytes.chunks_exact(34) {
                scales.extend([f16(block[0], block[1]), 0.0]);
                words.extend(
                    block[2..].chunks_exact(4).map(|q| u32::from_le_bytes([q[0], q[1], q[2], q[3]]) ^ 0x8080_8080),
                );
            }
        }
        TensorType::BF16 | TensorType::F16 => {
            words.extend(bytes.chunks(4).map(|pair| {
                u32::from_le_bytes([pair[0], pair[1], *pair.get(2).unwrap_or(&0), *pair.get(3).unwrap_or(&0)])
            }));
        }
        TensorType::F32 => words.extend(bytes.chunks_exact(4).map(|v| u32::from_le_bytes([v[0], v[1], v[2], v[3]]))),
    }
    debug_assert!(cols > 0);
}

/// A new f32 tensor `[rows, cols]` on the device of `like`, its values not yet written.
pub(super) fn empty(like: &CubeTensor, rows: usize, cols: usize) -> CubeTensor {
    let shape = burn::tensor::Shape::new([rows, cols]);
    burn_cubecl::ops::numeric::empty_device_contiguous_dtype(
        like.client.clone(),
        like.device.clone(),
        shape,
        burn::tensor::DType::F32,
    )
}

/// The two sizes of a matrix, its values row-major from the start.
pub(super) fn contiguous(tensor: CubeTensor) -> (CubeTensor, [usize; 2]) {
    let tensor = burn_cubecl::kernel::into_contiguous(tensor);
    let shape = burn::backend::TensorMetadata::shape(&tensor).dims::<2>();
    (tensor, shape)
}

/// Counts a launch of so many FLOP towards the next submission.
pub(super) fn paced(client: &Client, flop: f64) {
    if let Some(gpu) = gpu_device::current() {
        gpu.pace().launched(client, flop);
    }
}

/// Names the backend once for the files beside this one.
pub(super) type Gpu = CubeBackend;

/// burn's tensor around a device's, for what is composed of burn's operations.
pub(super) fn tensor(primitive: CubeTensor) -> Tensor<2> {
    Tensor::from_primitive::<Gpu>(primitive)
}

/// The device's tensor inside burn's.
pub(super) fn primitive(tensor: Tensor<2>) -> CubeTensor {
    match tensor.try_into_primitive::<Gpu>() {
        Ok(primitive) => primitive,
        Err(error) => panic!("a GPU tensor left its backend: {error:?}"),
    }
}
