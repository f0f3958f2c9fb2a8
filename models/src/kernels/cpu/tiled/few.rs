//! Products of a few tokens, as decoding makes them: tokens are quantized to 8 bits, 16 values to a scale, and multiplied with the packed
//! quants themselves, in integers. The time is that of reading the weights.
//!
//! Relative error of y: below 1.2e-2 also where single values of a token stand out fifty-fold, as the tests of this folder show.

use std::arch::x86_64::*;
use std::ops::Range;

use super::layout::{TILE_COLS, TILE_ROWS, TileFormat, TiledMatrix};
use super::unpack::halves;
use crate::kernels::cpu::columns::Columns;
use crate::kernels::cpu::lora::{self, Part};
use crate::kernels::cpu::parallel;

/// Most tokens that are multiplied this way: beyond, a panel in bf16 is as fast and more exact.
pub(super) const MAX_TOKENS: usize = 16;
/// Tokens that share a pass over a row of tiles: more would not find registers for their sums.
const GROUP: usize = 4;
/// Bytes of weights that one task reads at least: less would not outweigh its cost.
const TASK_BYTES: usize = 64 << 10;

/// `y = x · Wᵀ + scaling · (x · Aᵀ) · Bᵀ` of every part for at most [`MAX_TOKENS`] tokens, onto `residual` where there is one; shapes as in
/// [`super::project`]. Branches are multiplied in f32.
///
/// Writes every value of `outputs` and `thins`, which belong to the parts one by one.
pub(super) fn forward(
    x: &[f32],
    parts: &[Part<'_>],
    outputs: &[Columns<'_>],
    thins: &[Columns<'_>],
    residual: Option<&[f32]>,
) {
    let cols = parts[0].weight.cols();
    let tokens = x.len() / cols;
    parallel::for_each(tokens, |token| {
        for (branch, thin) in parts.iter().zip(thins).filter_map(|(part, thin)| Some((part.branch?, thin))) {
            lora::reduce_one(&x[token * cols..][..cols], branch, |rank, value| {
                // SAFETY: this task alone writes this row.
                unsafe { thin.place(token, rank, 1).write(value) };
            });
        }
    });
    let form = |weight: &TiledMatrix| Form::of(weight.format());
    let blocks = Form::ALL.map(|wanted| match parts.iter().any(|part| form(part.weight) == wanted) {
        true => quantize(x, cols, wanted),
        false => Vec::new(),
    });
    let tasks: Vec<(usize, Range<usize>)> =
        parts.iter().enumerate().flat_map(|(part, of)| tasks(of.weight).map(move |rows| (part, rows))).collect();
    parallel::for_each(tasks.len(), |task| {
        let (part, tile_rows) = &tasks[task];
        let (Part { weight, branch }, y) = (parts[*part], &outputs[*part]);
        for tile_row in tile_rows.clone() {
            for group in groups(tokens) {
                let blocks = &blocks[form(weight) as usize];
                let blocks = &blocks[group.start * weight.tile_cols()..group.end * weight.tile_cols()];
                let multiply = match group.len() {
                    1 => multiply::<1>,
                    2 => multiply::<2>,
                    3 => multiply::<3>,
                    _ => multiply::<GROUP>,
                };
                // SAFETY: whoever made a tiled matrix has found the instructions; this task alone writes these columns.
                unsafe { multiply(blocks, weight, tile_row, y, group.start) };
            }
            let first = tile_row * TILE_ROWS;
            let rows = first..weight.rows().min(first + TILE_ROWS);
            for token in 0..tokens {
                // SAFETY: they were just written; this task alone touches these columns.
                let y = unsafe { y.slice(token, first, rows.len()) };
                if let Some(residual) = residual {
                    y.iter_mut().zip(&residual[token * weight.rows() + first..]).for_each(|(y, base)| *y += base);
                }
                if let Some(branch) = branch {
                    // SAFETY: it was written above, and nobody writes it any more.
                    lora::expand_some(y, unsafe { thins[*part].slice(token, 0, branch.rank) }, branch, rows.clone());
                }
            }
        }
    });
}

/// The rows of tiles that each task works on.
fn tasks(weight: &TiledMatrix) -> impl Iterator<Item = Range<usize>> {
    let rows = weight.tile_rows();
    let task_rows = TASK_BYTES.div_ceil(weight.tile_cols() * weight.format().tile_bytes());
    (0..rows).step_by(task_rows).map(move |first| first..rows.min(first + task_rows))
}

/// What tokens become.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// 8 bits, for weights that are integers.
    Quantized,
    /// bf16, for weights that are.
    Rounded,
}

impl Form {
    /// In the order of their discriminants.
    const ALL: [Self; 2] = [Self::Quantized, Self::Rounded];

    fn of(format: TileFormat) -> Self {
        match format {
            TileFormat::Nibbles | TileFormat::Bytes => Self::Quantized,
            TileFormat::Bf16 => Self::Rounded,
        }
    }
}

/// Tokens in groups of at most [`GROUP`], as equal as can be.
fn groups(tokens: usize) -> impl Iterator<Item = Range<usize>> {
    let count = tokens.div_ceil(GROUP);
    (0..count).map(move |group| group * tokens / count..(group + 1) * tokens / count)
}

/// 32 values of a token: their quants, or bf16 pairs, and what a sum of them is multiplied with.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Block {
    /// 32 signed bytes; for bf16 tiles 16 pairs.
    dwords: [i32; 16],
    /// Of each half: a value that stands out costs the precision of the 15 beside it, not of 31.
    scales: [f32; 2],
    /// Sums of the quants of each half.
    sums: [i32; 2],
    /// The sum of the values.
    total: f32,
}

/// Blocks of all tokens, group after group: `[tile_cols, tokens of the group]` each.
fn quantize(x: &[f32], cols: usize, form: Form) -> Vec<Block> {
    let (tokens, tile_cols) = (x.len() / cols, cols.div_ceil(TILE_COLS));
    let mut blocks = vec![Block { dwords: [0; 16], scales: [0.0; 2], sums: [0; 2], total: 0.0 }; tile_cols * tokens];
    for group in groups(tokens) {
        let blocks = &mut blocks[group.start * tile_cols..group.end * tile_cols];
        for (index, token) in group.clone().enumerate() {
            let values = x[token * cols..(token + 1) * cols].chunks(TILE_COLS);
            for (block, values) in blocks.iter_mut().skip(index).step_by(group.len()).zip(values) {
                let mut padded = [0.0; TILE_COLS];
                padded[..values.len()].copy_from_slice(values);
                // SAFETY: whoever made a tiled matrix has found the instructions.
                *block = unsafe {
                    match form {
                        Form::Rounded => rounded(&padded),
                        Form::Quantized => quantized(&padded),
                    }
                };
            }
        }
    }
    blocks
}

#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn rounded(values: &[f32; TILE_COLS]) -> Block {
    let mut dwords = [0; 16];
    // SAFETY: 32 values are read, 16 dwords written.
    unsafe {
        let (low, high) = (_mm512_loadu_ps(values.as_ptr()), _mm512_loadu_ps(values.as_ptr().add(16)));
        let pairs = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
        _mm512_storeu_si512(dwords.as_mut_ptr().cast(), pairs);
    }
    Block { dwords, scales: [1.0; 2], sums: [0; 2], total: 0.0 }
}

