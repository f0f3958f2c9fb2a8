//! What this machine can do at best: multiply-adds in f32 and in bf16, and bytes read from memory.
//!
//! Each peak is the best of several short runs of a loop that does nothing else, on as many threads as asked for.

// The loops are written in the processor's own instructions, which are there when the processor says so at run time.
#![allow(unsafe_code)]

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

use serde::Serialize;

/// Runs of each loop, of which the best counts: many short ones, so that some are not interrupted on a machine that does other things too.
const RUNS: usize = 100;
/// The same over the memory, where one run is longer.
const MEMORY_RUNS: usize = 20;
/// Bytes that are read to measure the memory: several times the caches.
const MEMORY_BYTES: usize = 256 << 20;
/// Independent sums, more than the latency of an instruction times its throughput anywhere.
const SUMS: usize = 16;
/// Instructions of one sum in one run: a few milliseconds.
const ROUNDS: u64 = 1_000_000;

/// The peaks of some threads together.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Peaks {
    /// Threads that ran.
    pub threads: usize,
    /// Multiplications and additions of f32 in a second, in thousands of millions.
    pub f32_gflops: f64,
    /// The same of bf16 pairs summed in f32, where the processor has an instruction for it.
    pub bf16_gflops: Option<f64>,
    /// Bytes read from memory in a second, in thousands of millions.
    pub memory_gb_per_s: f64,
}

impl Peaks {
    /// Measures; takes about a second.
    pub fn measure(threads: usize) -> Self {
        let f32_loop = f32_loop();
        Self {
            threads,
            f32_gflops: gflops(threads, f32_loop),
            bf16_gflops: bf16_loop().map(|bf16_loop| gflops(threads, bf16_loop)),
            memory_gb_per_s: memory_gb_per_s(threads),
        }
    }

    /// The fastest that arithmetic can be.
    pub fn gflops(&self) -> f64 {
        self.bf16_gflops.unwrap_or(0.0).max(self.f32_gflops)
    }

    /// Seconds that `flop` operations and `bytes` of memory take at least, whichever is the longer.
    pub fn least_seconds(&self, flop: f64, bytes: f64) -> f64 {
        (flop / (self.gflops() * 1e9)).max(bytes / (self.memory_gb_per_s * 1e9))
    }
}

/// A loop over [`SUMS`] sums, and the operations of one instruction.
#[derive(Clone, Copy)]
struct Loop {
    run: fn(u64) -> f32,
    flop: u64,
}

fn gflops(threads: usize, work: Loop) -> f64 {
    let seconds = best_seconds(threads, RUNS, |_| {
        black_box((work.run)(black_box(ROUNDS)));
    });
    (threads as u64 * ROUNDS * SUMS as u64 * work.flop) as f64 / seconds / 1e9
}

fn memory_gb_per_s(threads: usize) -> f64 {
    let memory = vec![1u64; MEMORY_BYTES / 8];
    let part = memory.len() / threads;
    let seconds = best_seconds(threads, MEMORY_RUNS, |thread| {
        black_box(sum(&memory[thread * part..(thread + 1) * part]));
    });
    (threads * part * 8) as f64 / seconds / 1e9
}

/// Seconds of the shortest of several runs, each as long as the slowest of its threads, which start together.
fn best_seconds(threads: usize, runs: usize, work: impl Fn(usize) + Sync) -> f64 {
    let barrier = Barrier::new(threads);
    let run = |thread: usize| {
        barrier.wait();
        let started = Instant::now();
        work(thread);
        started.elapsed().as_secs_f64()
    };
    let all = |thread: usize| (0..runs).map(|_| run(thread)).collect::<Vec<f64>>();
    let times: Vec<Vec<f64>> = std::thread::scope(|scope| {
        let started: Vec<_> = (0..threads).map(|thread| scope.spawn(move || all(thread))).collect();
        // A thread that failed has no times, and so no run.
        started.into_iter().map(|thread| thread.join().unwrap_or_default()).collect()
    });
    let slowest =
        |run: usize| times.iter().map(|times| times.get(run).copied().unwrap_or(f64::INFINITY)).fold(0.0, f64::max);
    (0..runs).map(slowest).fold(f64::INFINITY, f64::min)
}

