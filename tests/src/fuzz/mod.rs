//! What fuzzers call: bytes in, and a panic if the runtime breaks a promise.
//!
//! The bodies are plain functions, so that the corpus runs as an ordinary test too (`tests/it/fuzz_corpus.rs`). Checksums
//! are put right before a parser sees the bytes: a fuzzer would never find them, and an attacker can compute them.

mod log_image;
mod operations;
mod revision;

pub use log_image::{log_image, record};
pub use operations::operations;
pub use revision::revision;

/// SHA-256 of the tokenizer that all of it belongs to.
const TOKENIZER: [u8; 32] = [0x70; 32];

/// CRC32C (Castagnoli) of `parts`, one after the other.
fn crc32c(parts: &[&[u8]]) -> [u8; 4] {
    static CRC32C: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);
    let mut digest = CRC32C.digest();
    parts.iter().for_each(|part| digest.update(part));
    digest.finalize().to_le_bytes()
}
