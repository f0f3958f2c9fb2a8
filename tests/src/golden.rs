//! Golden numbers: tensors read from safetensors files, and the comparison of what was computed with them.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

use crate::reference::ReferenceError;

/// The tensors of one safetensors file, as f32 or i64.
#[derive(Debug)]
pub struct Tensors {
    file: PathBuf,
    floats: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    integers: BTreeMap<String, (Vec<usize>, Vec<i64>)>,
}

impl Tensors {
    /// Reads a whole file; f32, bf16, f16 and i64 tensors.
    ///
    /// # Errors
    /// [`ReferenceError`] names the file.
    pub fn read(file: &Path) -> Result<Self, ReferenceError> {
        let bytes = fs::read(file).map_err(|source| ReferenceError::Io { file: file.to_owned(), source })?;
        let malformed = |what: String| ReferenceError::Malformed { file: file.to_owned(), what };
        let parsed = SafeTensors::deserialize(&bytes).map_err(|error| malformed(error.to_string()))?;
        let mut tensors = Self { file: file.to_owned(), floats: BTreeMap::new(), integers: BTreeMap::new() };
        for (name, view) in parsed.iter() {
            let (shape, data) = (view.shape().to_vec(), view.data());
            let halves = || data.as_chunks::<2>().0.iter().copied();
            let floats = match view.dtype() {
                Dtype::F32 => data.as_chunks::<4>().0.iter().map(|v| f32::from_le_bytes(*v)).collect(),
                Dtype::BF16 => halves().map(|v| half::bf16::from_le_bytes(v).to_f32()).collect(),
                Dtype::F16 => halves().map(|v| half::f16::from_le_bytes(v).to_f32()).collect(),
                Dtype::I64 => {
                    let values = data.as_chunks::<8>().0.iter().map(|v| i64::from_le_bytes(*v)).collect();
                    tensors.integers.insert(name.to_owned(), (shape, values));
                    continue;
                }
                other => return Err(malformed(format!("tensor {name} has type {other:?}"))),
            };
            tensors.floats.insert(name.to_owned(), (shape, floats));
        }
        Ok(tensors)
    }

    /// The values of a float tensor.
    ///
    /// # Errors
    /// [`ReferenceError::Malformed`] if there is none of this name.
    pub fn floats(&self, name: &str) -> Result<&[f32], ReferenceError> {
        self.floats.get(name).map(|(_, values)| values.as_slice()).ok_or_else(|| self.missing(name))
    }

    /// The values of an integer tensor, and its shape.
    ///
    /// # Errors
    /// [`ReferenceError::Malformed`] if there is none of this name.
    pub fn integers(&self, name: &str) -> Result<(&[usize], &[i64]), ReferenceError> {
        let found = self.integers.get(name).ok_or_else(|| self.missing(name))?;
        Ok((&found.0, &found.1))
    }

    /// Token ids of an integer tensor.
    ///
    /// # Errors
    /// As [`Self::integers`].
    pub fn ids(&self, name: &str) -> Result<Vec<u32>, ReferenceError> {
        Ok(self.integers(name)?.1.iter().map(|&id| id as u32).collect())
    }

    /// Float tensors whose names begin with `prefix`, which is cut off.
    pub fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a [f32])> {
        self.floats.iter().filter_map(move |(name, (_, values))| Some((name.strip_prefix(prefix)?, values.as_slice())))
    }

    /// Name, shape and values of every float tensor.
    pub fn iter_floats(&self) -> impl Iterator<Item = (&str, &[usize], &[f32])> {
        self.floats.iter().map(|(name, (shape, values))| (name.as_str(), shape.as_slice(), values.as_slice()))
    }

    fn missing(&self, name: &str) -> ReferenceError {
        ReferenceError::Malformed { file: self.file.clone(), what: format!("there is no tensor {name}") }
    }
}

/// How far one quantity was off, against what is allowed.
#[derive(Clone, Debug)]
struct Quantity {
    worst: f64,
    allowed: f64,
    values: usize,
}

/// What one case came to: the worst difference of each quantity.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    quantities: BTreeMap<&'static str, Quantity>,
}

impl Comparison {
    /// Records how far numbers are from the expected ones; unequal counts and NaN are infinitely far.
    pub fn close(&mut self, quantity: &'static str, found: &[f32], expected: &[f32], allowed: f64) {
        let worst = if found.len() == expected.len() {
            found.iter().zip(expected).map(|(a, b)| distance(*a, *b)).fold(0.0, f64::max)
        } else {
            f64::INFINITY
        };
        self.distance(quantity, worst, allowed, expected.len());
    }

    /// Records a distance that was measured elsewhere.
    pub fn distance(&mut self, quantity: &'static str, worst: f64, allowed: f64, values: usize) {
        let entry = self.quantities.entry(quantity).or_insert(Quantity { worst: 0.0, allowed, values: 0 });
        // The share of the allowance decides which of two differences is the worse one.
        if worst / allowed >= entry.worst / entry.allowed {
            (entry.worst, entry.allowed) = (worst, allowed);
        }
        entry.values += values;
    }

    /// Records whether two sequences of ids are equal.
    pub fn equal(&mut self, quantity: &'static str, found: &[u32], expected: &[u32]) {
        let differing = found.iter().zip(expected).filter(|(a, b)| a != b).count();
        let missing = found.len().abs_diff(expected.len());
        self.distance(quantity, (differing + missing) as f64, 0.5, expected.len());
    }

    /// Whether every quantity is within its tolerance, and there is at least one.
    pub fn holds(&self) -> bool {
        !self.quantities.is_empty() && self.quantities.values().all(|q| q.worst <= q.allowed)
    }

    /// Takes over the worst of another comparison.
    pub fn merge(&mut self, other: &Self) {
        for (&name, q) in &other.quantities {
            self.distance(name, q.worst, q.allowed, q.values);
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, q) in &self.quantities {
            let verdict = if q.worst <= q.allowed { "ok" } else { "TOO FAR" };
            writeln!(
                f,
                "  {name:<14} {:>9.2e} of {:>8.1e} allowed  {verdict:<7}  {} values",
                q.worst, q.allowed, q.values
            )?;
        }
        Ok(())
    }
}

/// |a − b|; infinite where one of them is not a number.
fn distance(a: f32, b: f32) -> f64 {
    let distance = (f64::from(a) - f64::from(b)).abs();
    if distance.is_nan() { f64::INFINITY } else { distance }
}

#[cfg(test)]
mod tests {
    use super::Comparison;

    #[test]
    fn nan_wrong_lengths_and_nothing_at_all_do_not_hold() {
        assert!(!Comparison::default().holds());
        for found in [&[f32::NAN][..], &[1.0, 2.0], &[]] {
            let mut comparison = Comparison::default();
            comparison.close("x", found, &[1.0], 1.0);
            assert!(!comparison.holds(), "{found:?}");
        }
        let mut comparison = Comparison::default();
        comparison.close("x", &[1.0], &[1.5], 1.0);
        comparison.equal("y", &[1, 2], &[1, 2]);
        assert!(comparison.holds());
        comparison.equal("y", &[1, 3], &[1, 2]);
        assert!(!comparison.holds());
    }
}
