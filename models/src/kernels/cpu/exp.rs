//! The exponential function in a form that compilers vectorize.

/// `e^x` within 2 ulp for `-87 <= x <= 88`; smaller arguments give a number below 2e-38, larger ones `e^88`.
///
/// Cody and Waite's reduction to `|r| <= ln 2 / 2`, then a polynomial, then the power of two by its exponent bits.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// Adding this rounds to an integer, which then stands in the low bits: 1.5 · 2^23.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts; the first has few enough bits that its product with an integer is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    // 1 + r + r²/2! + … with the higher coefficients adjusted for the interval (Cephes).
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let exp_r = p * r * r + r + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    exp_r * f32::from_bits(exponent << 23)
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn stays_within_two_ulp_of_the_f64_function() {
        for step in 0..350_000 {
            let x = -87.0 + step as f32 * 0.0005;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(error < 2.0 * f64::from(f32::EPSILON), "exp({x}) is off by {error:e}");
        }
        assert!(exp(-1e9) < 2e-38 && exp(f32::NEG_INFINITY) < 2e-38);
    }
}
