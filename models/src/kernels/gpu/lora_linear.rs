//! A projection with its LoRA branch. The way out of few dimensions and the residual are in the packed product's own kernel;
//! the two kernels here are the way into them, and the gradients of A and B.
//!
//! **Into few dimensions**: a workgroup takes [`TOKENS`] tokens, or the only one, and [`RANKS`] ranks at a time. Its units go
//! side by side over the features, so that they read neighbours, and add up one sum for each token and rank in registers; the
//! units' parts are added in workgroup memory (8 KiB), in order.
//!
//! **Gradients**: sums over tokens, a unit for each feature and [`RANKS`] ranks of it, A's and B's in one launch. Units read
//! neighbours of a token's features, and all of them the same few values beside those.

use burn::backend::tensor::FloatTensor;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{Gpu, buffer, contiguous, empty, in_launches, primitive, tensor};
use super::packed_linear::{Onto, Thin, multiply};
use crate::gpu_pace::Kernel;
use crate::ops::lora_linear::{
    Branch, Inputs, LoraLinearKernel, LoraLinearOps, Projected, Projection, ProjectionGradients, Returned,
};

/// Units of a workgroup.
const UNITS: u32 = 64;
/// Floats from one sum's parts to the next's: one more than there are units, so that they do not meet in a bank.
const STRIDE: u32 = UNITS + 1;
/// Tokens of a workgroup, where there are several.
const TOKENS: u32 = 4;
/// Ranks that a unit has sums for at a time.
const RANKS: u32 = 8;

impl LoraLinearKernel for Gpu {
    // A shared result costs launches of its own, and saves none.
    const JOINS: bool = false;

    fn project(
        x: &FloatTensor<Self>,
        projections: &[Projection<Self>],
        residual: Option<FloatTensor<Self>>,
    ) -> Vec<Projected<Self>> {
        let (x, [_, d_in]) = contiguous(x.clone());
        let residual = residual.map(|residual| contiguous(residual).0);
        let project = |Projection { weight, branch }: &Projection<Self>| match branch {
            Some(Branch { a, b, scaling }) => {
                let [(a, _), (b, [_, rank])] = [a, b].map(|tensor| contiguous(tensor.clone()));
                let thin = reduce(&x, &a, [d_in as u32, 1], rank, 1.0);
                let branch = Thin { thin: &thin, wide: &b, is_transposed: false, scaling: *scaling };
                let onto = Onto { base: residual.as_ref(), branch: Some(branch) };
                let y = multiply(x.clone(), weight, false, &onto);
                Projected { y, thin: Some(thin) }
            }
            None => {
                let onto = Onto { base: residual.as_ref(), branch: None };
                Projected { y: multiply(x.clone(), weight, false, &onto), thin: None }
            }
        };
        projections.iter().map(project).collect()
    }

    fn project_back(x: FloatTensor<Self>, returned: Vec<Returned<Self>>, with_dx: bool) -> ProjectionGradients<Self> {
        let (x, _) = contiguous(x);
        let mut gradients = ProjectionGradients { branches: Vec::new(), dx: None };
        for Returned { projection, thin, dy } in returned {
            let (of_branch, dx) = go_back(&x, projection, thin, dy, with_dx);
            gradients.branches.push(of_branch);
            gradients.dx = match (gradients.dx, dx) {
                (Some(sum), Some(dx)) => Some(primitive(tensor(sum) + tensor(dx))),
                (sum, dx) => sum.or(dx),
            };
        }
        gradients
    }
}

/// The gradients of one projection: of A and B, and where `with_dx`, what it adds to that of `x`.
fn go_back(
    x: &CubeTensor,
    Projection { weight, branch }: Projection<Gpu>,
    thin: Option<CubeTensor>,
    dy: CubeTensor,
    with_dx: bool,
) -> (Option<[CubeTensor; 2]>, Option<CubeTensor>) {
    let (dy, _) = contiguous(dy);
    let (Some(Branch { a, b, scaling }), Some(thin)) = (branch, thin) else {
        let dx = with_dx.then(|| multiply(dy, &weight, true, &Onto { base: None, branch: None }));
        return (None, dx);
    };
    let [(a, _), (b, [_, rank])] = [a, b].map(contiguous);
    let thin_dy = reduce(&dy, &b, [1, rank as u32], rank, scaling);
    let of_branch = gradients(x, &thin_dy, &dy, &thin, scaling);
    let dx = with_dx.then(|| {
        let branch = Thin { thin: &thin_dy, wide: &a, is_transposed: true, scaling: 1.0 };
        multiply(dy, &weight, true, &Onto { base: None, branch: Some(branch) })
    });
    (Some(of_branch), dx)
}

