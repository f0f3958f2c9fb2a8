//! One folder on disk: what the user taught, and what came of it.
//!
//! | In the folder | |
//! |---|---|
//! | `store.meta` | format, base model, tokenizer, creation; written last, so a folder with it is a whole store |
//! | `lock` | held by the one process that writes; holds its process id |
//! | `replay/log` | the [`ReplayLog`], on a [`FileFlash`] |
//! | `revisions/` | the [`RevisionStore`] |
//! | `receipts/` | what was asked to be forgotten, one [`Receipt`] a file; from the first time on |
//!
//! `store.meta` is 128 bytes, little-endian: magic `MYNAHSTO`, version (2 bytes, 1), 6 zero bytes, creation in seconds since
//! 1970 (8), SHA-256 of the base model (32), SHA-256 of the tokenizer (32), 36 zero bytes, CRC32C of all before it (4).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::checkpoint::{
    CheckpointError, Identity, InvalidRevision, Keep, RevisionInfo, RevisionReport, RevisionStore,
};
use crate::file_flash::{FileError, FileFlash};
use crate::files::lock::Lock;
use crate::files::{Files, SystemFiles, replace_file, retry};
use crate::learn::ProbeScore;
use crate::replay::{Eviction, LogConfig, RecoveryReport, ReplayError, ReplayLog, TaskCount, VerifyReport};

mod error;
mod forget;
#[cfg(test)]
mod forget_tests;
mod key;
mod meta;
mod receipt;
pub(crate) mod saved;
#[cfg(test)]
mod tests;
mod wipe;

pub use error::StoreError;
pub use key::StoreKey;
use meta::{META_NAME, Meta};
use receipt::Receipts;
pub use receipt::{BackTo, Forget, InvalidReceipt, Receipt, ReceiptFault};
pub use saved::SavedError;
use saved::{PROBES, STATE, decode_probes};

const LOCK_NAME: &str = "lock";
const REPLAY_NAME: &str = "replay";
const REVISIONS_NAME: &str = "revisions";

/// Settings of a store that are not part of it.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// What the replay log may grow to in bytes, rounded to blocks of 64 KiB, below 4 GiB. It is never cut shorter.
    pub replay_capacity_bytes: u32,
    /// Which revisions are kept.
    pub keep: Keep,
    /// What the replay log is sealed with, if it is.
    pub key: Option<StoreKey>,
    /// Which records make room for new ones in a full replay log; none do if it is not said, and appending is an error.
    pub eviction: Option<Eviction>,
}

impl Default for StoreOptions {
    /// One gibibyte of replay log: millions of interactions; [`Keep::DEFAULT`].
    fn default() -> Self {
        Self { replay_capacity_bytes: 1 << 30, keep: Keep::DEFAULT, key: None, eviction: None }
    }
}

/// What was found when a store was opened.
#[derive(Debug)]
#[non_exhaustive]
pub struct StoreReport {
    /// Whether it was made just now.
    pub is_new: bool,
    /// What the replay log recovered.
    pub replay: RecoveryReport,
    /// Which revisions there are.
    pub revisions: RevisionReport,
}

/// How much is in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreStat {
    /// Live records in the replay log.
    pub records: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Bytes of the replay log's frames and of all revisions.
    pub bytes: u64,
    /// Revisions.
    pub revisions: u64,
    /// Number of the newest revision.
    pub newest_revision: Option<u64>,
    /// Records and tokens of each task.
    pub tasks: Vec<TaskCount>,
}

/// What reading every byte of a store showed.
#[derive(Debug)]
#[non_exhaustive]
pub struct StoreVerification {
    /// The replay log.
    pub replay: VerifyReport,
    /// Revisions that are no longer sound.
    pub revisions: Vec<InvalidRevision>,
    /// Receipts that cannot be read.
    pub receipts: Vec<InvalidReceipt>,
}

impl StoreVerification {
    /// Whether everything that was acknowledged is there and sound.
    pub fn is_ok(&self) -> bool {
        self.replay.is_ok() && self.revisions.is_empty() && self.receipts.is_empty()
    }

    /// One line per finding, what interrupted writes left included.
    pub fn problems(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for dropped in &self.replay.problems {
            lines.push(format!("replay log, {dropped}"));
        }
        for id in &self.replay.missing {
            lines.push(format!("replay log, record {id} cannot be read any more"));
        }
        for invalid in &self.revisions {
            lines.push(format!("{}: {}", invalid.name, invalid.reason));
        }
        for invalid in &self.receipts {
            lines.push(format!("{}: {}", invalid.name, invalid.reason));
        }
        lines
    }
}

/// An open store. Dropping it closes it; nothing is pending then.
#[derive(Debug)]
pub struct Store {
    /// What the user taught.
    pub replay: ReplayLog<FileFlash>,
    /// What came of it.
    pub revisions: RevisionStore,
    path: PathBuf,
    meta: Meta,
    /// Revisions that were not sound when the store was opened.
    invalid_revisions: Vec<String>,
    receipts: Receipts,
    keep: Keep,
    lock: Option<Lock>,
}

