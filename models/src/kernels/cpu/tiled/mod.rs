//! Weights in the order that vector units read, and products with them in both directions: what `Precision::Fast` computes with.
//!
//! A [`TiledMatrix`] is repacked once and takes as much memory as the file's blocks. [`many`] dequantizes a panel of it to bf16 and
//! multiplies many tokens with that; [`few`] multiplies a few tokens, quantized to 8 bits, with the packed weights themselves. Sums run in a fixed order, so the number of threads does not change a bit.

mod few;
mod layout;
mod many;
mod unpack;

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
    if tokens <= few::MAX_TOKENS { few::forward(x, weight, y) } else { many::forward(x, weight, y) }
}

/// `dx = dy · W` with `dy` `[tokens, rows]`, `W` `[rows, cols]`, `dx` `[tokens, cols]`, all row-major.
pub(crate) fn backward(dy: &[f32], weight: &TiledMatrix, dx: &mut [f32]) {
    let (rows, cols) = (weight.rows(), weight.cols());
    let tokens = dy.len() / rows;
    assert_eq!((dy.len(), dx.len()), (tokens * rows, tokens * cols), "[{tokens}, {rows}] to [{tokens}, {cols}]");
    many::backward(dy, weight, dx);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{PackedMatrix, TensorType};

    /// Relative Frobenius error of products in bf16: two factors rounded to 8 bits of mantissa, errors that add up as noise does.
    const BF16_ERROR: f64 = 4e-3;
    /// The same of tokens quantized to 8 bits, where single values stand out tenfold.
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
        backward(&dy, &tiles, &mut dx);
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
                    backward(&dy, &weight, &mut dx);
                });
                (y, dx)
            };
            assert_eq!(run(1), run(3));
        }
    }
}
