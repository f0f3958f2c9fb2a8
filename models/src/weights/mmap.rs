//! The file mapping: the only unsafe code outside the kernels.
//!
//! A mapped file must not be changed while it is open. Another process that shortens it makes the next access to the lost
//! part a `SIGBUS` on Unix; keep models in storage that only the app itself writes.
#![allow(unsafe_code)] // mapping a file cannot be a safe call: the file can change under us

use std::fs::{self, File};
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;

use crate::error::LoadError;

/// Slices cannot be longer than `isize::MAX`; on 64-bit machines 1 TiB is more than any model we could run.
const MAX_FILE_BYTES: u64 = if isize::MAX as u64 > 1 << 40 { 1 << 40 } else { isize::MAX as u64 };

/// Maps a regular file for reading. Nothing is read yet.
pub(crate) fn map(path: &Path) -> Result<Mmap, LoadError> {
    let name = || path.display().to_string();
    let io = |source| LoadError::Io { file: name(), source };
    // Asked by path first: opening a pipe would wait for its writer.
    if !fs::metadata(path).map_err(io)?.is_file() {
        return Err(LoadError::NotARegularFile { file: name() });
    }
    let file = File::open(path).map_err(io)?;
    let opened = file.metadata().map_err(io)?;
    if !opened.is_file() {
        return Err(LoadError::NotARegularFile { file: name() });
    }
    if opened.len() > MAX_FILE_BYTES {
        return Err(LoadError::TooLarge { file: name(), len_bytes: opened.len(), limit_bytes: MAX_FILE_BYTES });
    }
    // SAFETY: the map is read-only and private to this process; that no one changes the file meanwhile is the
    // documented duty of the caller (module doc). All lengths are re-checked on the mapped bytes themselves.
    unsafe { Mmap::map(&file) }.map_err(io)
}

/// Lets the system drop the pages of a range, which it reads from the file again when they are used.
#[cfg_attr(not(unix), expect(unused_variables))]
pub(crate) fn release(map: &Mmap, range: Range<usize>) {
    #[cfg(unix)]
    {
        // SAFETY: the map is shared with an unchanged file (see `map`), so that dropped pages come back with the same bytes.
        let advised =
            unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
        if let Err(error) = advised {
            log::debug!("pages of the model file stay: {error}");
        }
    }
}
