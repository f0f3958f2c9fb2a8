//! `y = x · Wᵀ` and `dx = dy · W` on packed weights, and onto what is there already, and with a LoRA branch.
//!
//! **Many tokens**: a workgroup of [`UNITS`] makes a tile of `tile` tokens × [`OUTPUTS`] outputs, [`DEPTH`] terms of the sums
//! at a time. It stages inputs (4 KiB) and weights (8 KiB) as floats in workgroup memory, then every unit adds 4 × 4 products
//! a term to sums in registers: 8 reads of workgroup memory for 16 multiplications. A weight is read from memory and unpacked
//! once for each tile of tokens. Rows of both staged tiles are one word longer than the tile, so that neither the stores of
//! unpacked weights, 8 words apart, nor those of inputs meet in a bank; units that read together read neighbours or one word.
//! Weights lie in memory in the order of their staging (see [`DeviceMatrix`]), so that neighbours read neighbours.
//!
//! Outputs, tokens and terms can all be divided among launches, so that none takes longer than a submission may. A launch that
//! goes on with sums begins with what the one before it has stored, so a cut changes no bit.
//!
//! **One token**: there is nothing to use a weight twice for, so nothing is staged. Units read neighbouring words, each sums
//! its part of a row, and the parts are added in workgroup memory, in order.
//!
//! | tokens | tile | weights are read | workgroups for 576 → 1536, Q4 | idle |
//! |---|---|---|---|---|
//! | 1 | – | once | 96 | 0 |
//! | 16 | 16 × 64 | once | 24 | 0 |
//! | 128 | 32 × 64 | 4 times | 96 | 0 |

use burn::backend::tensor::FloatTensor;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::device_matrix::{BLOCK_COLS, BLOCK_ROWS, DeviceMatrix, Encoding, Part, block_words};
use super::launch::{Gpu, buffer, contiguous, empty, flop_per_launch, in_launches};
use crate::gpu_pace::Kernel;
use crate::ops::Frozen;
use crate::ops::packed_linear::PackedLinearOps;

/// Units of a tile's workgroup: 16 beside 8.
const UNITS: u32 = 128;
/// Outputs of a tile: the rows of a block, or the columns of two.
const OUTPUTS: u32 = 64;
/// Terms that are staged at a time: the columns of a block, or half of its rows.
const DEPTH: u32 = 32;
/// Floats from one staged term to the next: one more than there are outputs.
const WEIGHT_STRIDE: u32 = OUTPUTS + 1;
/// Units of a workgroup for one token: so many slices of the depth beside [`LANES`].
const SLICES: u32 = 4;
/// Words that a slice reads together.
const LANES: u32 = 64;

/// What a product is added to.
#[derive(Clone)]
pub(super) struct Onto<'a> {
    /// Of the shape of the result.
    pub(super) base: Option<&'a CubeTensor>,
    /// Adds `scaling · thin · B`.
    pub(super) branch: Option<Thin<'a>>,
}

/// A product through few dimensions: `thin` `[tokens, rank]`, `wide` `[outputs, rank]`, or `[rank, outputs]` where transposed.
#[derive(Clone)]
pub(super) struct Thin<'a> {
    pub(super) thin: &'a CubeTensor,
    pub(super) wide: &'a CubeTensor,
    pub(super) is_transposed: bool,
    pub(super) scaling: f32,
}

impl PackedLinearOps for Gpu {
    fn packed_linear(x: FloatTensor<Self>, weight: Frozen) -> FloatTensor<Self> {
        multiply(x, &weight, false, &Onto { base: None, branch: None })
    }

    fn packed_linear_transposed(dy: FloatTensor<Self>, weight: Frozen) -> FloatTensor<Self> {
        multiply(dy, &weight, true, &Onto { base: None, branch: None })
    }
}

/// `x · Wᵀ`, or `x · W` where `transposed`, and what it is added to.
pub(super) fn multiply(x: CubeTensor, weight: &Frozen, transposed: bool, onto: &Onto<'_>) -> CubeTensor {
    let (x, [tokens, _]) = contiguous(x);
    let matrix = weight.on_device(|matrix| DeviceMatrix::upload(matrix, &x.client));
    let y = empty(&x, tokens, if transposed { matrix.cols } else { matrix.rows });
    let product = Product { x: &x, y: &y, tokens: tokens as u32, matrix, transposed };
    for part in &matrix.parts {
        match tokens == 1 && !transposed {
            true => product.single(part, onto),
            false => product.tiles(part, onto),
        }
    }
    y
}

