//! Weights in the order that vector units read, and products with them in both directions: what `Precision::Fast` computes with.
//!
//! A [`TiledMatrix`] is repacked once and takes as much memory as the file's blocks. [`many`] dequantizes a panel of it to bf16 and
//! multiplies many tokens with that; [`few`] multiplies a few tokens, quantized to 8 bits, with the packed weights themselves. Sums run in
//! a fixed order, so the number of threads does not change a bit.

mod few;
mod layout;
mod many;
mod product;
mod rounded;
mod slab;
mod unpack;
mod way_in;

use super::buffer::Buffer;
use super::columns::Columns;
use super::lora::{Branch, OutputGradient, Part, Projected};

pub(crate) use layout::{TileArena, TiledMatrix};

/// Whether this processor has the instructions that tiles are computed with.
pub(crate) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512bf16")
        && is_x86_feature_detected!("avx512vnni")
}

/// `y = x · Wᵀ` with `x` `[tokens, cols]`, `W` `[rows, cols]`, `y` `[tokens, rows]`, all row-major.
pub(crate) fn forward(x: &[f32], weight: &TiledMatrix, y: &mut [f32]) {
    let (rows, cols) = (weight.rows(), weight.cols());
    let tokens = x.len() / cols;
    assert_eq!((x.len(), y.len()), (tokens * cols, tokens * rows), "[{tokens}, {cols}] to [{tokens}, {rows}]");
    multiply(x, &[Part { weight, branch: None }], &[Columns::new(y, rows)], &[Columns::new(&mut [], 0)], None);
}

/// `dx = dy · W` with `dy` `[tokens, rows]`, which is used up, `W` `[rows, cols]`, `dx` `[tokens, cols]`, all row-major.
pub(crate) fn backward(dy: &mut [f32], weight: &TiledMatrix, dx: &mut [f32]) {
    let (rows, cols) = (weight.rows(), weight.cols());
    let tokens = dy.len() / rows;
    assert_eq!((dy.len(), dx.len()), (tokens * rows, tokens * cols), "[{tokens}, {rows}] to [{tokens}, {cols}]");
    many::backward_in_place(dy, weight, &Columns::new(dx, cols));
}

