//! Products of many tokens: a panel of 32 outputs is dequantized to bf16 once, and one microkernel multiplies it in both directions.
//!
//! A LoRA branch joins the reduction: what the way into few dimensions makes of a token stands behind its row, and the way out behind
//! the panel's weights, so that a branch costs its share of the products and no more. Projections of one input share its rounding, and
//! on the way back one reduction over all of them.

use std::ops::Range;

use super::layout::{TILE_COLS, TILE_ROWS, TiledMatrix};
use super::product::{self, Segment, Target};
use super::rounded::{self, Rounded, Rows};
use super::slab::{self, PANEL, WORDS};
use super::way_in::WayIn;
use crate::kernels::cpu::columns::Columns;
use crate::kernels::cpu::lora::{Branch, OutputGradient, Part};
use crate::kernels::cpu::parallel;

/// Pairs that a slab of the backward direction holds: 1024 · 128 bytes are a share of the second-level cache.
const SLAB_PAIRS: usize = 1024;

/// `y = x · Wᵀ + scaling · (x · Aᵀ) · Bᵀ` of every part, onto `residual` where there is one; shapes as in [`super::project`].
///
/// Writes every value of `outputs` and `thins`, which belong to the parts one by one.
pub(super) fn forward(
    x: &[f32],
    parts: &[Part<'_>],
    outputs: &[Columns<'_>],
    thins: &[Columns<'_>],
    residual: Option<&[f32]>,
) {
    let (cols, pairs) = (parts[0].weight.cols(), parts[0].weight.tile_cols() * TILE_COLS / 2);
    let tokens = x.len() / cols;
    if tokens == 0 {
        return;
    }
    let mut stride = pairs;
    let appended: Vec<Range<usize>> = parts.iter().map(|part| take(&mut stride, branch_pairs(part.branch))).collect();
    // SAFETY: whoever made a tiled matrix has found the instructions.
    let way_in = unsafe { WayIn::of_rows(pairs, parts.iter().map(|part| part.branch)) };
    let fill = |rows: Range<usize>, out: &Rows| {
        // SAFETY: as above; this task alone touches these rows.
        unsafe {
            rows.clone().for_each(|row| out.round(row, 0..pairs, &x[row * cols..][..cols], 1.0));
            way_in.apply(rows.clone(), out, thins, 1.0);
            for ((part, thin), pairs) in parts.iter().zip(thins).zip(&appended) {
                append(part.branch, rows.clone(), out, pairs, thin, |branch| branch.scaling);
            }
        }
    };
    let x = Rounded::new(tokens, stride, fill);
    let tasks: Vec<(usize, usize)> = parts
        .iter()
        .enumerate()
        .flat_map(|(part, of)| (0..of.weight.rows().div_ceil(PANEL)).map(move |panel| (part, panel)))
        .collect();
    parallel::for_each(tasks.len(), |task| {
        let (part, panel) = tasks[task];
        let Part { weight, branch } = parts[part];
        slab::with_words(WORDS * (pairs + appended[part].len()), |words| {
            let (base, way_out) = words.split_at_mut(WORDS * pairs);
            let first = panel * PANEL;
            let count = PANEL.min(weight.rows() - first);
            // SAFETY: as above; this task alone writes these columns.
            unsafe {
                slab::unpack_rows(weight, panel, base);
                if let Some(branch) = branch {
                    let rows = branch.b.chunks_exact(branch.rank).skip(first).take(count);
                    slab::round_rows(rows, way_out, WORDS);
                }
                let segments = [Segment { pair: 0, slab: base }, Segment { pair: appended[part].start, slab: way_out }];
                let base = residual.map_or(std::ptr::null(), |residual| residual[first..].as_ptr());
                let start = outputs[part].place(0, first, count);
                product::wide(&x.rows(), 0..tokens, &segments, Target { start, stride: weight.rows(), count, base });
            }
        });
    });
}

/// `g = scaling · dy · B` of every output, and where it is wanted, `dx = Σ dy · W + g · A`; shapes as in [`super::pull_back`].
///
/// Writes every value of `thins`, which are the g one by one, and of `dx`.
pub(super) fn backward(outputs: &[OutputGradient<'_>], thins: &[Columns<'_>], dx: Option<&Columns<'_>>) {
    let tokens = outputs[0].dy.len() / outputs[0].part.weight.rows();
    if tokens == 0 {
        return;
    }
    let mut stride = 0;
    // Of every output the pairs of its gradient, and behind them those of g.
    let places: Vec<[Range<usize>; 2]> = outputs
        .iter()
        .map(|OutputGradient { part, .. }| {
            let pairs = part.weight.tile_rows() * TILE_ROWS / 2;
            [take(&mut stride, pairs), take(&mut stride, branch_pairs(part.branch))]
        })
        .collect();
    let ways_in: Vec<WayIn> = outputs
        .iter()
        .zip(&places)
        // SAFETY: whoever made a tiled matrix has found the instructions.
        .map(|(output, [pairs, _])| unsafe { WayIn::of_columns(pairs.clone(), output.part.branch) })
        .collect();
    let fill = |rows: Range<usize>, out: &Rows| {
        for (index, OutputGradient { part, dy }) in outputs.iter().enumerate() {
            let ([pairs, appended], width) = (&places[index], part.weight.rows());
            // SAFETY: as above; this task alone touches these rows.
            unsafe {
                rows.clone().for_each(|row| out.round(row, pairs.clone(), &dy[row * width..][..width], 1.0));
                let scaling = part.branch.map_or(1.0, |branch| branch.scaling);
                ways_in[index].apply(rows.clone(), out, &thins[index..=index], scaling);
                append(part.branch, rows.clone(), out, appended, &thins[index], |_| 1.0);
            }
        }
    };
    let dy = Rounded::new(tokens, stride, fill);
    let Some(dx) = dx else { return };
    let parts: Vec<Part<'_>> = outputs.iter().map(|output| output.part).collect();
    reduce(&dy.rows(), tokens, &parts, dx);
}

/// `dx = dy · W` of one matrix without a branch, which leaves something else in `dy`: its rounded values take the place of it.
///
/// Writes every value of `dx`.
pub(super) fn backward_in_place(dy: &mut [f32], weight: &TiledMatrix, dx: &Columns<'_>) {
    let (width, pairs) = (weight.rows(), weight.tile_rows() * TILE_ROWS / 2);
    let tokens = dy.len() / width;
    let part = Part { weight, branch: None };
    if pairs > width {
        return backward(&[OutputGradient { part, dy }], &[Columns::new(&mut [], 0)], Some(dx));
    }
    let values = dy.as_mut_ptr();
    let rows = Rows::new(values.cast(), width);
    rounded::for_rows(tokens, &rows, |range, out| {
        for row in range {
            // SAFETY: whoever made a tiled matrix has found the instructions; this task alone touches the row, through its pointer.
            unsafe { out.round_from(row, 0..pairs, out.at(row, 0).cast(), width, 1.0) };
        }
    });
    reduce(&rows, tokens, &[part], dx);
}

/// Multiplies rows of pairs with all rows of all parts and of their ways in, one below the other.
fn reduce(dy: &Rows, tokens: usize, parts: &[Part<'_>], dx: &Columns<'_>) {
    let (cols, pieces) = (parts[0].weight.cols(), Piece::of_all(parts));
    let pairs = pieces.iter().map(|piece| piece.pairs.len()).sum::<usize>();
    parallel::for_each(cols.div_ceil(PANEL), |panel| {
        let first = panel * PANEL;
        let count = PANEL.min(cols - first);
        let start = dx.place(0, first, count);
        slab::with_words(WORDS * pairs.min(SLAB_PAIRS), |slab| {
            let multiply = |reduced: &Range<usize>, slab: &[slab::Word]| {
                let segment = [Segment { pair: reduced.start, slab: &slab[..WORDS * reduced.len()] }];
                let base = if reduced.start == 0 { std::ptr::null() } else { start.cast_const() };
                // SAFETY: whoever made a tiled matrix has found the instructions; this task alone touches these columns.
                unsafe { product::wide(dy, 0..tokens, &segment, Target { start, stride: cols, count, base }) };
            };
            let mut reduced = 0..0;
            for piece in &pieces {
                if reduced.len() + piece.pairs.len() > SLAB_PAIRS {
                    multiply(&reduced, slab);
                    reduced.start = reduced.end;
                }
                // SAFETY: as above.
                unsafe { piece.unpack(panel, &mut slab[WORDS * reduced.len()..][..WORDS * piece.pairs.len()]) };
                reduced.end += piece.pairs.len();
            }
            multiply(&reduced, slab);
        });
    });
}

/// What a slab of the backward direction is filled with at a time: pairs of rows of a matrix, or of a branch's way in.
struct Piece<'a> {
    part: Part<'a>,
    is_branch: bool,
    pairs: Range<usize>,
}

impl<'a> Piece<'a> {
    /// All rows of all matrices and branches, in the order that gradients and what is appended to them have in a token's row.
    fn of_all(parts: &[Part<'a>]) -> Vec<Self> {
        let in_order = parts.iter().flat_map(|part| {
            [(part, false, part.weight.tile_rows() * TILE_ROWS / 2), (part, true, branch_pairs(part.branch))]
        });
        let pieces = in_order.flat_map(|(&part, is_branch, pairs)| {
            let chunks = (0..pairs).step_by(SLAB_PAIRS).map(move |first| first..pairs.min(first + SLAB_PAIRS));
            chunks.map(move |pairs| Self { part, is_branch, pairs })
        });
        pieces.collect()
    }

    /// Writes its weights of a panel of columns.
    ///
    /// # Safety
    /// The processor has AVX-512 with bf16; `slab` has [`WORDS`] words for each pair.
    unsafe fn unpack(&self, panel: usize, slab: &mut [slab::Word]) {
        let Part { weight, branch } = self.part;
        // SAFETY: as the caller promises.
        unsafe {
            match branch {
                Some(branch) if self.is_branch => {
                    let cols = weight.cols();
                    let rows = &branch.a[2 * self.pairs.start * cols..branch.a.len().min(2 * self.pairs.end * cols)];
                    slab::round_columns(rows, cols, panel * PANEL, slab, WORDS);
                }
                _ => slab::unpack_cols(weight, panel, self.pairs.start * 2 / TILE_ROWS, slab),
            }
        }
    }
}

/// Pairs that a branch appends to a row.
fn branch_pairs(branch: Option<Branch<'_>>) -> usize {
    branch.map_or(0, |branch| branch.rank.div_ceil(2))
}

/// The next `count` of a row's pairs, of which `end` are taken.
fn take(end: &mut usize, count: usize) -> Range<usize> {
    *end += count;
    *end - count..*end
}

/// Appends to some rows what the way into a branch made of them, times `factor`.
///
/// # Safety
/// The processor has AVX-512 with bf16; nobody else touches these rows, of `out` and of `thin`.
unsafe fn append(
    branch: Option<Branch<'_>>,
    rows: Range<usize>,
    out: &Rows,
    pairs: &Range<usize>,
    thin: &Columns<'_>,
    factor: impl Fn(Branch<'_>) -> f32,
) {
    let Some(branch) = branch else { return };
    for row in rows {
        // SAFETY: as the caller promises.
        unsafe { out.round(row, pairs.clone(), thin.slice(row, 0, branch.rank), factor(branch)) };
    }
}
