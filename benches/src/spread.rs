//! Several measurements of one quantity, summed up.

use serde::{Deserialize, Serialize};

/// Median, least and greatest of some measurements.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The one in the middle; the mean of the two in the middle where their number is even.
    pub median: f64,
    /// The least.
    pub lowest: f64,
    /// The greatest.
    pub highest: f64,
}

impl Spread {
    /// Sums up `values`.
    ///
    /// # Panics
    /// If there are none.
    pub fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self { median: quantile(&sorted, 0.5), lowest: sorted[0], highest: sorted[sorted.len() - 1] }
    }
}

/// The value below which the share `part` of `sorted` lies, between two neighbours in proportion.
///
/// # Panics
/// If there are no values.
pub fn quantile(sorted: &[f64], part: f64) -> f64 {
    let place = part * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let spread = Spread::of(&[5.0, 1.0, 3.0]);
        assert_eq!((spread.median, spread.lowest, spread.highest), (3.0, 1.0, 5.0));
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 9.0]).median, 3.0);
    }

    #[test]
    fn quantiles_lie_between_neighbours_in_proportion() {
        let sorted = [0.0, 10.0, 20.0, 30.0, 40.0];
        assert_eq!(quantile(&sorted, 0.99), 39.6);
        assert_eq!((quantile(&sorted, 0.0), quantile(&sorted, 1.0)), (0.0, 40.0));
    }
}