#[target_feature(enable = "avx512f")]
unsafe fn quantized(values: &[f32; TILE_COLS]) -> Block {
    let mut block = Block { dwords: [0; 16], scales: [0.0; 2], sums: [0; 2], total: 0.0 };
    let bytes: *mut __m128i = block.dwords.as_mut_ptr().cast();
    for half in 0..2 {
        // SAFETY: 16 values are read, 16 bytes written.
        unsafe {
            let values = _mm512_loadu_ps(values.as_ptr().add(half * 16));
            let largest = _mm512_reduce_max_ps(_mm512_abs_ps(values));
            let inverse = _mm512_set1_ps(if largest > 0.0 { 127.0 / largest } else { 0.0 });
            let quants = _mm512_cvtps_epi32(_mm512_mul_ps(values, inverse));
            _mm_storeu_si128(bytes.add(half), _mm512_cvtsepi32_epi8(quants));
            (block.scales[half], block.sums[half]) = (largest / 127.0, _mm512_reduce_add_epi32(quants));
            block.total += block.scales[half] * block.sums[half] as f32;
        }
    }
    block
}

/// Outputs of one row of tiles for the tokens from `first_token` on.
///
/// # Safety
/// The processor has AVX-512 with bf16 and VNNI; nobody else touches these columns of `y`.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16,avx512vnni")]
unsafe fn multiply<const T: usize>(
    blocks: &[Block],
    weight: &TiledMatrix,
    tile_row: usize,
    y: &Columns<'_>,
    first_token: usize,
) {
    let format = weight.format();
    let tiles = weight.tile_row(tile_row);
    let mut sums = [[_mm512_setzero_ps(); 2]; T];
    for (tile, blocks) in tiles.chunks_exact(format.tile_bytes()).zip(blocks.as_chunks::<T>().0) {
        // SAFETY: `tile` holds a tile of this format.
        unsafe {
            // A row of tiles is short: what is read next is further than the processor looks by itself.
            _mm_prefetch::<_MM_HINT_T0>(tile.as_ptr().wrapping_add(4096).cast());
            match format {
                TileFormat::Nibbles => nibbles(tile.as_ptr(), blocks, &mut sums),
                TileFormat::Bytes => bytes(tile.as_ptr(), blocks, &mut sums),
                TileFormat::Bf16 => bf16(tile.as_ptr(), blocks, &mut sums),
            }
        }
    }
    let first = tile_row * TILE_ROWS;
    let count = TILE_ROWS.min(weight.rows() - first);
    for (token, sums) in sums.iter().enumerate() {
        // SAFETY: as the caller promises; the mask keeps the store inside the slice.
        unsafe {
            _mm512_mask_storeu_ps(
                y.place(first_token + token, first, count),
                ((1u32 << count) - 1) as u16,
                _mm512_add_ps(sums[0], sums[1]),
            );
        }
    }
}