/// One product with all of a matrix.
struct Product<'a> {
    x: &'a CubeTensor,
    y: &'a CubeTensor,
    tokens: u32,
    matrix: &'a DeviceMatrix,
    transposed: bool,
}

impl Product<'_> {
    /// Multiplies with a part, in tiles. Rows of a transposed product add up over the parts; else every part has outputs of
    /// its own.
    fn tiles(&self, part: &Part, onto: &Onto<'_>) {
        let (rows, cols) = (part.rows as u32, self.matrix.cols as u32);
        let (kernel, outputs, terms) = match self.transposed {
            true => (Kernel::TransposedTiles, cols, rows),
            false => (Kernel::Tiles, rows, cols),
        };
        let tile = if self.tokens <= 16 { 16 } else { 32 };
        let tiles = outputs.div_ceil(OUTPUTS) * self.tokens.div_ceil(tile);
        let flop_per_term = f64::from(2 * OUTPUTS * tile);
        let at_once = terms_at_once(kernel, terms, flop_per_term);
        let is_first = !self.transposed || part.first_row == 0;
        let is_last = !self.transposed || part.first_row + part.rows == self.matrix.rows;
        for first_term in (0..terms).step_by(at_once as usize) {
            let end_term = terms.min(first_term + at_once);
            let span = Span {
                first_term,
                end_term,
                goes_on: !(is_first && first_term == 0),
                is_last: is_last && end_term == terms,
            };
            let flop = flop_per_term * f64::from(end_term - first_term);
            in_launches(&self.x.client, kernel, tiles, flop, |first, count| {
                self.launch_tiles(part, onto, &span, tile, first, count);
            });
        }
    }

    fn launch_tiles(&self, part: &Part, onto: &Onto<'_>, span: &Span, tile: u32, first: u32, count: u32) {
        let matrix = self.matrix;
        let added = Added::of(self, onto, span.is_last);
        // The columns of the part's own rows, and those of all that its sums go over.
        let (own, all) = ((part.first_row as u32, matrix.rows as u32), (0, matrix.cols as u32));
        let ((x_first, x_stride), (y_first, y_stride)) = if self.transposed { (own, all) } else { (all, own) };
        // SAFETY: every buffer is passed with its own length; the kernel reads and writes inside the sizes given, which are
        // those of the buffers, and a part's words are whole blocks.
        unsafe {
            tile_kernel::launch_unchecked(
                &self.x.client,
                CubeCount::Static(count, 1, 1),
                CubeDim::new_1d(UNITS),
                buffer(self.x),
                BufferArg::from_raw_parts(part.words.clone(), part.len_words),
                BufferArg::from_raw_parts(part.scales.clone(), part.len_scales),
                buffer(added.base),
                buffer(added.thin),
                buffer(added.wide),
                buffer(self.y),
                TileSizesLaunch::new(
                    first,
                    self.tokens,
                    part.rows as u32,
                    matrix.cols as u32,
                    span.first_term,
                    span.end_term,
                    u32::from(span.goes_on),
                    x_first,
                    x_stride,
                    y_first,
                    y_stride,
                    matrix.offset,
                ),
                added.terms,
                matrix.encoding,
                block_words(matrix.encoding) as u32,
                tile / 8,
                self.transposed,
            );
        }
    }

    /// Multiplies the only token with a part.
    fn single(&self, part: &Part, onto: &Onto<'_>) {
        let matrix = self.matrix;
        let rows_per_cube = LANES / block_words(matrix.encoding) as u32;
        let flop = 2.0 * f64::from(rows_per_cube) * matrix.cols as f64;
        let cubes = (part.rows as u32).div_ceil(rows_per_cube);
        in_launches(&self.x.client, Kernel::Single, cubes, flop, |first, count| {
            self.launch_single(part, onto, first, count);
        });
    }

    fn launch_single(&self, part: &Part, onto: &Onto<'_>, first: u32, count: u32) {
        let matrix = self.matrix;
        let added = Added::of(self, onto, true);
        // SAFETY: as above.
        unsafe {
            single_kernel::launch_unchecked(
                &self.x.client,
                CubeCount::Static(count, 1, 1),
                CubeDim::new_1d(SLICES * LANES),
                buffer(self.x),
                BufferArg::from_raw_parts(part.words.clone(), part.len_words),
                BufferArg::from_raw_parts(part.scales.clone(), part.len_scales),
                buffer(added.base),
                buffer(added.thin),
                buffer(added.wide),
                buffer(self.y),
                SingleSizesLaunch::new(
                    first,
                    part.rows as u32,
                    matrix.cols as u32,
                    part.first_row as u32,
                    matrix.offset,
                ),
                added.terms,
                matrix.encoding,
                block_words(matrix.encoding) as u32,
            );
        }
    }
}

