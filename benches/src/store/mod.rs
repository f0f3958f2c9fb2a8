//! What it costs to keep records: bits of each, bytes that reach the medium, and what other ways of doing it cost.

pub mod coding;
pub mod engines;
pub mod unsynced;
pub mod written;

use std::path::Path;

use mynah::FileFlash;
use mynah::replay::{LogConfig, ReplayLog};
use unsynced::Unsynced;

/// The tokenizer of the logs that are measured; they hold nobody's memories.
const DIGEST: [u8; 32] = [7; 32];

/// Bytes that a log may grow to here.
const CAPACITY_BYTES: u32 = 1 << 30;

/// Opens the replay log in a file.
///
/// # Errors
/// What the log reports.
pub fn open_log(file: &Path) -> anyhow::Result<ReplayLog<FileFlash>> {
    Ok(ReplayLog::open(FileFlash::open(file, CAPACITY_BYTES)?, &LogConfig::new(DIGEST))?.0)
}

/// The same without syncs.
///
/// # Errors
/// What the log reports.
pub fn open_unsynced_log(file: &Path) -> anyhow::Result<ReplayLog<Unsynced>> {
    Ok(ReplayLog::open(Unsynced(FileFlash::open(file, CAPACITY_BYTES)?), &LogConfig::new(DIGEST))?.0)
}