/// # Safety
/// `tile` holds a tile of nibbles.
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
unsafe fn nibbles<const T: usize>(tile: *const u8, blocks: &[Block; T], sums: &mut [[__m512; 2]; T]) {
    // SAFETY: scales and minima are in front, four words behind them.
    let (scale, minimum, words) = unsafe { (halves(tile), halves(tile.add(32)), tile.add(64).cast::<__m512i>()) };
    let mask = _mm512_set1_epi8(0x0f);
    let mut dots = [[_mm512_setzero_si512(); 2]; T];
    for j in 0..4 {
        // SAFETY: as above.
        let word = unsafe { _mm512_loadu_si512(words.add(j)) };
        let (low, high) = (_mm512_and_si512(word, mask), _mm512_and_si512(_mm512_srli_epi32::<4>(word), mask));
        for (dots, block) in dots.iter_mut().zip(blocks) {
            dots[0] = _mm512_dpbusd_epi32(dots[0], low, _mm512_set1_epi32(block.dwords[j]));
            dots[1] = _mm512_dpbusd_epi32(dots[1], high, _mm512_set1_epi32(block.dwords[4 + j]));
        }
    }
    for ((dots, block), sums) in dots.iter().zip(blocks).zip(sums) {
        add_halves(dots, block, scale, sums);
        sums[1] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(block.total), sums[1]);
    }
}

/// # Safety
/// `tile` holds a tile of bytes.
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
unsafe fn bytes<const T: usize>(tile: *const u8, blocks: &[Block; T], sums: &mut [[__m512; 2]; T]) {
    // SAFETY: scales are in front, eight words behind them.
    let (scale, words) = unsafe { (halves(tile), tile.add(32).cast::<__m512i>()) };
    // Quants are stored plus 128.
    let mut dots = blocks.map(|block| block.sums.map(|sum| _mm512_set1_epi32(-128 * sum)));
    for j in 0..8 {
        // SAFETY: as above.
        let word = unsafe { _mm512_loadu_si512(words.add(j)) };
        for (dots, block) in dots.iter_mut().zip(blocks) {
            dots[j / 4] = _mm512_dpbusd_epi32(dots[j / 4], word, _mm512_set1_epi32(block.dwords[j]));
        }
    }
    for ((dots, block), sums) in dots.iter().zip(blocks).zip(sums) {
        add_halves(dots, block, scale, sums);
    }
}

/// Adds the products of the two halves of a block's columns.
#[target_feature(enable = "avx512f")]
#[inline]
fn add_halves(dots: &[__m512i; 2], block: &Block, scale: __m512, sums: &mut [__m512; 2]) {
    let (low, high) = (_mm512_cvtepi32_ps(dots[0]), _mm512_cvtepi32_ps(dots[1]));
    let low = _mm512_mul_ps(low, _mm512_set1_ps(block.scales[0]));
    sums[0] = _mm512_fmadd_ps(_mm512_fmadd_ps(high, _mm512_set1_ps(block.scales[1]), low), scale, sums[0]);
}

/// # Safety
/// `tile` holds a tile of bf16.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
unsafe fn bf16<const T: usize>(tile: *const u8, blocks: &[Block; T], sums: &mut [[__m512; 2]; T]) {
    for j in 0..16 {
        // SAFETY: a tile has sixteen words; vectors of bf16 and of integers have one size.
        unsafe {
            let word = std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(tile.cast::<__m512i>().add(j)));
            for (block, sums) in blocks.iter().zip(sums.iter_mut()) {
                let pair = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(block.dwords[j]));
                sums[j % 2] = _mm512_dpbf16_ps(sums[j % 2], word, pair);
            }
        }
    }
}
