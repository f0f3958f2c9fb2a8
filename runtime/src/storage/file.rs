//! A file as NOR flash.
//!
//! Words of 8 bytes, erase blocks of 64 KiB. The file holds the complement of every byte, so that what the file system
//! reads as zeros, a hole or space set aside, is erased flash: the file grows without writing a byte, and a crash while it
//! grows leaves nothing to clean up. Bytes past its end read as erased too.
//!
//! The bytes reach the disk when [`sync`](super::storage::Medium::sync) returns (`fdatasync`, on Apple systems
//! `F_FULLFSYNC`); until then the page cache may write them back in any order, which the contract allows for.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use embedded_storage::nor_flash::{
    ErrorType, NorFlash, NorFlashError, NorFlashErrorKind, ReadNorFlash, check_erase, check_read, check_write,
};

use crate::files::lock::{Lock, LockError};
use crate::files::{Files, Mode, SystemFiles, is_full, read_up_to, retry, write_all_at};
use crate::storage::Medium;

/// Erase block: large enough for the longest example, small enough that an interrupted append wastes little.
const BLOCK_BYTES: u32 = 64 * 1024;
/// The file grows by this much at a time, so that most appends do not change its length.
const GROWTH_BYTES: u64 = 1024 * 1024;

/// Why a file medium failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// A file operation failed.
    #[error("cannot {doing} `{}`", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The disk, or the user's share of it, is full. Nothing was changed.
    #[error("no room on the disk for `{}` to grow to {needed_bytes} bytes", path.display())]
    Full {
        /// The file.
        path: PathBuf,
        /// Length the file was to have.
        needed_bytes: u64,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// It was opened to be read.
    #[error("`{}` is open for reading only", path.display())]
    ReadOnly {
        /// The file.
        path: PathBuf,
    },
    /// What the path names is a folder or a device.
    #[error("`{}` is not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// Someone else has it open.
    #[error(transparent)]
    Locked(#[from] LockError),
    /// The call does not fit the medium.
    #[error("the call does not fit the medium: {0}")]
    Misuse(NorFlashErrorKind),
}

impl NorFlashError for FileError {
    fn kind(&self) -> NorFlashErrorKind {
        match self {
            Self::Misuse(kind) => *kind,
            _ => NorFlashErrorKind::Other,
        }
    }
}

/// A file as NOR flash; the module documentation says how.
#[derive(Debug)]
pub struct FileFlash {
    files: Arc<dyn Files>,
    file: File,
    path: PathBuf,
    len_bytes: u64,
    capacity_bytes: u32,
    is_read_only: bool,
    _lock: Option<Lock>,
}

impl FileFlash {
    /// Opens or creates the file `path`, for one process at a time: the lock is the file `path` with `.lock` appended.
    ///
    /// It grows up to `capacity_bytes`, rounded to whole blocks of 64 KiB, and is never cut shorter.
    ///
    /// # Errors
    /// [`FileError::Locked`] names the process that has it open; [`FileError::NotAFile`]; [`FileError::Io`].
    pub fn open(path: &Path, capacity_bytes: u32) -> Result<Self, FileError> {
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock = Lock::acquire(Path::new(&lock_path))?;
        let flash = Self::open_unlocked(Arc::new(SystemFiles), path, capacity_bytes)?;
        Ok(Self { _lock: Some(lock), ..flash })
    }

    /// Opens the file `path` to be read, whether or not someone is writing to it.
    ///
    /// # Errors
    /// [`FileError::Io`] if it does not exist; [`FileError::NotAFile`].
    pub fn open_read(path: &Path) -> Result<Self, FileError> {
        Self::open_unlocked_read(Arc::new(SystemFiles), path)
    }

    /// As [`FileFlash::open`], for a caller that holds a lock of its own.
    pub(crate) fn open_unlocked(files: Arc<dyn Files>, path: &Path, capacity_bytes: u32) -> Result<Self, FileError> {
        let mut flash = Self::with_mode(files, path, Mode::Write)?;
        let io = |doing| flash.io(doing);
        // The name must survive a crash before anything in the file can.
        if let Some(folder) = path.parent().filter(|_| flash.len_bytes == 0) {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            retry(|| flash.files.sync_folder(folder)).map_err(io("sync the folder of"))?;
        }
        flash.capacity_bytes = whole_blocks(u64::from(capacity_bytes).max(flash.len_bytes));
        Ok(flash)
    }

    /// As [`FileFlash::open_read`].
    pub(crate) fn open_unlocked_read(files: Arc<dyn Files>, path: &Path) -> Result<Self, FileError> {
        let flash = Self::with_mode(files, path, Mode::Read)?;
        Ok(Self {
            capacity_bytes: whole_blocks(flash.len_bytes + u64::from(BLOCK_BYTES) - 1),
            is_read_only: true,
            ..flash
        })
    }

    fn with_mode(files: Arc<dyn Files>, path: &Path, mode: Mode) -> Result<Self, FileError> {
        let io = |doing| move |source| FileError::Io { path: path.to_path_buf(), doing, source };
        if path.exists() && !path.is_file() {
            return Err(FileError::NotAFile { path: path.to_path_buf() });
        }
        let file = retry(|| files.open(path, mode)).map_err(io("open"))?;
        let len_bytes = retry(|| files.len_bytes(&file)).map_err(io("measure"))?;
        Ok(Self {
            files,
            file,
            path: path.to_path_buf(),
            len_bytes,
            capacity_bytes: 0,
            is_read_only: false,
            _lock: None,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length on disk in bytes, space set aside included.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn io(&self, doing: &'static str) -> impl FnOnce(io::Error) -> FileError + use<> {
        let path = self.path.clone();
        move |source| FileError::Io { path, doing, source }
    }

    fn check_writable(&self) -> Result<(), FileError> {
        if self.is_read_only {
            return Err(FileError::ReadOnly { path: self.path.clone() });
        }
        Ok(())
    }

    /// Makes the file reach to `end` at least.
    fn grow_to(&mut self, end: u64) -> Result<(), FileError> {
        if end <= self.len_bytes {
            return Ok(());
        }
        let roomy = end.next_multiple_of(GROWTH_BYTES);
        let exact = end.next_multiple_of(u64::from(BLOCK_BYTES));
        let capacity = u64::from(self.capacity_bytes);
        let mut grown = self.set_aside(roomy.min(capacity));
        if grown.as_ref().is_err_and(is_full) {
            grown = self.set_aside(exact.min(capacity));
        }
        self.len_bytes = grown.map_err(|source| {
            let path = self.path.clone();
            match is_full(&source) {
                true => FileError::Full { path, needed_bytes: exact, source },
                false => FileError::Io { path, doing: "set aside space for", source },
            }
        })?;
        Ok(())
    }

    fn set_aside(&self, len_bytes: u64) -> io::Result<u64> {
        let mut done = retry(|| self.files.allocate(&self.file, len_bytes));
        if let Err(error) = &done
            && !is_full(error)
        {
            // Not every file system can set space aside; a hole does, and a full disk then shows when it is filled.
            done = retry(|| self.files.set_len(&self.file, len_bytes));
        }
        done.map(|()| len_bytes)
    }
}

/// Rounds down to whole blocks, at least one, within 32 bits.
fn whole_blocks(bytes: u64) -> u32 {
    let most = u64::from(u32::MAX / BLOCK_BYTES);
    let blocks = (bytes / u64::from(BLOCK_BYTES)).clamp(1, most);
    blocks as u32 * BLOCK_BYTES
}

fn complement(bytes: &mut [u8]) {
    bytes.iter_mut().for_each(|byte| *byte = !*byte);
}

impl ErrorType for FileFlash {
    type Error = FileError;
}

impl ReadNorFlash for FileFlash {
    const READ_SIZE: usize = 1;

    fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), FileError> {
        check_read(self, offset, bytes.len()).map_err(FileError::Misuse)?;
        let offset = u64::from(offset);
        let mut done = 0;
        // Past the end there is nothing to ask the system for.
        if offset < self.len_bytes {
            let files = self.files.as_ref();
            let read = read_up_to(files, &self.file, offset, bytes);
            done = read.map_err(self.io("read"))?;
        }
        complement(&mut bytes[..done]);
        bytes[done..].fill(0xFF);
        Ok(())
    }

    fn capacity(&self) -> usize {
        self.capacity_bytes as usize
    }
}

impl NorFlash for FileFlash {
    const WRITE_SIZE: usize = 8;
    const ERASE_SIZE: usize = BLOCK_BYTES as usize;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), FileError> {
        check_erase(self, from, to).map_err(FileError::Misuse)?;
        self.check_writable()?;
        let erased = [0; 4096];
        let end = u64::from(to).min(self.len_bytes);
        let mut at = u64::from(from);
        while at < end {
            let now = &erased[..erased.len().min((end - at) as usize)];
            write_all_at(self.files.as_ref(), &self.file, at, now).map_err(self.io("erase"))?;
            at += now.len() as u64;
        }
        Ok(())
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), FileError> {
        check_write(self, offset, bytes.len()).map_err(FileError::Misuse)?;
        self.check_writable()?;
        self.grow_to(u64::from(offset) + bytes.len() as u64)?;
        let mut stored = [0; 4096];
        let mut at = u64::from(offset);
        for part in bytes.chunks(stored.len()) {
            let stored = &mut stored[..part.len()];
            stored.copy_from_slice(part);
            complement(stored);
            write_all_at(self.files.as_ref(), &self.file, at, stored).map_err(self.io("write to"))?;
            at += part.len() as u64;
        }
        Ok(())
    }
}

impl Medium for FileFlash {
    fn sync(&mut self) -> Result<(), FileError> {
        if self.is_read_only {
            return Ok(());
        }
        retry(|| self.files.sync_data(&self.file)).map_err(self.io("sync"))
    }

    fn is_full(error: &FileError) -> bool {
        matches!(error, FileError::Full { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::{Example, ExampleId};
    use crate::files::faulty::{EINTR, EIO, ENOSPC, FaultyFiles};
    use crate::replay::{LogConfig, ReplayError, ReplayLog};
    use crate::storage::check_medium;

    const CAPACITY: u32 = 4 << 20;

    fn example(seed: u32) -> Example {
        Example::new(&[1, seed], &[seed; 20], 2, "t", 0).unwrap()
    }

    fn config() -> LogConfig {
        LogConfig::new([3; 32])
    }

    #[test]
    fn a_file_meets_the_contract() {
        let folder = tempfile::tempdir().unwrap();
        let mut flash = FileFlash::open(&folder.path().join("f"), CAPACITY).unwrap();
        check_medium(&mut flash).unwrap();
        assert_eq!(flash.len_bytes(), u64::from(CAPACITY));
    }

    #[test]
    fn a_fresh_file_takes_no_room_and_grows_in_steps() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let mut flash = FileFlash::open(&path, CAPACITY).unwrap();
        assert_eq!(flash.len_bytes(), 0);
        flash.write(0, &[1; 8]).unwrap();
        assert_eq!(flash.len_bytes(), GROWTH_BYTES);
        let mut word = [0; 16];
        flash.read(0, &mut word).unwrap();
        assert_eq!(word[..8], [1; 8]);
        assert_eq!(word[8..], [0xFF; 8]);
        drop(flash);
        // A smaller capacity cuts nothing off.
        let flash = FileFlash::open(&path, 1).unwrap();
        assert_eq!(flash.capacity() as u64, GROWTH_BYTES);
    }

    #[test]
    fn a_second_opener_is_told_who_has_the_file_and_a_reader_is_let_in() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let flash = FileFlash::open(&path, CAPACITY).unwrap();
        let refused = FileFlash::open(&path, CAPACITY).unwrap_err().to_string();
        assert!(refused.contains(&std::process::id().to_string()), "{refused}");
        let (mut log, _) = ReplayLog::open(flash, &config()).unwrap();
        log.append(&[example(1)]).unwrap();
        let reader = FileFlash::open_read(&path).unwrap();
        let (mut reading, _) = ReplayLog::open(reader, &config()).unwrap();
        assert_eq!(reading.read(ExampleId(1)).unwrap(), example(1));
        let refused = reading.append(&[example(2)]).unwrap_err();
        let ReplayError::WriteFailed { source, .. } = refused else { panic!("{refused}") };
        assert!(matches!(source, FileError::ReadOnly { .. }));
        assert!(matches!(FileFlash::open_read(folder.path()).unwrap_err(), FileError::NotAFile { .. }));
    }

    /// Appends three examples in two calls; what was acknowledged, and how it ended.
    fn run(files: Arc<FaultyFiles>, path: &Path) -> (usize, bool) {
        let Ok(flash) = FileFlash::open_unlocked(files, path, CAPACITY) else {
            return (0, false);
        };
        let Ok((mut log, _)) = ReplayLog::open(flash, &config()) else {
            return (0, false);
        };
        if log.append(&[example(1)]).is_err() {
            return (0, false);
        }
        match log.append(&[example(2), example(3)]) {
            Ok(_) => (3, true),
            Err(_) => (1, false),
        }
    }

    #[test]
    fn whichever_file_call_fails_what_was_acknowledged_is_there() {
        for error in [ENOSPC, EIO, EINTR] {
            for nth in 0.. {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("f");
                let files = Arc::new(FaultyFiles::new(nth, error));
                let (acknowledged, is_clean) = run(files.clone(), &path);
                assert!(is_clean || error != EINTR, "call {nth} was not tried again");
                let flash = FileFlash::open(&path, CAPACITY).unwrap();
                let (mut log, report) = ReplayLog::open(flash, &config()).unwrap();
                assert!(report.dropped.iter().all(|d| d.reason.is_interruption()));
                assert!(log.len() >= acknowledged);
                for id in 1..=log.len() as u64 {
                    assert_eq!(log.read(ExampleId(id)).unwrap(), example(id as u32));
                }
                log.append(&[example(9)]).unwrap();
                if files.calls() <= nth {
                    break;
                }
            }
        }
    }

    #[test]
    fn a_full_disk_is_a_full_log_and_not_a_dead_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        // A megabyte does not fit, and then 64 KiB do not fit either.
        let files = Arc::new(FaultyFiles::full_disk(2));
        let flash = FileFlash::open_unlocked(files, &path, CAPACITY).unwrap();
        let (mut log, _) = ReplayLog::open(flash, &config()).unwrap();
        let refused = log.append(&[example(1)]).unwrap_err();
        assert!(matches!(refused, ReplayError::Full { .. }));
        assert_eq!(log.append(&[example(1)]).unwrap(), [ExampleId(1)]);
        assert_eq!(log.medium().len_bytes(), GROWTH_BYTES);
    }

    #[test]
    fn on_a_nearly_full_disk_the_file_grows_by_a_block() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let files = Arc::new(FaultyFiles::full_disk(1));
        let mut flash = FileFlash::open_unlocked(files, &path, CAPACITY).unwrap();
        flash.write(0, &[1; 8]).unwrap();
        assert_eq!(flash.len_bytes(), u64::from(BLOCK_BYTES));
    }
}
