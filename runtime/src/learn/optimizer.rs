//! Gradients move an adapter: AdamW over flat vectors on the host, clipping by global norm, warm-up.
//!
//! Works on the host's f32 values whatever device made the gradients, so that CPU and GPU share it and the host copy is
//! the authoritative one. Knows no tensors.

use serde::{Deserialize, Serialize};

use super::methods::SettingError;

/// Settings of [`AdamW`] and of what happens to a gradient before it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct OptimizerConfig {
    /// Step size after the warm-up. Default 5e-4, for rank 8.
    pub learning_rate: f64,
    /// Decay of the first moment. Default 0.9.
    pub beta1: f64,
    /// Decay of the second moment. Default 0.999.
    pub beta2: f64,
    /// Added to the root of the second moment. Default 1e-8.
    pub eps: f64,
    /// Share of a value, times the learning rate, that one step takes away. Default 0: B starts at zero and a short run
    /// on a device must not be pulled back there.
    pub weight_decay: f64,
    /// Gradients longer than this (L2 over all values) are scaled down to it. Default 1; none: no clipping.
    pub max_grad_norm: Option<f64>,
    /// Steps in which the learning rate grows linearly from `1 / warmup_steps` of it to the whole. Default 5.
    pub warmup_steps: u64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            learning_rate: 5e-4,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: Some(1.0),
            warmup_steps: 5,
        }
    }
}

impl OptimizerConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`SettingError`] names the first that is out of range.
    pub fn check(&self) -> Result<(), SettingError> {
        let positive = |value: f64| value > 0.0 && value.is_finite();
        let share = |value: f64| (0.0..1.0).contains(&value);
        let rate = self.learning_rate;
        SettingError::unless(positive(rate), "learning_rate", rate, "above 0")?;
        SettingError::unless(share(self.beta1), "beta1", self.beta1, "0 to below 1")?;
        SettingError::unless(share(self.beta2), "beta2", self.beta2, "0 to below 1")?;
        SettingError::unless(positive(self.eps), "eps", self.eps, "above 0")?;
        let decay = self.weight_decay;
        SettingError::unless(decay >= 0.0 && decay.is_finite(), "weight_decay", decay, "0 or more")?;
        let norm = self.max_grad_norm.unwrap_or(1.0);
        SettingError::unless(positive(norm), "max_grad_norm", norm, "above 0")
    }

    /// The learning rate of step `step`, counted from 0: constant after a linear warm-up.
    pub fn learning_rate_at(&self, step: u64) -> f64 {
        if step >= self.warmup_steps {
            return self.learning_rate;
        }
        self.learning_rate * (step + 1) as f64 / self.warmup_steps as f64
    }
}

/// Adam with decoupled weight decay.
///
/// ```text
/// value  = value * (1 - rate * weight_decay)
/// first  = first + (gradient - first) * (1 - beta1)
/// second = second * beta2 + (1 - beta2) * gradient * gradient
/// value  = value - rate / (1 - beta1^t) * first / (sqrt(second) / sqrt(1 - beta2^t) + eps)
/// ```
///
/// # Source
/// arXiv 1711.05101; order of operations as in torch's single-tensor AdamW, so that the two part only by rounding.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    first: Vec<f32>,
    second: Vec<f32>,
    steps: u64,
}

impl AdamW {
    /// Moments of zero for `len` values.
    pub fn new(len: usize) -> Self {
        Self { first: vec![0.0; len], second: vec![0.0; len], steps: 0 }
    }

    /// An optimizer as it was after `steps` steps.
    ///
    /// # Panics
    /// If the two moments differ in length.
    pub fn from_parts(first: Vec<f32>, second: Vec<f32>, steps: u64) -> Self {
        assert_eq!(first.len(), second.len(), "moments of {} and {} values", first.len(), second.len());
        Self { first, second, steps }
    }

    /// Mean of past gradients, one per value.
    pub fn first(&self) -> &[f32] {
        &self.first
    }

    /// Mean of past squared gradients, one per value.
    pub fn second(&self) -> &[f32] {
        &self.second
    }

