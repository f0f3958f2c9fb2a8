//! What can go wrong with revisions.

use std::io;
use std::path::PathBuf;

use super::container::Fault;
use crate::hex::Hex;

/// An error of a store of revisions.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
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
    /// No room for another revision. Earlier ones are as they were; prune some, or free space on the disk.
    #[error("no room on the disk for `{}`, which takes {needed_bytes} bytes", path.display())]
    Full {
        /// The file that was to be written.
        path: PathBuf,
        /// Its length in bytes.
        needed_bytes: u64,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// There is no such revision.
    #[error("no revision {number}; the store has {}", Numbers(available))]
    NotFound {
        /// The number asked for.
        number: u64,
        /// The numbers there are.
        available: Vec<u64>,
    },
    /// A revision's file is damaged.
    #[error("`{}` is damaged: {fault}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: Fault,
    },
    /// A revision was written by a newer version of this library.
    #[error(
        "`{}` has revision format {found}, this version reads up to {supported}; use the version that wrote it",
        path.display()
    )]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// The format version it carries.
        found: u16,
        /// The newest version this library reads.
        supported: u16,
    },
    /// A revision belongs to another base model.
    #[error("`{}` belongs to base model {}, not to {}", path.display(), Hex(found), Hex(expected))]
    OtherBase {
        /// The file.
        path: PathBuf,
        /// The store's base model.
        expected: [u8; 32],
        /// The revision's.
        found: [u8; 32],
    },
    /// A revision belongs to another tokenizer.
    #[error("`{}` belongs to tokenizer {}, not to {}", path.display(), Hex(found), Hex(expected))]
    OtherTokenizer {
        /// The file.
        path: PathBuf,
        /// The store's tokenizer.
        expected: [u8; 32],
        /// The revision's.
        found: [u8; 32],
    },
    /// A revision lacks a section, or has it in another encoding.
    #[error("revision {number} has no section `{name}` of the kind asked for")]
    NoSection {
        /// The revision.
        number: u64,
        /// The section asked for.
        name: String,
    },
    /// The sections of a draft break a rule.
    #[error("section `{name}` cannot be committed: {reason}")]
    BadSection {
        /// The section.
        name: String,
        /// The rule.
        reason: &'static str,
    },
    /// A revision is larger than memory.
    #[error("no memory for {bytes} bytes of a revision")]
    OutOfMemory {
        /// Bytes of the section that did not fit.
        bytes: u64,
    },
    /// The store was opened to be read.
    #[error("the revisions in `{}` are open for reading only", path.display())]
    ReadOnly {
        /// The folder.
        path: PathBuf,
    },
    /// The store has used up its numbers.
    #[error("the store has used up its revision numbers")]
    NumbersExhausted,
}

struct Numbers<'a>(&'a [u64]);

impl std::fmt::Display for Numbers<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            [] => f.write_str("none"),
            [one] => write!(f, "{one}"),
            [first, .., last] => write!(f, "{} from {first} to {last}", self.0.len()),
        }
    }
}

impl CheckpointError {
    /// Whether it is the content of a file that is at fault, and not the reading of it.
    pub(crate) fn is_about_content(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::NoSection { .. })
    }
}
