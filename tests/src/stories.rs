//! The smallest real model: stories260K, embedded in the command line, here as a fixture.

use std::path::PathBuf;
use std::sync::Arc;

use mynah_models::weights::Gguf;

/// Where the repository keeps it.
pub fn file() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../cli/assets/stories260K.gguf"))
}

/// The model file, opened.
///
/// # Panics
/// If the repository's own file cannot be opened.
pub fn gguf() -> Arc<Gguf> {
    match Gguf::open(&file()) {
        Ok(gguf) => gguf,
        Err(error) => panic!("{error}"),
    }
}
