//! Tiles become bf16: one dequantization, and the two orders that products in the two directions read.

use std::arch::x86_64::*;

use super::layout::TileFormat;

/// Two columns of a tile in bf16: 16 rows of the even column, then 16 of the odd one. All sixteen of a tile, in order.
type Columns = [__m512i; 16];

/// Writes a tile for products over columns: word j has columns 2j and 2j+1 of each row, `stride` words apart.
///
/// # Safety
/// `tile` holds a tile of `format`; `slab` has room for 16 words.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
pub(super) unsafe fn by_columns(format: TileFormat, tile: *const u8, slab: *mut __m512i, stride: usize) {
    let interleave = interleaved_halves();
    // SAFETY: as the caller promises.
    unsafe {
        if format == TileFormat::Bf16 {
            for j in 0..16 {
                _mm512_store_si512(slab.add(j * stride), _mm512_loadu_si512(tile.cast::<__m512i>().add(j)));
            }
            return;
        }
        for (j, pair) in columns(format, tile).into_iter().enumerate() {
            _mm512_store_si512(slab.add(j * stride), _mm512_permutexvar_epi16(interleave, pair));
        }
    }
}

/// Writes a tile for products over rows: words 2p and 2p+1 have rows 2p and 2p+1 of columns 0 to 15 and 16 to 31.
///
/// # Safety
/// `tile` holds a tile of `format`; `slab` has room for 16 words.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
pub(super) unsafe fn by_rows(format: TileFormat, tile: *const u8, slab: *mut __m512i) {
    // SAFETY: as the caller promises.
    let columns = unsafe { columns(format, tile) };
    // Of two vectors, dwords p of four columns: pairs of rows 0 to 3, and 4 to 7.
    let low = _mm512_setr_epi32(0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27);
    let high = _mm512_add_epi32(low, _mm512_set1_epi32(4));
    for (half, columns) in columns.as_chunks::<8>().0.iter().enumerate() {
        for (quarter, order) in [low, high].into_iter().enumerate() {
            let quads: [__m512i; 4] =
                std::array::from_fn(|i| _mm512_permutex2var_epi32(columns[2 * i], order, columns[2 * i + 1]));
            for (pair, word) in transposed_lanes(quads).into_iter().enumerate() {
                // SAFETY: quarter · 4 + pair is below 8, half below 2.
                unsafe { _mm512_store_si512(slab.add((quarter * 4 + pair) * 2 + half), word) };
            }
        }
    }
}

/// The transpose of a 4 by 4 matrix of 128-bit lanes.
#[target_feature(enable = "avx512f")]
#[inline]
fn transposed_lanes([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let (ab_even, ab_odd) = (_mm512_shuffle_i32x4::<0b10_00_10_00>(a, b), _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b));
    let (cd_even, cd_odd) = (_mm512_shuffle_i32x4::<0b10_00_10_00>(c, d), _mm512_shuffle_i32x4::<0b11_01_11_01>(c, d));
    [
        _mm512_shuffle_i32x4::<0b10_00_10_00>(ab_even, cd_even),
        _mm512_shuffle_i32x4::<0b10_00_10_00>(ab_odd, cd_odd),
        _mm512_shuffle_i32x4::<0b11_01_11_01>(ab_even, cd_even),
        _mm512_shuffle_i32x4::<0b11_01_11_01>(ab_odd, cd_odd),
    ]
}

/// Word indices that bring lanes i and 16 + i together.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn interleaved_halves() -> __m512i {
    let lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    _mm512_or_si512(lane, _mm512_slli_epi32::<16>(_mm512_add_epi32(lane, _mm512_set1_epi32(16))))
}

/// # Safety
/// `tile` holds a tile of `format`.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
unsafe fn columns(format: TileFormat, tile: *const u8) -> Columns {
    // SAFETY: as the caller promises.
    unsafe {
        match format {
            TileFormat::Nibbles => nibbles(tile),
            TileFormat::Bytes => bytes(tile),
            TileFormat::Bf16 => bf16(tile),
        }
    }
}