    /// Steps taken since the moments were zero.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Moves `values` one step against `gradient`, with learning rate `rate`.
    ///
    /// # Panics
    /// If a length differs from the moments'.
    pub fn step(&mut self, values: &mut [f32], gradient: &[f32], rate: f64, config: &OptimizerConfig) {
        let len = self.first.len();
        assert!(
            values.len() == len && gradient.len() == len,
            "{len} moments, {} values, {} gradients",
            values.len(),
            gradient.len()
        );
        self.steps += 1;
        // Scalars in f64 and rounded once, as torch has them.
        let t = self.steps as f64;
        let keep = (1.0 - rate * config.weight_decay) as f32;
        let towards = (1.0 - config.beta1) as f32;
        let (decay, grow) = (config.beta2 as f32, (1.0 - config.beta2) as f32);
        let root_correction = (1.0 - config.beta2.powf(t)).sqrt() as f32;
        let step = (rate / (1.0 - config.beta1.powf(t))) as f32;
        let eps = config.eps as f32;
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((value, g), (first, second)) in values.iter_mut().zip(gradient).zip(moments) {
            *value *= keep;
            *first += (g - *first) * towards;
            *second = *second * decay + grow * g * g;
            let root = second.sqrt() / root_correction + eps;
            *value -= step * *first / root;
        }
    }
}

/// L2 norm over all values, summed in f64 in order, so that it does not depend on threads.
pub fn norm(gradient: &[f32]) -> f64 {
    gradient.iter().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>().sqrt()
}

/// Scales `gradient` down to `max_norm` if it is longer. Gives the norm it had.
///
/// # Source
/// `torch.nn.utils.clip_grad_norm_`, with its 1e-6 in the divisor.
pub fn clip(gradient: &mut [f32], max_norm: Option<f64>) -> f64 {
    let found = norm(gradient);
    if let Some(scale) = max_norm.map(|max| max / (found + 1e-6)).filter(|scale| *scale < 1.0) {
        gradient.iter_mut().for_each(|g| *g *= scale as f32);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_steps_by_hand() {
        // beta1 = beta2 = 1/2, eps 0, rate 1/10, decay 1/10; gradients 2 and -1.
        let config = OptimizerConfig { beta1: 0.5, beta2: 0.5, eps: 0.0, weight_decay: 0.1, ..Default::default() };
        let mut adam = AdamW::new(1);
        let mut value = [1.0f32];
        adam.step(&mut value, &[2.0], 0.1, &config);
        // 1 * 0.99; first 1, second 2; corrected: 1 / 0.5 = 2 over sqrt(2 / 0.5) = 2: moves by rate.
        assert_eq!((adam.first()[0], adam.second()[0]), (1.0, 2.0));
        assert!((value[0] - 0.89).abs() < 1e-7);
        adam.step(&mut value, &[-1.0], 0.1, &config);
        // 0.89 * 0.99; first (1 - 1) / 2 = 0: no move but the decay.
        assert_eq!((adam.first()[0], adam.second()[0], adam.steps()), (0.0, 1.5, 2));
        assert!((value[0] - 0.8811).abs() < 1e-7);
    }

    #[test]
    fn clipping_keeps_the_direction_and_tells_the_norm() {
        let mut gradient = [3.0, 4.0];
        assert_eq!(clip(&mut gradient, None), 5.0);
        assert_eq!(clip(&mut gradient, Some(6.0)), 5.0);
        assert_eq!(gradient, [3.0, 4.0]);
        assert_eq!(clip(&mut gradient, Some(1.0)), 5.0);
        assert!((gradient[0] - 0.6).abs() < 1e-6 && (gradient[1] - 0.8).abs() < 1e-6);
    }

    #[test]
    fn the_warm_up_ends_at_the_whole_rate() {
        let config = OptimizerConfig { learning_rate: 1.0, warmup_steps: 4, ..Default::default() };
        let rates: Vec<f64> = (0..6).map(|step| config.learning_rate_at(step)).collect();
        assert_eq!(rates, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]);
        let none = OptimizerConfig { learning_rate: 1.0, warmup_steps: 0, ..Default::default() };
        assert_eq!(none.learning_rate_at(0), 1.0);
    }
}
