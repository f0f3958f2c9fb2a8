//! Root-mean-square normalization.

use burn::tensor::Tensor;

use crate::ops::{NormWeight, rms_norm};

/// `y = x / sqrt(mean(x²) + epsilon) · weight`, over groups of as many features as the weight has values.
#[derive(Debug)]
pub(crate) struct RmsNorm {
    weight: NormWeight,
}

impl RmsNorm {
    /// `weight` has one value per feature of a group.
    pub(crate) fn new(weight: Vec<f32>, epsilon: f32) -> Self {
        Self { weight: NormWeight::new(weight, epsilon) }
    }

    /// # Shapes
    /// `x` and the result `[tokens, groups · features]`; each group is normalized by itself.
    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let ([tokens, features], width) = (x.dims(), self.weight.weight().len());
        assert_eq!(features % width, 0, "{features} features are no whole groups of {width}");
        if features == width {
            return rms_norm(x, &self.weight);
        }
        rms_norm(x.reshape([tokens * features / width, width]), &self.weight).reshape([tokens, features])
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};

    use super::RmsNorm;

    #[test]
    fn each_group_is_divided_by_its_root_mean_square() {
        let norm = RmsNorm::new(vec![1.0, 2.0], 0.0);
        let y = norm.forward(Tensor::from_floats([[3.0, 4.0, 6.0, 8.0]], &Device::flex()));
        let y: Vec<f32> = y.into_data().try_to_vec().expect("f32 values");
        // The root mean square of (3, 4) is 5 / sqrt(2); the second group is twice the first.
        let unit = 2.0f32.sqrt() / 5.0;
        for (found, expected) in y.iter().zip([3.0 * unit, 8.0 * unit, 3.0 * unit, 8.0 * unit]) {
            assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
        }
    }
}
