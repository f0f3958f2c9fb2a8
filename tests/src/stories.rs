//! The smallest real model: stories260K, embedded in the command line, here as a fixture.

use std::path::PathBuf;
use std::sync::Arc;

use mynah_models::weights::Gguf;

/// What stands between two stories. The vocabulary's end-of-text token was never trained: its row of the output matrix is
/// that of 189 other unused tokens.
pub const END_TOKEN: u32 = 1;

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