impl LoraLinearOps for Gpu {
    fn lora_linear(inputs: Inputs<Self>) -> Vec<FloatTensor<Self>> {
        Self::results(inputs)
    }
}

/// `factor · x · rowsᵀ`: `x` `[tokens, width]`, `rows` with these steps from one rank and from one feature to the next, result
/// `[tokens, rank]`.
fn reduce(
    x: &CubeTensor,
    rows: &CubeTensor,
    [rank_stride, feature_stride]: [u32; 2],
    rank: usize,
    factor: f32,
) -> CubeTensor {
    let [tokens, width] = burn::backend::TensorMetadata::shape(x).dims::<2>();
    let thin = empty(x, tokens, rank);
    let tokens_per_cube = if tokens == 1 { 1 } else { TOKENS };
    let cubes = (tokens as u32).div_ceil(tokens_per_cube);
    let flop = 2.0 * f64::from(tokens_per_cube) * (width * rank) as f64;
    in_launches(&x.client, Kernel::Reduce, cubes, flop, |first, count| {
        // SAFETY: every buffer is passed with its own length, and the sizes are those of the buffers.
        unsafe {
            reduce_kernel::launch_unchecked(
                &x.client,
                CubeCount::Static(count, 1, 1),
                CubeDim::new_1d(UNITS),
                buffer(x),
                buffer(rows),
                buffer(&thin),
                ReduceSizesLaunch::new(
                    first,
                    tokens as u32,
                    width as u32,
                    rank as u32,
                    rank_stride,
                    feature_stride,
                    factor,
                ),
                tokens_per_cube,
            );
        }
    });
    thin
}

/// d loss / d A `[rank, d_in]` and d loss / d B `[d_out, rank]`: `thin_dyᵀ · x` and `scaling · dyᵀ · thin`.
fn gradients(
    x: &CubeTensor,
    thin_dy: &CubeTensor,
    dy: &CubeTensor,
    thin: &CubeTensor,
    scaling: f32,
) -> [CubeTensor; 2] {
    let sizes = |tensor: &CubeTensor| burn::backend::TensorMetadata::shape(tensor).dims::<2>();
    let ([tokens, d_in], [_, d_out], [_, rank]) = (sizes(x), sizes(dy), sizes(thin));
    let (da, db) = (empty(x, rank, d_in), empty(x, d_out, rank));
    let cubes_of_a = (d_in as u32).div_ceil(UNITS);
    let cubes = cubes_of_a + (d_out as u32).div_ceil(UNITS);
    let flop = 2.0 * f64::from(UNITS) * (tokens * rank) as f64;
    in_launches(&x.client, Kernel::AdapterGradients, cubes, flop, |first, count| {
        // SAFETY: as above.
        unsafe {
            gradients_kernel::launch_unchecked(
                &x.client,
                CubeCount::Static(count, 1, 1),
                CubeDim::new_1d(UNITS),
                buffer(x),
                buffer(thin_dy),
                buffer(&da),
                buffer(dy),
                buffer(thin),
                buffer(&db),
                GradientSizesLaunch::new(
                    first,
                    cubes_of_a,
                    tokens as u32,
                    rank as u32,
                    d_in as u32,
                    d_out as u32,
                    scaling,
                ),
            );
        }
    });
    [da, db]
}

#[derive(CubeType, CubeLaunch)]
struct ReduceSizes {
    first_cube: u32,
    tokens: u32,
    width: u32,
    rank: u32,
    rank_stride: u32,
    feature_stride: u32,
    factor: f32,
}

#[derive(CubeType, CubeLaunch)]
struct GradientSizes {
    first_cube: u32,
    /// Workgroups for A; those for B come behind them.
    cubes_of_a: u32,
    tokens: u32,
    rank: u32,
    d_in: u32,
    d_out: u32,
    /// Of B's gradient.
    scaling: f32,
}

