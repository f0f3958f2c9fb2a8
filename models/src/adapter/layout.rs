//! Where each matrix of an adapter lies in its flat vector.

use std::ops::Range;
use std::sync::Arc;

use super::AdapterError;
use crate::config::ModelConfig;
use crate::projection::Projection;

/// Above this an adapter is no longer small beside the model.
const MAX_RANK: usize = 1024;

/// Shape and strength of a LoRA adapter, named as in PEFT's `adapter_config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// Rows of A and columns of B.
    pub rank: usize,
    /// Strength; see [`scaling`](Self::scaling).
    pub alpha: f32,
    /// Divide alpha by √rank instead of rank.
    pub use_rslora: bool,
    /// Which projections of every layer carry a pair. Order and repetition do not matter.
    pub target_modules: Vec<Projection>,
}

impl Default for LoraConfig {
    /// Rank 8, alpha 16, all seven projections.
    fn default() -> Self {
        Self { rank: 8, alpha: 16.0, use_rslora: false, target_modules: Projection::ALL.to_vec() }
    }
}

impl LoraConfig {
    /// The factor of `B (A x)`: alpha / rank, or alpha / √rank with `use_rslora`.
    pub fn scaling(&self) -> f32 {
        let rank = self.rank as f32;
        self.alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    fn check(&self) -> Result<(), AdapterError> {
        let refused = |name, found, expected| Err(AdapterError::Setting { name, found, expected });
        if !(1..=MAX_RANK).contains(&self.rank) {
            return refused("rank", self.rank.to_string(), "1 to 1024");
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return refused("alpha", self.alpha.to_string(), "a number above 0");
        }
        if self.target_modules.is_empty() {
            return refused("target_modules", "empty".to_owned(), "at least one projection");
        }
        Ok(())
    }
}

/// One pair: what it belongs to, and where its values lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairLayout {
    /// Decoder layer, from 0.
    pub layer: usize,
    /// The matrix it is added to.
    pub projection: Projection,
    /// Inputs of that matrix: columns of A.
    pub d_in: usize,
    /// Outputs of that matrix: rows of B.
    pub d_out: usize,
    /// Rows of A and columns of B.
    pub rank: usize,
    /// A, `[rank, d_in]` row-major, in the flat vector.
    pub a: Range<usize>,
    /// B, `[d_out, rank]` row-major, in the flat vector.
    pub b: Range<usize>,
}

/// All pairs of an adapter, in the order of their values.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterLayout {
    config: LoraConfig,
    pairs: Vec<PairLayout>,
    len: usize,
}

impl AdapterLayout {
    /// The layout of an adapter for `model`.
    ///
    /// # Errors
    /// [`AdapterError::Setting`] if the configuration is out of range.
    pub fn new(model: &ModelConfig, config: &LoraConfig) -> Result<Arc<Self>, AdapterError> {
        config.check()?;
        let mut config = config.clone();
        config.target_modules.sort();
        config.target_modules.dedup();
        let mut pairs = Vec::with_capacity(model.num_hidden_layers * config.target_modules.len());
        let mut len = 0;
        for layer in 0..model.num_hidden_layers {
            for &projection in &config.target_modules {
                let [d_out, d_in] = model.projection_shape(projection);
                let rank = config.rank;
                let a = len..len + rank * d_in;
                let b = a.end..a.end + d_out * rank;
                len = b.end;
                pairs.push(PairLayout { layer, projection, d_in, d_out, rank, a, b });
            }
        }
        Ok(Arc::new(Self { config, pairs, len }))
    }

    /// Rank, alpha and targets; the targets sorted.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// All pairs, in the order of their values.
    pub fn pairs(&self) -> &[PairLayout] {
        &self.pairs
    }

    /// Length of the flat vector, in values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: a layout has at least one pair.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether values move between the two layouts one to one. Alpha may differ: it is not part of the values.
    pub(crate) fn check_same(&self, other: &Self) -> Result<(), AdapterError> {
        if std::ptr::eq(self, other) || self.pairs == other.pairs {
            return Ok(());
        }
        let differing = self.pairs.iter().zip(&other.pairs).find(|(a, b)| a != b);
        let describe = |pair: &PairLayout| {
            format!("layer {} {} [{}, {}] rank {}", pair.layer, pair.projection, pair.d_out, pair.d_in, pair.rank)
        };
        let (expected, found) = match differing {
            Some((a, b)) => (describe(a), describe(b)),
            None => (format!("{} pairs", self.pairs.len()), format!("{} pairs", other.pairs.len())),
        };
        Err(AdapterError::Layout { expected, found })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::tiny;

    #[test]
    fn pairs_follow_each_other_without_a_gap() {
        let config =
            LoraConfig { rank: 2, target_modules: vec![Projection::Down, Projection::K], ..Default::default() };
        let layout = AdapterLayout::new(&tiny(), &config).unwrap();
        let places: Vec<_> = layout.pairs().iter().map(|p| (p.layer, p.projection, p.a.clone(), p.b.clone())).collect();
        // K: 4 of 8, Down: 8 of 12.
        assert_eq!(places[0], (0, Projection::K, 0..16, 16..24));
        assert_eq!(places[1], (0, Projection::Down, 24..48, 48..64));
        assert_eq!(places[2], (1, Projection::K, 64..80, 80..88));
        assert_eq!(layout.len(), 128);
    }

    #[test]
    fn scaling_divides_by_the_rank_or_its_root() {
        let config = LoraConfig { rank: 4, alpha: 8.0, ..Default::default() };
        assert_eq!(config.scaling(), 2.0);
        assert_eq!(LoraConfig { use_rslora: true, ..config }.scaling(), 4.0);
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        let check = |config: LoraConfig| AdapterLayout::new(&tiny(), &config).is_err();
        assert!(check(LoraConfig { rank: 0, ..Default::default() }));
        assert!(check(LoraConfig { rank: 4096, ..Default::default() }));
        assert!(check(LoraConfig { alpha: f32::NAN, ..Default::default() }));
        assert!(check(LoraConfig { target_modules: vec![], ..Default::default() }));
    }
}
