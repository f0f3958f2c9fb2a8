//! The key of an encrypted store: handed in by the app at each opening, never stored.

use std::fmt;

use zeroize::Zeroizing;

use super::error::StoreError;
use crate::replay::Seal;

/// A secret of 32 bytes under which a store's replay log is sealed. It is wiped when dropped.
///
/// What was stored without a key stays readable without one until it is compacted with the key.
#[derive(Clone)]
pub struct StoreKey(Zeroizing<[u8; 32]>);

impl StoreKey {
    /// Takes the key. The app keeps it where the platform keeps secrets: lost, so is what was stored under it.
    pub fn new(key: [u8; 32]) -> Self {
        Self(Zeroizing::new(key))
    }

    /// Copies the key; none if it has not 32 bytes.
    pub fn from_slice(key: &[u8]) -> Option<Self> {
        let mut copy = Zeroizing::new([0; 32]);
        (key.len() == copy.len()).then(|| copy.copy_from_slice(key))?;
        Some(Self(copy))
    }

    /// The seal of one opening, with entropy of the operating system.
    pub(super) fn seal(&self) -> Result<Seal, StoreError> {
        let mut entropy = [0; 24];
        getrandom::fill(&mut entropy).map_err(|source| StoreError::NoEntropy { source: source.into() })?;
        Ok(Seal::new(*self.0, entropy))
    }
}

impl fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreKey(..)")
    }
}