#[cube(launch_unchecked)]
fn reduce_kernel(x: &[f32], rows: &[f32], thin: &mut [f32], sizes: &ReduceSizes, #[comptime] tokens_per_cube: u32) {
    let first_token = (sizes.first_cube + CUBE_POS_X) * tokens_per_cube;
    let mut parts = Shared::<[f32]>::new_slice(comptime!((STRIDE * tokens_per_cube * RANKS) as usize));
    let mut sums = Array::<f32>::new(comptime!((tokens_per_cube * RANKS) as usize));
    let mut first_rank = 0u32;
    while first_rank < sizes.rank {
        #[unroll]
        for index in 0..comptime!(tokens_per_cube * RANKS) {
            sums[index as usize] = 0.0;
        }
        let mut feature = UNIT_POS_X;
        while feature < sizes.width {
            #[unroll]
            for r in 0..RANKS {
                // Ranks and tokens beyond the last are read as the last, and not stored.
                let rank = select(first_rank + r < sizes.rank, first_rank + r, sizes.rank - 1);
                let row = rows[(rank * sizes.rank_stride + feature * sizes.feature_stride) as usize];
                #[unroll]
                for t in 0..tokens_per_cube {
                    let token = select(first_token + t < sizes.tokens, first_token + t, sizes.tokens - 1);
                    sums[(t * RANKS + r) as usize] += row * x[(token * sizes.width + feature) as usize];
                }
            }
            feature += UNITS;
        }
        #[unroll]
        for index in 0..comptime!(tokens_per_cube * RANKS) {
            parts[(index * STRIDE + UNIT_POS_X) as usize] = sums[index as usize];
        }
        sync_cube();
        let (token, rank) = (first_token + UNIT_POS_X / RANKS, first_rank + UNIT_POS_X % RANKS);
        if UNIT_POS_X < tokens_per_cube * RANKS && token < sizes.tokens && rank < sizes.rank {
            let mut total = 0.0f32;
            for unit in 0..UNITS {
                total += parts[(UNIT_POS_X * STRIDE + unit) as usize];
            }
            thin[(token * sizes.rank + rank) as usize] = total * sizes.factor;
        }
        sync_cube();
        first_rank += RANKS;
    }
}

/// For each rank, `factor` times the sum over all tokens of `thin` times the token's `feature`.
#[cube]
fn sum_over_tokens(
    features: &[f32],
    thin: &[f32],
    out: &mut [f32],
    feature: u32,
    width: u32,
    strides: (u32, u32),
    factor: f32,
    sizes: &GradientSizes,
) {
    let mut sums = Array::<f32>::new(comptime!(RANKS as usize));
    let mut first_rank = 0u32;
    while first_rank < sizes.rank {
        #[unroll]
        for r in 0..RANKS {
            sums[r as usize] = 0.0;
        }
        for token in 0..sizes.tokens {
            let value = features[(token * width + feature) as usize];
            #[unroll]
            for r in 0..RANKS {
                let rank = select(first_rank + r < sizes.rank, first_rank + r, sizes.rank - 1);
                sums[r as usize] += value * thin[(token * sizes.rank + rank) as usize];
            }
        }
        #[unroll]
        for r in 0..RANKS {
            let rank = first_rank + r;
            if rank < sizes.rank {
                out[(rank * strides.0 + feature * strides.1) as usize] = sums[r as usize] * factor;
            }
        }
        first_rank += RANKS;
    }
}

#[cube(launch_unchecked)]
fn gradients_kernel(
    x: &[f32],
    thin_dy: &[f32],
    da: &mut [f32],
    dy: &[f32],
    thin: &[f32],
    db: &mut [f32],
    sizes: &GradientSizes,
) {
    let cube = sizes.first_cube + CUBE_POS_X;
    if cube < sizes.cubes_of_a {
        let feature = cube * UNITS + UNIT_POS_X;
        if feature < sizes.d_in {
            sum_over_tokens(x, thin_dy, da, feature, sizes.d_in, (sizes.d_in, 1), 1.0, sizes);
        }
    } else {
        let feature = (cube - sizes.cubes_of_a) * UNITS + UNIT_POS_X;
        if feature < sizes.d_out {
            sum_over_tokens(dy, thin, db, feature, sizes.d_out, (1, sizes.rank), sizes.scaling, sizes);
        }
    }
}