impl Store {
    /// Opens the store in the folder `path`, or makes one there if the folder is empty or does not exist.
    ///
    /// # Errors
    /// [`StoreError::OtherBase`] and [`StoreError::OtherTokenizer`] if it belongs to another identity;
    /// [`StoreError::Locked`] if another process has it open; [`StoreError::NotAStore`] if the folder holds other files;
    /// [`StoreError::NotWritable`]; [`StoreError::NewerFormat`]; [`StoreError::Damaged`]; what log and revisions report.
    pub fn create_or_open(
        path: &Path,
        identity: &Identity,
        options: &StoreOptions,
        now_unix_s: u64,
    ) -> Result<(Self, StoreReport), StoreError> {
        Self::create_or_open_with(Arc::new(SystemFiles), path, identity, options, now_unix_s)
    }

    pub(crate) fn create_or_open_with(
        files: Arc<dyn Files>,
        path: &Path,
        identity: &Identity,
        options: &StoreOptions,
        now_unix_s: u64,
    ) -> Result<(Self, StoreReport), StoreError> {
        let io = StoreError::io;
        retry(|| files.create_folder(path)).map_err(io(path, "create"))?;
        if !path.join(META_NAME).exists() {
            check_is_ours(files.as_ref(), path)?;
        }
        let lock = Lock::acquire(&path.join(LOCK_NAME))?;
        // Asked again under the lock: another process may have made the store in between.
        let is_new = !path.join(META_NAME).exists();
        if is_new {
            for name in [REPLAY_NAME, REVISIONS_NAME] {
                let folder = path.join(name);
                retry(|| files.create_folder(&folder)).map_err(io(&folder, "create"))?;
            }
            FileFlash::open_unlocked(files.clone(), &log_path(path), 0).map_err(opening_log)?;
            let meta = Meta { identity: *identity, created_unix_s: now_unix_s };
            // The folder's own name must survive too, or the store is gone with it.
            if let Some(parent) = path.canonicalize().ok().as_deref().and_then(Path::parent) {
                retry(|| files.sync_folder(parent)).map_err(io(parent, "sync"))?;
            }
            replace_file(files.as_ref(), path, META_NAME, &meta.encode())
                .map_err(io(&path.join(META_NAME), "write"))?;
        }
        let meta = Meta::read(files.as_ref(), path)?;
        meta.check(path, identity)?;
        let writing = Writing { options, lock, now_unix_s };
        Self::open_parts(files, path, meta, options.key.as_ref(), Some(writing), is_new)
    }

    /// Opens an existing store to change it, whatever model it belongs to.
    ///
    /// # Errors
    /// As [`Store::create_or_open`]; [`StoreError::NotAStore`] if there is none.
    pub fn open(path: &Path, options: &StoreOptions, now_unix_s: u64) -> Result<(Self, StoreReport), StoreError> {
        Self::open_with(Arc::new(SystemFiles), path, options, now_unix_s)
    }

    pub(crate) fn open_with(
        files: Arc<dyn Files>,
        path: &Path,
        options: &StoreOptions,
        now_unix_s: u64,
    ) -> Result<(Self, StoreReport), StoreError> {
        let meta = Meta::read(files.as_ref(), path)?;
        let lock = Lock::acquire(&path.join(LOCK_NAME))?;
        let writing = Writing { options, lock, now_unix_s };
        Self::open_parts(files, path, meta, options.key.as_ref(), Some(writing), false)
    }

    /// Opens an existing store to look at it, even while another process writes to it. What is being written at this
    /// moment may show up as an interrupted append.
    ///
    /// # Errors
    /// [`StoreError::NotAStore`]; [`StoreError::NewerFormat`]; [`StoreError::Damaged`]; what log and revisions report, among it
    /// that the key is missing or wrong.
    pub fn open_read(path: &Path, key: Option<&StoreKey>) -> Result<(Self, StoreReport), StoreError> {
        let files = Arc::new(SystemFiles);
        let meta = Meta::read(files.as_ref(), path)?;
        Self::open_parts(files, path, meta, key, None, false)
    }

