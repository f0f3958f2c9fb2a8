//! Why a store cannot be opened, with the path and the cure.

use std::io;
use std::path::{Path, PathBuf};

use super::receipt::Forget;
use super::saved::SavedError;
use crate::checkpoint::CheckpointError;
use crate::file_flash::FileError;
use crate::files::lock::LockError;
use crate::hex::Hex;
use crate::replay::ReplayError;

/// Why a store could not be opened or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The folder does not exist, or holds no store.
    #[error("`{}` is not a store: {reason}", path.display())]
    NotAStore {
        /// The folder.
        path: PathBuf,
        /// What was found, and what to do.
        reason: &'static str,
    },
    /// The folder cannot be written to.
    #[error("cannot write to `{}`; choose a folder you may write to, or change its permissions", path.display())]
    NotWritable {
        /// The file or folder that was refused.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The store was made by a newer version of this library.
    #[error(
        "the store `{}` has format {found}, this version reads up to {supported}; use the version that made it",
        path.display()
    )]
    NewerFormat {
        /// The folder.
        path: PathBuf,
        /// The format version it carries.
        found: u16,
        /// The newest version this library reads.
        supported: u16,
    },
    /// `store.meta` is damaged.
    #[error("`{}` is damaged; restore it from a copy, the rest of the store may be whole", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The store belongs to another base model.
    #[error(
        "the store `{}` belongs to base model {}, not to {}; use that model, or another folder",
        path.display(), Hex(found), Hex(expected)
    )]
    OtherBase {
        /// The folder.
        path: PathBuf,
        /// SHA-256 of the model it was to be opened with.
        expected: [u8; 32],
        /// SHA-256 of the model it belongs to.
        found: [u8; 32],
    },
    /// The store belongs to another tokenizer.
    #[error(
        "the store `{}` belongs to tokenizer {}, not to {}; use that tokenizer, or another folder",
        path.display(), Hex(found), Hex(expected)
    )]
    OtherTokenizer {
        /// The folder.
        path: PathBuf,
        /// SHA-256 of the tokenizer it was to be opened with.
        expected: [u8; 32],
        /// SHA-256 of the tokenizer it belongs to.
        found: [u8; 32],
    },
    /// No record is meant by what was to be forgotten.
    #[error("there is nothing to forget: no record is {}", meant(request))]
    NothingToForget {
        /// What was asked.
        request: Forget,
    },
    /// It was opened to be read only.
    #[error("the store `{}` was opened to be read only", path.display())]
    ReadOnly {
        /// The folder.
        path: PathBuf,
    },
    /// Another process writes to it, see [`LockError::InUse`].
    #[error(transparent)]
    Locked(LockError),
    /// A file operation failed.
    #[error("cannot {doing} `{}`", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The operating system gave no random numbers, which an encrypted store needs.
    #[error("the system gave no random numbers; without them nothing can be encrypted")]
    NoEntropy {
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The replay log failed.
    #[error("the replay log of the store failed")]
    Replay(#[from] ReplayError<FileError>),
    /// The revisions failed.
    #[error("the revisions of the store failed")]
    Checkpoint(#[from] CheckpointError),
    /// A sound revision does not hold what learning has come to, or of another model.
    #[error("revision {revision} cannot be used")]
    Saved {
        /// Its number.
        revision: u64,
        /// What is wrong with it.
        #[source]
        source: SavedError,
    },
}

impl StoreError {
    pub(super) fn io(path: &Path, doing: &'static str) -> impl Fn(io::Error) -> Self + use<> {
        use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        let path = path.to_path_buf();
        move |source| {
            let path = path.clone();
            match source.kind() {
                PermissionDenied | ReadOnlyFilesystem => Self::NotWritable { path, source },
                _ => Self::Io { path, doing, source },
            }
        }
    }
}

fn meant(request: &Forget) -> String {
    match request {
        Forget::Ids(_) => "named".to_owned(),
        Forget::Task(task) => format!("of task `{task}`"),
        Forget::Before(time_unix_s) => format!("from before {time_unix_s} seconds after 1970"),
    }
}

impl From<LockError> for StoreError {
    fn from(error: LockError) -> Self {
        match error {
            LockError::Io { path, source } => Self::io(&path, "lock")(source),
            in_use => Self::Locked(in_use),
        }
    }
}