/// `y = x · Wᵀ + scaling · (x · Aᵀ) · Bᵀ` of parts that share their input, onto `residual` where there is one.
///
/// # Shapes
/// `x` `[tokens, d_in]`, `residual` `[tokens, d_out]` of every part.
pub(crate) fn project(x: &[f32], parts: &[Part<'_>], residual: Option<&[f32]>) -> Vec<Projected> {
    let tokens = x.len() / parts[0].weight.cols();
    for Part { weight, .. } in parts {
        let (rows, cols) = (weight.rows(), weight.cols());
        assert_eq!(x.len(), tokens * cols, "[{tokens}, {cols}] of inputs");
        assert!(residual.is_none_or(|residual| residual.len() == tokens * rows), "a residual of [{tokens}, {rows}]");
    }
    let widths = || parts.iter().map(|part| part.weight.rows());
    let ranks = || parts.iter().map(|part| rank(part.branch));
    let mut outputs = buffers(tokens, widths());
    let mut thins = buffers(tokens, ranks());
    multiply(x, parts, &columns(&mut outputs, widths()), &columns(&mut thins, ranks()), residual);
    outputs.into_iter().zip(thins).map(|(y, thin)| Projected { y, thin }).collect()
}

/// `g = scaling · dy · B` of every output, `[tokens, rank]`, and where it is wanted, `dx = Σ dy · W + g · A` `[tokens, d_in]`, the gradient of the
/// input that all of them share.
pub(crate) fn pull_back(outputs: &[OutputGradient<'_>], with_dx: bool) -> (Vec<Buffer>, Option<Buffer>) {
    let (tokens, cols) = (outputs[0].dy.len() / outputs[0].part.weight.rows(), outputs[0].part.weight.cols());
    for OutputGradient { part, dy } in outputs {
        assert_eq!((part.weight.cols(), dy.len()), (cols, tokens * part.weight.rows()), "gradients of one input");
    }
    let ranks = || outputs.iter().map(|output| rank(output.part.branch));
    let mut thins = buffers(tokens, ranks());
    let mut dx = with_dx.then(|| Buffer::new(tokens * cols));
    many::backward(outputs, &columns(&mut thins, ranks()), dx.as_mut().map(|dx| Columns::new(dx, cols)).as_ref());
    (thins, dx)
}

fn buffers(rows: usize, widths: impl Iterator<Item = usize>) -> Vec<Buffer> {
    widths.map(|width| Buffer::new(rows * width)).collect()
}

fn columns(matrices: &mut [Buffer], widths: impl Iterator<Item = usize>) -> Vec<Columns<'_>> {
    matrices.iter_mut().zip(widths).map(|(matrix, width)| Columns::new(matrix, width)).collect()
}

/// The products of many tokens or of few. Writes every value of `outputs` and `thins`.
fn multiply(x: &[f32], parts: &[Part<'_>], outputs: &[Columns<'_>], thins: &[Columns<'_>], residual: Option<&[f32]>) {
    let is_few = x.len() / parts[0].weight.cols() <= few::MAX_TOKENS;
    if is_few {
        few::forward(x, parts, outputs, thins, residual)
    } else {
        many::forward(x, parts, outputs, thins, residual)
    }
}

fn rank(branch: Option<Branch<'_>>) -> usize {
    branch.map_or(0, |branch| branch.rank)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{PackedMatrix, TensorType};

    /// Relative Frobenius error of products in bf16: two factors rounded to 8 bits of mantissa, errors that add up as noise does.
    const BF16_ERROR: f64 = 4e-3;
    /// The same of tokens quantized to 8 bits, where single values stand out fifty-fold.
    const INT8_ERROR: f64 = 1.2e-2;

    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    fn tiled(matrix: &PackedMatrix) -> TiledMatrix {
        let shape = [matrix.rows(), matrix.cols()];
        let arena = TileArena::new(std::iter::once((matrix.tensor_type(), shape))).expect("memory");
        let tiles = arena.tile(matrix);
        arena.seal().expect("memory");
        tiles
    }

    fn relative_error(found: &[f32], expected: &[f64]) -> f64 {
        let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
        let error = square(&mut found.iter().zip(expected).map(|(f, e)| f64::from(*f) - e));
        (error / square(&mut expected.iter().copied())).sqrt()
    }

    /// Both directions against f64 sums over the scalar reference's weights.
    fn check(tensor_type: TensorType, tokens: usize, [rows, cols]: [usize; 2], outlier: f32) {
        let matrix = PackedMatrix::quantize(tensor_type, [rows, cols], &numbers(rows * cols, 1));
        let mut dense = vec![0.0; rows * cols];
        matrix.dequantize_rows(0..rows, &mut dense);
        let weight = |row: usize, col: usize| f64::from(dense[row * cols + col]);
        let (mut x, mut dy) = (numbers(tokens * cols, 2), numbers(tokens * rows, 3));
        x.iter_mut().step_by(97).for_each(|value| *value *= outlier);
        dy.iter_mut().step_by(89).for_each(|value| *value *= outlier);
        let (mut y, mut dx) = (vec![f32::NAN; tokens * rows], vec![f32::NAN; tokens * cols]);
        let tiles = tiled(&matrix);
        forward(&x, &tiles, &mut y);
        backward(&mut dy.clone(), &tiles, &mut dx);
        let sum = |terms: usize, term: &dyn Fn(usize) -> f64| (0..terms).map(term).sum::<f64>();
        let expected_y: Vec<f64> = (0..tokens * rows)
            .map(|at| sum(cols, &|col| f64::from(x[at / rows * cols + col]) * weight(at % rows, col)))
            .collect();
        let expected_dx: Vec<f64> = (0..tokens * cols)
            .map(|at| sum(rows, &|row| f64::from(dy[at / cols * rows + row]) * weight(row, at % cols)))
            .collect();
        let is_quantized = tokens <= few::MAX_TOKENS && tiles.format() != layout::TileFormat::Bf16;
        let (error, bound) = (relative_error(&y, &expected_y), if is_quantized { INT8_ERROR } else { BF16_ERROR });
        assert!(error <= bound, "{tensor_type} y of {tokens} tokens, [{rows}, {cols}]: {error:e}");
        let error = relative_error(&dx, &expected_dx);
        assert!(error <= BF16_ERROR, "{tensor_type} dx of {tokens} tokens, [{rows}, {cols}]: {error:e}");
    }

    #[test]
    fn both_directions_are_near_dense_sums_for_every_type_and_odd_shapes() {
        if !is_available() {
            return eprintln!("SKIPPED products of tiles: the processor has no bf16 instructions");
        }
        for &tensor_type in TensorType::ALL {
            for tokens in [1, 2, 3, 4, 5, 11, 16, 17, 33] {
                check(tensor_type, tokens, [70, 96], 1.0);
                check(tensor_type, tokens, [48, 160], 10.0);
                check(tensor_type, tokens, [48, 160], 50.0);
            }
            // Less than a tile, one row beyond a tile, and a reduction of more than one slab.
            check(tensor_type, 19, [3, 64], 1.0);
            check(tensor_type, 19, [17, 64], 1.0);
            check(tensor_type, 19, [2100, 32], 1.0);
        }
        // Columns that are no whole block or pair.
        check(TensorType::F32, 3, [19, 51], 1.0);
        check(TensorType::BF16, 18, [33, 45], 1.0);
    }

    #[test]
    fn a_row_of_tiles_has_the_values_of_the_files_row() {
        for &tensor_type in TensorType::ALL {
            let (rows, cols) = (35, 96);
            let matrix = PackedMatrix::quantize(tensor_type, [rows, cols], &numbers(rows * cols, 1));
            let tiles = tiled(&matrix);
            // Of floats only the first eight bits of the mantissa.
            let rounding = if matches!(tensor_type, TensorType::F32 | TensorType::F16) { 1.0 / 256.0 } else { 0.0 };
            for row in [0, 17, 34] {
                let (mut found, mut expected) = (vec![f32::NAN; cols], vec![f32::NAN; cols]);
                tiles.dequantize_row(row, &mut found);
                matrix.dequantize_rows(row..row + 1, &mut expected);
                for (found, expected) in found.iter().zip(&expected) {
                    assert!((found - expected).abs() <= rounding * expected.abs(), "{tensor_type} row {row}");
                }
            }
        }
    }

    /// A matrix with a branch, and both in f64.
    struct Dense {
        tiles: TiledMatrix,
        weight: Vec<f32>,
        a: Vec<f32>,
        b: Vec<f32>,
        rank: usize,
        rows: usize,
    }

    const SCALING: f32 = 1.5;

    impl Dense {
        fn new(rows: usize, cols: usize, rank: usize, seed: u32) -> Self {
            let matrix = PackedMatrix::quantize(TensorType::Q4_1, [rows, cols], &numbers(rows * cols, seed));
            let mut weight = vec![0.0; rows * cols];
            matrix.dequantize_rows(0..rows, &mut weight);
            let (a, b) = (numbers(rank * cols, seed + 1), numbers(rows * rank, seed + 2));
            Self { tiles: tiled(&matrix), weight, a, b, rank, rows }
        }

        fn part(&self) -> Part<'_> {
            let branch = Branch { a: &self.a, b: &self.b, rank: self.rank, scaling: SCALING };
            Part { weight: &self.tiles, branch: (self.rank > 0).then_some(branch) }
        }
    }

    /// `left · right` of `[rows, depth]` and `[depth, cols]`, or of the transpose of `[cols, depth]`.
    fn product(left: &[f64], right: &[f32], [rows, depth, cols]: [usize; 3], is_transposed: bool) -> Vec<f64> {
        let at = |k: usize, col: usize| if is_transposed { right[col * depth + k] } else { right[k * cols + col] };
        let sum = |i: usize| (0..depth).map(|k| left[i / cols * depth + k] * f64::from(at(k, i % cols))).sum();
        (0..rows * cols).map(sum).collect()
    }

    fn wide(values: &[f32]) -> Vec<f64> {
        values.iter().map(|value| f64::from(*value)).collect()
    }

    fn add_scaled(sum: &mut [f64], factor: f64, values: &[f64]) {
        sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += factor * value);
    }

    /// Projections of one input, against f64 sums.
    fn check_projections(tokens: usize, cols: usize, matrices: &[Dense]) {
        let (x, scaling) = (numbers(tokens * cols, 2), f64::from(SCALING));
        let parts: Vec<Part<'_>> = matrices.iter().map(Dense::part).collect();
        let dys: Vec<Vec<f32>> = matrices.iter().map(|matrix| numbers(tokens * matrix.rows, 7)).collect();
        let base = (matrices.len() == 1).then(|| numbers(tokens * matrices[0].rows, 8));
        let projected = project(&x, &parts, base.as_deref());
        let outputs: Vec<_> = parts.iter().zip(&dys).map(|(&part, dy)| OutputGradient { part, dy }).collect();
        let (thins, dx) = pull_back(&outputs, true);
        let bound = if tokens <= few::MAX_TOKENS { INT8_ERROR } else { BF16_ERROR };
        let mut expected_dx = vec![0.0; tokens * cols];
        for (index, Dense { weight, a, b, rank, rows, .. }) in matrices.iter().enumerate() {
            let what = format!("projection {index} of {tokens} tokens");
            let thin = product(&wide(&x), a, [tokens, cols, *rank], true);
            let mut y = product(&wide(&x), weight, [tokens, cols, *rows], true);
            add_scaled(&mut y, scaling, &product(&thin, b, [tokens, *rank, *rows], true));
            base.iter().for_each(|base| add_scaled(&mut y, 1.0, &wide(base)));
            assert!(relative_error(&projected[index].y, &y) <= bound, "y of {what}");
            let mut g = product(&wide(&dys[index]), b, [tokens, *rows, *rank], false);
            g.iter_mut().for_each(|g| *g *= scaling);
            if *rank > 0 {
                // The errors of a few values do not average out.
                let bound = if tokens * rank < 100 { 2.0 * BF16_ERROR } else { BF16_ERROR };
                assert!(relative_error(&projected[index].thin, &thin) <= bound, "x A of {what}");
                assert!(relative_error(&thins[index], &g) <= bound, "dy B of {what}");
            }
            add_scaled(&mut expected_dx, 1.0, &product(&wide(&dys[index]), weight, [tokens, *rows, cols], false));
            add_scaled(&mut expected_dx, 1.0, &product(&g, a, [tokens, *rank, cols], false));
        }
        let error = relative_error(&dx.expect("it was asked for"), &expected_dx);
        assert!(error <= BF16_ERROR, "dx of {tokens} tokens: {error:e}");
    }

    #[test]
    fn projections_with_branches_are_near_dense_sums() {
        if !is_available() {
            return eprintln!("SKIPPED products of tiles: the processor has no bf16 instructions");
        }
        for tokens in [1, 7, 17, 40] {
            // More ranks than a vector has lanes, an odd rank, none; and more rows than one slab takes.
            check_projections(
                tokens,
                96,
                &[Dense::new(70, 96, 8, 10), Dense::new(33, 96, 19, 20), Dense::new(48, 96, 0, 30)],
            );
            check_projections(tokens, 64, &[Dense::new(90, 64, 5, 40)]);
        }
        check_projections(20, 32, &[Dense::new(1500, 32, 3, 50), Dense::new(1000, 32, 4, 60)]);
    }

    #[test]
    fn the_number_of_threads_does_not_change_a_bit() {
        if !is_available() {
            return eprintln!("SKIPPED products of tiles: the processor has no bf16 instructions");
        }
        let (rows, cols) = (300, 1056);
        let weight = tiled(&PackedMatrix::quantize(TensorType::Q4_1, [rows, cols], &numbers(rows * cols, 3)));
        for tokens in [1, 40] {
            let (x, dy) = (numbers(tokens * cols, 2), numbers(tokens * rows, 4));
            let run = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
                let (mut y, mut dx) = (vec![0.0; tokens * rows], vec![0.0; tokens * cols]);
                pool.install(|| {
                    forward(&x, &weight, &mut y);
                    backward(&mut dy.clone(), &weight, &mut dx);
                });
                (y, dx)
            };
            assert_eq!(run(1), run(3));
        }
    }
}