/// Terms of the sums that one launch goes over: all of them, or as many as one workgroup may.
fn terms_at_once(kernel: Kernel, terms: u32, flop_per_term: f64) -> u32 {
    let allowed = (flop_per_launch(kernel) / flop_per_term) as u32;
    if allowed >= terms { terms.max(1) } else { (allowed / DEPTH * DEPTH).max(DEPTH) }
}

/// Some terms of the sums of a part.
struct Span {
    first_term: u32,
    end_term: u32,
    /// Whether terms before these are summed up in the result.
    goes_on: bool,
    /// Whether none come after these.
    is_last: bool,
}

/// Where the tiles of a launch lie, and the operands.
#[derive(CubeType, CubeLaunch)]
struct TileSizes {
    /// The first tile: those of the same outputs are numbered one after another.
    first_tile: u32,
    tokens: u32,
    /// Of the part of the matrix.
    rows: u32,
    cols: u32,
    first_term: u32,
    end_term: u32,
    /// 1 where sums begin with what the result holds.
    goes_on: u32,
    x_first: u32,
    x_stride: u32,
    y_first: u32,
    y_stride: u32,
    offset: f32,
}

/// Where the rows of a launch for one token lie.
#[derive(CubeType, CubeLaunch)]
struct SingleSizes {
    first_cube: u32,
    /// Of the part of the matrix.
    rows: u32,
    cols: u32,
    first_row: u32,
    offset: f32,
}

/// How a product's addends are read.
#[derive(CubeType, CubeLaunch)]
struct Terms {
    /// 1 where there is a base.
    has_base: u32,
    /// 0 where there is no branch.
    rank: u32,
    scaling: f32,
    /// In `wide`, from one output to the next.
    output_stride: u32,
    /// In `wide`, from one dimension of the rank to the next.
    rank_stride: u32,
}

/// What is added to a product, in the form that kernels take it in. A buffer that is not read is the input's.
struct Added<'a> {
    base: &'a CubeTensor,
    thin: &'a CubeTensor,
    wide: &'a CubeTensor,
    terms: TermsLaunch,
}

impl<'a> Added<'a> {
    /// Nothing where `is_last` is false: it is added to whole sums.
    fn of(product: &Product<'a>, onto: &Onto<'a>, is_last: bool) -> Self {
        let unused = product.x;
        if !is_last {
            return Self { base: unused, thin: unused, wide: unused, terms: TermsLaunch::new(0, 0, 0.0, 0, 0) };
        }
        let has_base = u32::from(onto.base.is_some());
        let base = onto.base.unwrap_or(unused);
        let Some(Thin { thin, wide, is_transposed, scaling }) = onto.branch.clone() else {
            return Self { base, thin: unused, wide: unused, terms: TermsLaunch::new(has_base, 0, 0.0, 0, 0) };
        };
        let [_, rank] = burn::backend::TensorMetadata::shape(thin).dims::<2>();
        let outputs = if product.transposed { product.matrix.cols } else { product.matrix.rows } as u32;
        let (output_stride, rank_stride) = if is_transposed { (1, outputs) } else { (rank as u32, 1) };
        let terms = TermsLaunch::new(has_base, rank as u32, scaling, output_stride, rank_stride);
        Self { base, thin, wide, terms }
    }
}

/// The weight at `place` of a word, before scaling where it is a quant.
#[cube]
fn unpack(word: u32, place: u32, offset: f32, #[comptime] encoding: Encoding) -> f32 {
    if comptime!(matches!(encoding, Encoding::F32)) {
        f32::reinterpret(word)
    } else if comptime!(matches!(encoding, Encoding::Bf16)) {
        f32::reinterpret((word >> (place * 16)) << 16)
    } else if comptime!(matches!(encoding, Encoding::F16)) {
        let bits = (word >> (place * 16)) & 0xffff;
        let exponent = (bits >> 10) & 31;
        let mantissa = bits & 1023;
        let sign = (bits & 0x8000) << 16;
        // Below 2^-14 the mantissa counts steps of 2^-24; above, the exponent moves from bias 15 to 127.
        let small = f32::cast_from(mantissa) * 5.960_464_5e-8;
        let normal = f32::reinterpret(((exponent + 112) << 23) | (mantissa << 13));
        let magnitude = select(exponent == 0, small, normal);
        f32::reinterpret(u32::reinterpret(magnitude) | sign)
    } else if comptime!(matches!(encoding, Encoding::Bits8)) {
        f32::cast_from((word >> (place * 8)) & 255) - offset
    } else {
        f32::cast_from((word >> (place * 4)) & 15) - offset
    }
}

