//! Kernels against the CPU's, and against themselves in other cuts.

use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::{Device, Tensor, TensorData};

use crate::device::ComputeDevice;
use crate::gpu_device;
use crate::nn::tracked;
use crate::ops::{Frozen, LoraBranch, lora_linear, packed_linear, pull_back};
use crate::quant::{PackedMatrix, TensorType};

/// Furthest that a sum of products of at most 1 each may be from the CPU's, for each of its terms: both round in f32.
const PER_TERM: f32 = 2e-6;

/// The GPU, for this test alone: cuts are set for the whole process.
fn gpu(test: &str) -> Option<(ComputeDevice, MutexGuard<'static, ()>)> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    match ComputeDevice::gpu() {
        Ok(device) => Some((device, alone)),
        Err(error) => {
            eprintln!("SKIPPED {test}: {error}");
            None
        }
    }
}

fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| (((i + seed) * 7919 % 2003) as f32 - 1001.0) / 1001.0).collect()
}

fn matrix(shape: [usize; 2], seed: usize, device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(numbers(shape[0] * shape[1], seed), shape), device)
}

fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_to_vec().expect("f32 values")
}

fn assert_close(found: &[f32], expected: &[f32], terms: usize, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let apart = (found - expected).abs();
        assert!(apart < terms as f32 * PER_TERM, "{what}[{index}]: {found} is not {expected}");
    }
}

/// A projection of `tokens` tokens with a branch of rank `rank` onto a residual: its result, and the gradients of x, A and B.
fn with_branch(tokens: usize, [d_out, d_in]: [usize; 2], rank: usize, device: &Device) -> [Vec<f32>; 4] {
    let weight = PackedMatrix::quantize(TensorType::Q4_1, [d_out, d_in], &numbers(d_out * d_in, 1));
    let leaf = |shape, seed| tracked(matrix(shape, seed, device));
    let (x, a, b) = (leaf([tokens, d_in], 5), leaf([rank, d_in], 6), leaf([d_out, rank], 7));
    let residual = leaf([tokens, d_out], 8);
    let branch = LoraBranch { a: a.clone(), b: b.clone(), scaling: 0.5 };
    let [y] = lora_linear(x.clone(), [(&Frozen::new(weight), Some(&branch))], Some(residual));
    let gradients = pull_back(y.clone(), matrix([tokens, d_out], 9, device)).backward();
    let gradient = |leaf: Tensor<2>| values(leaf.grad(&gradients).expect("a leaf has a gradient"));
    [values(y.inner()), gradient(x), gradient(a), gradient(b)]
}

#[test]
fn a_branch_gives_what_the_cpu_does_at_every_rank_and_number_of_tokens() {
    let Some((device, _alone)) = gpu("a branch on a GPU") else { return };
    let cpu = ComputeDevice::cpu();
    for (tokens, rank) in [(1, 8), (2, 3), (5, 8), (35, 12)] {
        let shape @ [d_out, d_in] = [70, 96];
        let on_gpu = with_branch(tokens, shape, rank, device.burn());
        let on_cpu = with_branch(tokens, shape, rank, cpu.burn());
        // A branch's terms are sums themselves.
        let terms = (d_in + d_out) * (1 + rank);
        for ((found, expected), what) in on_gpu.iter().zip(&on_cpu).zip(["y", "dx", "dA", "dB"]) {
            assert_close(found, expected, terms, &format!("{what} of {tokens} tokens, rank {rank}"));
        }
    }
}

#[test]
fn where_work_is_cut_into_launches_changes_no_bit() {
    let Some((device, _alone)) = gpu("cuts of a product") else { return };
    let pace = gpu_device::current().expect("it is open");
    let shapes = [(1, [200, 96]), (5, [200, 96]), (40, [70, 320])];
    let all = || shapes.map(|(tokens, shape)| with_branch(tokens, shape, 8, device.burn()));
    pace.pace().assume_flop_per_launch(1e12);
    let (whole, whole_work) = device.observed(all);
    pace.pace().assume_flop_per_launch(1.0);
    let (cut, cut_work) = device.observed(all);
    pace.pace().assume_flop_per_launch(1e7);
    let launches = |work: Option<crate::GpuWork>| work.map_or(0, |work| work.launches);
    assert!(launches(cut_work) > 4 * launches(whole_work), "nothing was cut");
    let bits = |results: [[Vec<f32>; 4]; 3]| {
        results.map(|result| result.map(|v| v.into_iter().map(f32::to_bits).collect::<Vec<_>>()))
    };
    assert!(bits(whole) == bits(cut), "a cut changed a result");
}

#[test]
fn a_transposed_product_over_many_rows_goes_on_where_the_launch_before_it_ended() {
    let Some((device, _alone)) = gpu("a long sum on a GPU") else { return };
    let pace = gpu_device::current().expect("it is open");
    let rows = 3000;
    let weight = PackedMatrix::quantize(TensorType::Q8_0, [rows, 64], &numbers(rows * 64, 1));
    let dx = |device: &Device| {
        let x = tracked(matrix([3, 64], 2, device));
        let y = packed_linear(x.clone(), &Frozen::new(weight.clone()));
        let gradients = pull_back(y, matrix([3, rows], 3, device)).backward();
        values(x.grad(&gradients).expect("a leaf has a gradient"))
    };
    // So many terms of one workgroup's sums.
    pace.pace().assume_flop_per_launch(2.0 * 64.0 * 16.0 * 1000.0);
    let (found, work) = device.observed(|| dx(device.burn()));
    pace.pace().assume_flop_per_launch(1e7);
    assert!(work.is_some_and(|work| work.launches >= 4), "the sums were not cut");
    assert_close(&found, &dx(ComputeDevice::cpu().burn()), rows, "dx");
}
