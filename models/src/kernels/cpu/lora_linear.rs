//! Projections with their LoRA branches, several of one input at once, in both directions.

use super::buffer::Buffer;
use super::lora::{self, Branch, OutputGradient, Part, Projected};
use super::packed_linear;
use super::tiled;
use super::weights::Weights;

/// A matrix `[d_out, d_in]`, with its branch where it has one.
#[derive(Clone, Copy)]
pub(crate) struct Projection<'a> {
    pub(crate) weight: &'a Weights,
    pub(crate) branch: Option<Branch<'a>>,
}

/// What comes back to a projection, and what it kept.
pub(crate) struct Returned<'a> {
    pub(crate) projection: Projection<'a>,
    /// [`Projected::thin`].
    pub(crate) thin: &'a [f32],
    /// `[tokens, d_out]`.
    pub(crate) dy: &'a [f32],
}

/// `y = x · Wᵀ + scaling · (x · Aᵀ) · Bᵀ` of every projection, onto `residual` where there is one.
///
/// # Shapes
/// `x` `[tokens, d_in]`, `residual` `[tokens, d_out]`.
pub(crate) fn forward(x: &[f32], projections: &[Projection<'_>], residual: Option<&[f32]>) -> Vec<Projected> {
    match parts(projections) {
        Some(parts) => tiled::project(x, &parts, residual),
        None => projections.iter().map(|projection| forward_exactly(x, projection, residual)).collect(),
    }
}

/// d loss / d A `[rank, d_in]` and d loss / d B `[d_out, rank]` of every projection, empty without a branch, and where it is wanted, d loss / d x.
pub(crate) fn backward(x: &[f32], returned: &[Returned<'_>], with_dx: bool) -> (Vec<[Buffer; 2]>, Option<Buffer>) {
    let projections: Vec<Projection<'_>> = returned.iter().map(|returned| returned.projection).collect();
    let (thins, dx) = match parts(&projections) {
        Some(parts) => {
            let outputs = parts.iter().zip(returned).map(|(&part, returned)| OutputGradient { part, dy: returned.dy });
            tiled::pull_back(&outputs.collect::<Vec<_>>(), with_dx)
        }
        None => pull_back_exactly(returned, with_dx),
    };
    let of_branch = |(returned, g): (&Returned<'_>, Buffer)| {
        let Some(Branch { rank, scaling, .. }) = returned.projection.branch else {
            return [Buffer::new(0), Buffer::new(0)];
        };
        let (d_out, d_in) = (returned.projection.weight.rows(), returned.projection.weight.cols());
        let da = lora::outer(&g, x, rank, d_in);
        let mut db = lora::transposed(&lora::outer(returned.thin, returned.dy, rank, d_out), [rank, d_out]);
        db.iter_mut().for_each(|d| *d *= scaling);
        [da, db]
    };
    (returned.iter().zip(thins).map(of_branch).collect(), dx)
}

fn forward_exactly(x: &[f32], projection: &Projection<'_>, residual: Option<&[f32]>) -> Projected {
    let weight = projection.weight;
    let mut y = Buffer::new(x.len() / weight.cols() * weight.rows());
    weight.forward(x, &mut y);
    let mut thin = Buffer::new(0);
    if let Some(Branch { a, b, rank, scaling }) = projection.branch {
        thin = lora::reduce(x, a, rank, 1.0);
        let mut way_out = lora::transposed(b, [weight.rows(), rank]);
        way_out.iter_mut().for_each(|b| *b *= scaling);
        lora::expand(&mut y, &thin, &way_out, rank);
    }
    if let Some(residual) = residual {
        lora::add(&mut y, residual);
    }
    Projected { y, thin }
}

/// As [`tiled::pull_back`], for weights in any form.
fn pull_back_exactly(returned: &[Returned<'_>], with_dx: bool) -> (Vec<Buffer>, Option<Buffer>) {
    let g = |returned: &Returned<'_>| {
        returned.projection.branch.map_or_else(
            || Buffer::new(0),
            |Branch { b, rank, scaling, .. }| {
                let d_out = returned.projection.weight.rows();
                lora::reduce(returned.dy, &lora::transposed(b, [d_out, rank]), rank, scaling)
            },
        )
    };
    let thins: Vec<Buffer> = returned.iter().map(g).collect();
    let share = |(returned, g): (&Returned<'_>, &Buffer)| {
        let weight = returned.projection.weight;
        let mut dx = Buffer::new(returned.dy.len() / weight.rows() * weight.cols());
        match weight {
            Weights::Packed(weight) => packed_linear::backward(returned.dy, weight, &mut dx),
            Weights::Tiled(_) => weight.backward(&mut returned.dy.to_vec(), &mut dx),
        }
        if let Some(Branch { a, rank, .. }) = returned.projection.branch {
            lora::expand(&mut dx, g, a, rank);
        }
        dx
    };
    let sum = |mut sum: Buffer, share: Buffer| {
        lora::add(&mut sum, &share);
        sum
    };
    // The last one first, as autodiff adds what several operations give.
    let dx = with_dx.then(|| returned.iter().zip(&thins).rev().map(share).reduce(sum)).flatten();
    (thins, dx)
}

/// The projections, if all of them are in tiles.
fn parts<'a>(projections: &[Projection<'a>]) -> Option<Vec<Part<'a>>> {
    let part = |projection: &Projection<'a>| match projection.weight {
        Weights::Tiled(weight) => Some(Part { weight, branch: projection.branch }),
        Weights::Packed(_) => None,
    };
    projections.iter().map(part).collect()
}
