//! The few file-system calls the store makes, each in one place, so that a test can let any of them fail.
//!
//! Callers go through the functions below the trait, which carry on after `EINTR` and after short reads and writes.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::Path;

#[cfg(test)]
pub(crate) mod faulty;
pub(crate) mod lock;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// To read; it must exist.
    Read,
    /// To read and write; created if it does not exist.
    Write,
    /// To write, empty, whether it exists or not.
    Fresh,
}

/// The calls. [`SystemFiles`] makes them for real.
pub(crate) trait Files: fmt::Debug + Send + Sync {
    fn create_folder(&self, path: &Path) -> io::Result<()>;
    fn open(&self, path: &Path, mode: Mode) -> io::Result<File>;
    fn len_bytes(&self, file: &File) -> io::Result<u64>;
    /// Makes the file at least `len_bytes` long, with space set aside, reading as zeros.
    fn allocate(&self, file: &File, len_bytes: u64) -> io::Result<()>;
    fn set_len(&self, file: &File, len_bytes: u64) -> io::Result<()>;
    fn read_at(&self, file: &File, offset: u64, bytes: &mut [u8]) -> io::Result<usize>;
    fn write_at(&self, file: &File, offset: u64, bytes: &[u8]) -> io::Result<usize>;
    fn sync_data(&self, file: &File) -> io::Result<()>;
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty folder.
    fn remove_folder(&self, path: &Path) -> io::Result<()>;
    fn list(&self, path: &Path) -> io::Result<Vec<OsString>>;
}

/// The operating system's own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SystemFiles;

impl Files for SystemFiles {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn open(&self, path: &Path, mode: Mode) -> io::Result<File> {
        let mut options = File::options();
        match mode {
            Mode::Read => options.read(true),
            Mode::Write => options.read(true).write(true).create(true).truncate(false),
            Mode::Fresh => options.write(true).create(true).truncate(true),
        };
        options.open(path)
    }

    fn len_bytes(&self, file: &File) -> io::Result<u64> {
        Ok(file.metadata()?.len())
    }

    fn allocate(&self, file: &File, len_bytes: u64) -> io::Result<()> {
        fs4::FileExt::allocate(file, len_bytes)?;
        if file.metadata()?.len() < len_bytes {
            file.set_len(len_bytes)?;
        }
        Ok(())
    }

    fn set_len(&self, file: &File, len_bytes: u64) -> io::Result<()> {
        file.set_len(len_bytes)
    }

    #[cfg(unix)]
    fn read_at(&self, file: &File, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(file, bytes, offset)
    }

    #[cfg(not(unix))]
    fn read_at(&self, mut file: &File, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        use std::io::{Read, Seek};
        file.seek(io::SeekFrom::Start(offset))?;
        file.read(bytes)
    }

    #[cfg(unix)]
    fn write_at(&self, file: &File, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        std::os::unix::fs::FileExt::write_at(file, bytes, offset)
    }

    #[cfg(not(unix))]
    fn write_at(&self, mut file: &File, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        use std::io::{Seek, Write};
        file.seek(io::SeekFrom::Start(offset))?;
        file.write(bytes)
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        // Elsewhere a folder cannot be opened to be synced, and renames are journaled.
        if cfg!(unix) {
            File::open(path)?.sync_all()?;
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.file_name())).collect()
    }
}

/// Makes a call again for as long as a signal interrupts it.
pub(crate) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Reads from `offset` until `bytes` are full or the file ends; returns how many there were.
pub(crate) fn read_up_to(files: &dyn Files, file: &File, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        let rest = &mut bytes[done..];
        match retry(|| files.read_at(file, offset + done as u64, rest))? {
            0 => break,
            read => done += read,
        }
    }
    Ok(done)
}

/// Writes all of `bytes` at `offset`.
pub(crate) fn write_all_at(files: &dyn Files, file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match retry(|| files.write_at(file, offset + done as u64, &bytes[done..]))? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => done += written,
        }
    }
    Ok(())
}

/// Whether there is no room: on the disk, in the user's quota, or under the process's file size limit.
pub(crate) fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// Replaces the file `folder/name` by one with `bytes`, so that after a crash the old or the new one is there, whole.
pub(crate) fn replace_file(files: &dyn Files, folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let target = folder.join(name);
    let temporary = folder.join(std::format!("{name}.tmp"));
    let written = (|| {
        let file = retry(|| files.open(&temporary, Mode::Fresh))?;
        write_all_at(files, &file, 0, bytes)?;
        retry(|| files.sync_data(&file))?;
        drop(file);
        retry(|| files.rename(&temporary, &target))
    })();
    if written.is_err() {
        // The cause is what counts; a file that cannot be removed either is removed when the store is opened.
        let _ = files.remove(&temporary);
    }
    written?;
    retry(|| files.sync_folder(folder))
}
