//! What it costs to keep records: bits of each, bytes that reach the medium, and what other ways of doing it cost.

pub mod coding;
pub mod engines;
pub mod written;

use std::path::Path;

use mynah::FileFlash;
use mynah::replay::{LogConfig, ReplayLog};

/// The tokenizer of the logs that are measured; they hold nobody's memories.
const DIGEST: [u8; 32] = [7; 32];

/// Opens the replay log in a file.
///
/// # Errors
/// What the log reports.
pub fn open_log(file: &Path, capacity_bytes: u32) -> anyhow::Result<ReplayLog<FileFlash>> {
    let (log, _) = ReplayLog::open(FileFlash::open(file, capacity_bytes)?, &LogConfig::new(DIGEST))?;
    Ok(log)
}
