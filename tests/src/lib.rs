//! Fixtures and check functions of the black-box tests, and the program `reference` that holds a folder of golden numbers
//! against the runtime.

pub mod golden;
pub mod reference;
pub mod stories;
pub mod tiny_model;

use std::path::PathBuf;

/// SmolLM2's file where `mynah pull` keeps it, if it is there.
pub fn cached_smollm2() -> Option<PathBuf> {
    None
}
