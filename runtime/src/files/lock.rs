//! One writer at a time: a locked file that says who holds it.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Someone holds it.
    #[error("`{}` is in use by {}; close it there first", path.display(), Holder(*holder))]
    InUse {
        /// The lock file.
        path: PathBuf,
        /// Process id of the holder, if it could be read. It may be this very process.
        holder: Option<u32>,
    },
    /// The lock file cannot be opened or locked.
    #[error("cannot lock `{}`", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

struct Holder(Option<u32>);

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(id) if id == std::process::id() => write!(f, "this process ({id})"),
            Some(id) => write!(f, "process {id}"),
            None => f.write_str("another process"),
        }
    }
}

/// An exclusive lock, held until it is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Locks the file `path`, which is created if need be and never removed.
    ///
    /// # Errors
    /// [`LockError::InUse`] names the holder; [`LockError::Io`].
    pub fn acquire(path: &Path) -> Result<Self, LockError> {
        let io_error = |source| LockError::Io { path: path.to_path_buf(), source };
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(path).map_err(io_error)?;
        match fs4::FileExt::try_lock(&file) {
            Ok(()) => {}
            Err(fs4::TryLockError::WouldBlock) => {
                return Err(LockError::InUse { path: path.to_path_buf(), holder: read_holder(&mut file) });
            }
            Err(fs4::TryLockError::Error(source)) => return Err(io_error(source)),
        }
        // Only for the message of the next one who tries, so a full disk does not matter here.
        if let Err(error) = write_holder(&mut file) {
            log::debug!("cannot note the holder in `{}`: {error}", path.display());
        }
        Ok(Self { _file: file })
    }
}

fn read_holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn write_holder(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_is_refused_and_told_who_holds_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = Lock::acquire(&path).unwrap();
        let refused = Lock::acquire(&path).unwrap_err();
        let LockError::InUse { holder, .. } = &refused else { panic!("{refused}") };
        assert_eq!(*holder, Some(std::process::id()));
        assert!(refused.to_string().contains("this process"));
        drop(first);
        drop(Lock::acquire(&path).unwrap());
    }

    #[test]
    fn a_lock_in_a_folder_that_is_not_there_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let refused = Lock::acquire(&folder.path().join("no/lock")).unwrap_err();
        assert!(matches!(refused, LockError::Io { .. }));
    }
}