/// Multiply-adds of plain code, as the compiler makes them for any processor of this kind.
fn f32_plain(rounds: u64) -> f32 {
    let (scale, offset) = (black_box(0.999_f32), black_box(0.001_f32));
    let mut sums = [1.0_f32; SUMS];
    for _ in 0..rounds {
        sums = sums.map(|sum| sum * scale + offset);
    }
    sums.iter().sum()
}

#[cfg(target_arch = "x86_64")]
fn f32_loop() -> Loop {
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has AVX-512F.
        return Loop { run: |rounds| unsafe { x86::f32_avx512(rounds) }, flop: 32 };
    }
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has AVX2 and FMA.
        return Loop { run: |rounds| unsafe { x86::f32_avx2(rounds) }, flop: 16 };
    }
    Loop { run: f32_plain, flop: 2 }
}

#[cfg(target_arch = "x86_64")]
fn bf16_loop() -> Option<Loop> {
    let has = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16");
    // SAFETY: the processor has AVX-512F and AVX512-BF16.
    has.then_some(Loop { run: |rounds| unsafe { x86::bf16_avx512(rounds) }, flop: 64 })
}

#[cfg(target_arch = "aarch64")]
fn f32_loop() -> Loop {
    // Every 64-bit ARM processor has NEON, and plain code is compiled to it.
    Loop { run: arm::f32_neon, flop: 8 }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn f32_loop() -> Loop {
    Loop { run: f32_plain, flop: 2 }
}

#[cfg(not(target_arch = "x86_64"))]
fn bf16_loop() -> Option<Loop> {
    None
}

/// Reads every value. Plain code is far faster than the memory.
fn sum(values: &[u64]) -> u64 {
    values.iter().fold(0, |sum, value| sum.wrapping_add(*value))
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::SUMS;

    #[target_feature(enable = "avx512f")]
    pub(super) fn f32_avx512(rounds: u64) -> f32 {
        let (scale, offset) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(0.001)));
        let mut sums = [_mm512_set1_ps(1.0); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, scale, offset);
            }
        }
        sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn f32_avx2(rounds: u64) -> f32 {
        let (scale, offset) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(0.001)));
        // 16 registers hold 14 sums beside the two factors; the last two of SUMS take turns with memory, which is not the limit.
        let mut sums = [_mm256_set1_ps(1.0); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, scale, offset);
            }
        }
        sums.into_iter().map(|sum| _mm256_cvtss_f32(sum)).sum()
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn bf16_avx512(rounds: u64) -> f32 {
        let ones = _mm512_set1_ps(black_box(0.001));
        let (a, b) = (_mm512_cvtne2ps_pbh(ones, ones), _mm512_cvtne2ps_pbh(ones, ones));
        let mut sums = [_mm512_set1_ps(1.0); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, a, b);
            }
        }
        sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;
    use std::hint::black_box;

    use super::SUMS;

    pub(super) fn f32_neon(rounds: u64) -> f32 {
        // SAFETY: NEON is part of every aarch64 target that has floats.
        unsafe {
            let (scale, offset) = (vdupq_n_f32(black_box(0.999)), vdupq_n_f32(black_box(0.001)));
            let mut sums = [vdupq_n_f32(1.0); SUMS];
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = vfmaq_f32(offset, *sum, scale);
                }
            }
            sums.into_iter().map(|sum| vaddvq_f32(sum)).sum()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_of_arithmetic_and_memory_decides() {
        let peaks = Peaks { threads: 1, f32_gflops: 100.0, bf16_gflops: Some(200.0), memory_gb_per_s: 10.0 };
        assert_eq!(peaks.least_seconds(4e11, 1e9), 2.0);
        assert_eq!(peaks.least_seconds(4e9, 1e11), 10.0);
    }
}