/// What is added to the sum of one output of a token, which lies at `to`.
#[cube]
fn added(base: &[f32], thin: &[f32], wide: &[f32], to: u32, token: u32, output: u32, terms: &Terms) -> f32 {
    let mut branch = 0.0f32;
    for r in 0..terms.rank {
        let from = output * terms.output_stride + r * terms.rank_stride;
        branch += thin[(token * terms.rank + r) as usize] * wide[from as usize];
    }
    let has_base = terms.has_base == 1;
    select(has_base, base[select(has_base, to, 0) as usize], 0.0) + terms.scaling * branch
}

#[cube(launch_unchecked)]
fn tile_kernel(
    x: &[f32],
    words: &[u32],
    scales: &[f32],
    base: &[f32],
    thin: &[f32],
    wide: &[f32],
    y: &mut [f32],
    sizes: &TileSizes,
    added_terms: &Terms,
    #[comptime] encoding: Encoding,
    #[comptime] block_words: u32,
    #[comptime] steps: u32,
    #[comptime] transposed: bool,
) {
    let tile = comptime!(8 * steps);
    let token_stride = comptime!(8 * steps + 1);
    let per_word = comptime!(BLOCK_COLS / block_words);
    let token_tiles = sizes.tokens.div_ceil(tile);
    let own_tile = sizes.first_tile + CUBE_POS_X;
    let first_output = own_tile / token_tiles * OUTPUTS;
    let first_token = own_tile % token_tiles * tile;
    let col_blocks = sizes.cols.div_ceil(BLOCK_COLS);
    let (beside, below) = (UNIT_POS_X % 16, UNIT_POS_X / 16);
    let mut inputs = Shared::<[f32]>::new_slice(comptime!((DEPTH * (8 * steps + 1)) as usize));
    let mut weights = Shared::<[f32]>::new_slice(comptime!((DEPTH * WEIGHT_STRIDE) as usize));
    let mut sums = Array::<f32>::new(comptime!((4 * steps) as usize));
    let terms = if comptime!(transposed) { sizes.rows } else { sizes.cols };
    let outputs = if comptime!(transposed) { sizes.cols } else { sizes.rows };
    let goes_on = sizes.goes_on == 1;
    #[unroll]
    for i in 0..steps {
        #[unroll]
        for j in 0..4u32 {
            let (token, output) = (first_token + below + 8 * i, first_output + beside + 16 * j);
            let is_stored = goes_on && token < sizes.tokens && output < outputs;
            let from = select(is_stored, token * sizes.y_stride + sizes.y_first + output, 0);
            sums[(i * 4 + j) as usize] = select(is_stored, y[from as usize], 0.0);
        }
    }
    let mut depth = sizes.first_term;
    while depth < sizes.end_term {
        let mut index = UNIT_POS_X;
        while index < tile * DEPTH {
            let (token, term) = (index / DEPTH, index % DEPTH);
            let inside = first_token + token < sizes.tokens && depth + term < terms;
            let from = select(inside, (first_token + token) * sizes.x_stride + sizes.x_first + depth + term, 0);
            inputs[(term * token_stride + token) as usize] = select(inside, x[from as usize], 0.0);
            index += UNITS;
        }
        let mut index = UNIT_POS_X;
        while index < DEPTH * OUTPUTS / per_word {
            let word = index % block_words;
            let line = index / block_words;
            // A line is one row of one block: forward an output, transposed a term of the first or second block.
            let mut block = (first_output / BLOCK_ROWS) * col_blocks + depth / BLOCK_COLS;
            let mut row = line;
            if comptime!(transposed) {
                // The second block may be beyond the last: then the last is read, for outputs that are not there.
                let block_col = first_output / BLOCK_COLS + line / DEPTH;
                block = (depth / BLOCK_ROWS) * col_blocks + select(block_col < col_blocks, block_col, col_blocks - 1);
                row = depth % BLOCK_ROWS + line % DEPTH;
            }
            let at = block * BLOCK_ROWS + row;
            let bits = words[(at * block_words + word) as usize];
            let mut scale = 1.0f32;
            let mut minimum = 0.0f32;
            if comptime!(matches!(encoding, Encoding::Bits4 | Encoding::Bits8)) {
                scale = scales[(at * 2) as usize];
                minimum = scales[(at * 2 + 1) as usize];
            }
            #[unroll]
            for place in 0..per_word {
                let weight = unpack(bits, place, sizes.offset, encoding) * scale + minimum;
                let col = word * per_word + place;
                let mut to = col * WEIGHT_STRIDE + line;
                if comptime!(transposed) {
                    to = (line % DEPTH) * WEIGHT_STRIDE + (line / DEPTH) * BLOCK_COLS + col;
                }
                weights[to as usize] = weight;
            }
            index += UNITS;
        }
        sync_cube();
        for term in 0..DEPTH {
            #[unroll]
            for j in 0..4u32 {
                let weight = weights[(term * WEIGHT_STRIDE + beside + 16 * j) as usize];
                #[unroll]
                for i in 0..steps {
                    let input = inputs[(term * token_stride + below + 8 * i) as usize];
                    sums[(i * 4 + j) as usize] += weight * input;
                }
            }
        }
        sync_cube();
        depth += DEPTH;
    }
    #[unroll]
    for i in 0..steps {
        #[unroll]
        for j in 0..4u32 {
            let (token, output) = (first_token + below + 8 * i, first_output + beside + 16 * j);
            if token < sizes.tokens && output < outputs {
                let column = sizes.y_first + output;
                let to = token * sizes.y_stride + column;
                y[to as usize] = sums[(i * 4 + j) as usize] + added(base, thin, wide, to, token, column, added_terms);
            }
        }
    }
}