/// bf16 of two columns, rounded to nearest.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
pub(super) fn round(even: __m512, odd: __m512) -> __m512i {
    // SAFETY: both types are 512 bits.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(odd, even)) }
}

/// Sixteen halves of a tile's front.
///
/// # Safety
/// 32 bytes are readable.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) unsafe fn halves(from: *const u8) -> __m512 {
    // SAFETY: as the caller promises; the load is unaligned.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(from.cast()) })
}

/// A quant becomes a float without conversion: in the mantissa of 2^e, at bit 23 - e, it adds itself to 2^e. One fused multiply-add
/// then scales it and takes 2^e off again. `e` is 7, 11 or 15, so that one shift serves three nibbles; what the largest
/// loses is a sixteenth of a bf16's last place.
///
/// # Safety
/// `tile` holds a tile of nibbles.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
unsafe fn nibbles(tile: *const u8) -> Columns {
    // SAFETY: scales and minima are in front, the words behind them.
    let (scale, minimum, words) = unsafe { (halves(tile), halves(tile.add(32)), tile.add(64).cast::<__m512i>()) };
    let without = |power: f32| _mm512_fnmadd_ps(scale, _mm512_set1_ps(power), minimum);
    let minima = [without(32768.0), without(2048.0), without(128.0)];
    let at = |word: __m512i, place: usize| {
        let (mask, one) = [(0xf00, 0x4700_0000), (0xf000, 0x4500_0000), (0xf_0000, 0x4300_0000)][place];
        // (word AND mask) OR one
        let float = _mm512_ternarylogic_epi32::<0xea>(word, _mm512_set1_epi32(mask), _mm512_set1_epi32(one));
        _mm512_fmadd_ps(_mm512_castsi512_ps(float), scale, minima[place])
    };
    let mut columns = [_mm512_setzero_si512(); 16];
    for j in 0..4 {
        // SAFETY: there are four words.
        let word = unsafe { _mm512_loadu_si512(words.add(j)) };
        let (up, down) = (_mm512_slli_epi32::<8>(word), _mm512_srli_epi32::<12>(word));
        columns[2 * j] = round(at(up, 0), at(word, 0));
        columns[2 * j + 1] = round(at(word, 2), at(down, 1));
        columns[8 + 2 * j] = round(at(up, 1), at(word, 1));
        columns[8 + 2 * j + 1] = round(at(down, 0), at(down, 2));
    }
    columns
}

/// As [`nibbles`], with 8 bits at the lowest place of 2^15: 32768 + q · 2^-8 · 2^8.
///
/// # Safety
/// `tile` holds a tile of bytes.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
unsafe fn bytes(tile: *const u8) -> Columns {
    // SAFETY: scales are in front, the words behind them.
    let (scale, words) = unsafe { (halves(tile), tile.add(32).cast::<__m512i>()) };
    // Quants are stored plus 128.
    let minimum = _mm512_mul_ps(scale, _mm512_set1_ps(-32768.0 - 128.0));
    let float = |word: __m512i| {
        let in_mantissa =
            _mm512_ternarylogic_epi32::<0xea>(word, _mm512_set1_epi32(0xff00), _mm512_set1_epi32(0x4700_0000));
        _mm512_fmadd_ps(_mm512_castsi512_ps(in_mantissa), scale, minimum)
    };
    let mut columns = [_mm512_setzero_si512(); 16];
    for j in 0..8 {
        // SAFETY: there are eight words.
        let word = unsafe { _mm512_loadu_si512(words.add(j)) };
        columns[2 * j] = round(float(_mm512_slli_epi32::<8>(word)), float(word));
        columns[2 * j + 1] = round(float(_mm512_srli_epi32::<8>(word)), float(_mm512_srli_epi32::<16>(word)));
    }
    columns
}

/// # Safety
/// `tile` holds a tile of bf16.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn bf16(tile: *const u8) -> Columns {
    std::array::from_fn(|j| {
        // SAFETY: there are sixteen words.
        let word = unsafe { _mm512_loadu_si512(tile.cast::<__m512i>().add(j)) };
        let even = _mm512_cvtepi32_epi16(word);
        let odd = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(word));
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(even), odd)
    })
}