    /// Opens log, revisions and receipts, to be read only if it is not said how to write; else finishes what was to be
    /// forgotten.
    fn open_parts(
        files: Arc<dyn Files>,
        path: &Path,
        meta: Meta,
        key: Option<&StoreKey>,
        writing: Option<Writing<'_>>,
        is_new: bool,
    ) -> Result<(Self, StoreReport), StoreError> {
        let options = writing.as_ref().map(|writing| writing.options);
        let folder = path.join(REVISIONS_NAME);
        let (mut revisions, revision_report) =
            RevisionStore::open_with(files.clone(), &folder, &meta.identity, options.is_none())?;
        let flash = match options {
            Some(options) => FileFlash::open_unlocked(files.clone(), &log_path(path), options.replay_capacity_bytes),
            None => FileFlash::open_unlocked_read(files.clone(), &log_path(path)),
        };
        let flash = flash.map_err(opening_log)?;
        let seal = key.map(StoreKey::seal).transpose()?;
        let eviction = options.and_then(|options| options.eviction);
        let config = LogConfig { seal, eviction, ..LogConfig::new(meta.identity.tokenizer_digest) };
        let (replay, replay_report) = ReplayLog::open(flash, &config)?;
        let receipts = Receipts::open(files, path)?;
        let dropped = receipts.list().iter().flat_map(|receipt| receipt.dropped_revisions.iter().copied());
        revisions.skip_numbers(dropped.max().unwrap_or(0));
        let mut store = Self {
            replay,
            revisions,
            path: path.to_path_buf(),
            meta,
            invalid_revisions: revision_report.invalid.iter().map(|invalid| invalid.name.clone()).collect(),
            receipts,
            keep: options.map_or(Keep::DEFAULT, |options| options.keep),
            lock: None,
        };
        if let Some(Writing { lock, now_unix_s, .. }) = writing {
            store.lock = Some(lock);
            store.finish_forgetting(now_unix_s)?;
        }
        let report = StoreReport { is_new, replay: replay_report, revisions: revision_report };
        Ok((store, report))
    }

    fn check_writable(&self) -> Result<(), StoreError> {
        match self.lock {
            Some(_) => Ok(()),
            None => Err(StoreError::ReadOnly { path: self.path.clone() }),
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The base model and the tokenizer it belongs to.
    pub fn identity(&self) -> &Identity {
        &self.meta.identity
    }

    /// When it was made, in seconds since 1970 (UTC).
    pub fn created_unix_s(&self) -> u64 {
        self.meta.created_unix_s
    }

    /// How much is in it.
    pub fn stat(&self) -> StoreStat {
        StoreStat {
            records: self.replay.len() as u64,
            tokens: self.replay.tokens(),
            bytes: self.replay.bytes() + self.revisions.bytes(),
            revisions: self.revisions.list().len() as u64,
            newest_revision: self.revisions.newest().map(|info| info.number),
            tasks: self.replay.tasks().cloned().collect(),
        }
    }

    /// How well each task was known when the newest finished run ended; nothing before that.
    ///
    /// # Errors
    /// [`StoreError::Checkpoint`] if the newest revision cannot be read; [`StoreError::Saved`] if they make no sense.
    pub fn probes(&self) -> Result<Vec<ProbeScore>, StoreError> {
        let Some(RevisionInfo { number, .. }) = self.revisions.newest() else { return Ok(Vec::new()) };
        match self.revisions.section_bytes(*number, PROBES) {
            Ok(section) => decode_probes(&section).map_err(|source| StoreError::Saved { revision: *number, source }),
            // Of a version that did not measure it.
            Err(CheckpointError::NoSection { .. }) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes an earlier revision the newest again, as a copy of it.
    ///
    /// # Errors
    /// [`StoreError::Checkpoint`] if there is no such revision or it is damaged; nothing is changed then.
    pub fn rollback(&mut self, revision: u64, now_unix_s: u64) -> Result<RevisionInfo, StoreError> {
        let info = self.revisions.rollback(revision, now_unix_s)?;
        self.prune();
        Ok(info)
    }

    /// Removes revisions beyond those that are kept. What is committed is committed, so a failure is only worth a warning.
    pub(crate) fn prune(&mut self) {
        if let Err(error) = self.revisions.prune(self.keep) {
            log::warn!("old revisions stay: {error}");
        }
    }

    /// Reads every byte of it and says what is not as it was written.
    ///
    /// # Errors
    /// [`StoreError::Replay`] or [`StoreError::Checkpoint`] if something cannot be read at all.
    pub fn verify(&mut self) -> Result<StoreVerification, StoreError> {
        let mut revisions = self.revisions.verify()?;
        // Those that were out already when the store was opened are not in the list any more.
        for name in &self.invalid_revisions {
            revisions.extend(self.revisions.examine(name)?);
        }
        Ok(StoreVerification { replay: self.replay.verify()?, revisions, receipts: self.receipts.invalid().to_vec() })
    }
}

/// How a store is opened that is to be written to.
struct Writing<'a> {
    options: &'a StoreOptions,
    lock: Lock,
    now_unix_s: u64,
}

fn log_path(folder: &Path) -> PathBuf {
    folder.join(REPLAY_NAME).join("log")
}

fn opening_log(source: FileError) -> ReplayError<FileError> {
    let doing = "open";
    ReplayError::Medium { doing, source }
}

/// Refuses a folder that holds anything but the beginnings of a store.
fn check_is_ours(files: &dyn Files, path: &Path) -> Result<(), StoreError> {
    let names = retry(|| files.list(path)).map_err(StoreError::io(path, "list"))?;
    let is_ours = |name: &std::ffi::OsString| {
        let begun = ["store.meta.tmp", LOCK_NAME, REPLAY_NAME, REVISIONS_NAME];
        begun.iter().any(|ours| name == ours)
    };
    match names.iter().all(is_ours) {
        true => Ok(()),
        false => Err(StoreError::NotAStore {
            path: path.to_path_buf(),
            reason: "it holds other files; choose an empty folder, or one that does not exist",
        }),
    }
}
