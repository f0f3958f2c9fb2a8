//! Root-mean-square normalization.

use burn::tensor::Tensor;

/// `y = x / sqrt(mean(x²) + epsilon) · weight`, over the last `weight.len()` features.
#[derive(Debug)]
pub(crate) struct RmsNorm {
    weight: Tensor<1>,
    epsilon: f64,
}

impl RmsNorm {
    /// `weight` has one value per feature of a group.
    pub(crate) fn new(weight: Tensor<1>, epsilon: f64) -> Self {
        Self { weight, epsilon }
    }

    /// # Shapes
    /// `x` and the result `[tokens, groups · weight.len()]`; each group is normalized by itself.
    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let [tokens, features] = x.dims();
        let [width] = self.weight.dims();
        assert_eq!(features % width, 0, "{features} features are no whole groups of {width}");
        let x = x.reshape([tokens * features / width, width]);
        let mean_square = x.clone().square().mean_dim(1);
        let y = x.div(mean_square.add_scalar(self.epsilon).sqrt()) * self.weight.clone().unsqueeze::<2>();
        y.reshape([tokens, features])
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};

    use super::RmsNorm;

    #[test]
    fn each_group_is_divided_by_its_root_mean_square() {
        let device = Device::flex();
        let norm = RmsNorm::new(Tensor::from_floats([1.0, 2.0], &device), 0.0);
        let y = norm.forward(Tensor::from_floats([[3.0, 4.0, 6.0, 8.0]], &device));
        let y: Vec<f32> = y.into_data().to_vec().expect("f32 values");
        // The root mean square of (3, 4) is 5 / sqrt(2); the second group is twice the first.
        let unit = 2.0f32.sqrt() / 5.0;
        for (found, expected) in y.iter().zip([3.0 * unit, 8.0 * unit, 3.0 * unit, 8.0 * unit]) {
            assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
        }
    }
}