#[cube(launch_unchecked)]
fn single_kernel(
    x: &[f32],
    words: &[u32],
    scales: &[f32],
    base: &[f32],
    thin: &[f32],
    wide: &[f32],
    y: &mut [f32],
    sizes: &SingleSizes,
    added_terms: &Terms,
    #[comptime] encoding: Encoding,
    #[comptime] block_words: u32,
) {
    let per_word = comptime!(BLOCK_COLS / block_words);
    let rows_per_cube = comptime!(LANES / block_words);
    let (slice, lane) = (UNIT_POS_X / LANES, UNIT_POS_X % LANES);
    let (row, word) = ((sizes.first_cube + CUBE_POS_X) * rows_per_cube + lane / block_words, lane % block_words);
    let col_blocks = sizes.cols.div_ceil(BLOCK_COLS);
    let mut parts = Shared::<[f32]>::new_slice(comptime!((SLICES * LANES) as usize));
    let mut sum = 0.0f32;
    let mut block = slice;
    while block < col_blocks {
        // Rows up to the end of the last block are there, as zeros.
        let at = ((row / BLOCK_ROWS) * col_blocks + block) * BLOCK_ROWS + row % BLOCK_ROWS;
        let bits = words[(at * block_words + word) as usize];
        let first_col = block * BLOCK_COLS + word * per_word;
        let mut products = 0.0f32;
        let mut inputs = 0.0f32;
        #[unroll]
        for place in 0..per_word {
            let inside = first_col + place < sizes.cols;
            let input = select(inside, x[select(inside, first_col + place, 0) as usize], 0.0);
            products += unpack(bits, place, sizes.offset, encoding) * input;
            inputs += input;
        }
        if comptime!(matches!(encoding, Encoding::Bits4 | Encoding::Bits8)) {
            sum += products * scales[(at * 2) as usize] + inputs * scales[(at * 2 + 1) as usize];
        } else {
            sum += products;
        }
        block += SLICES;
    }
    parts[UNIT_POS_X as usize] = sum;
    sync_cube();
    let own_row = (sizes.first_cube + CUBE_POS_X) * rows_per_cube + UNIT_POS_X;
    if UNIT_POS_X < rows_per_cube && own_row < sizes.rows {
        let mut total = 0.0f32;
        for index in 0..SLICES * block_words {
            let from = (index / block_words) * LANES + UNIT_POS_X * block_words + index % block_words;
            total += parts[from as usize];
        }
        let to = sizes.first_row + own_row;
        y[to as usize] = total + added(base, thin, wide, to, 0, to, added_terms);
    }
}
