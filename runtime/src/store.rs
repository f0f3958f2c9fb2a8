//! One folder on disk: what the user taught, and what came of it.
//!
//! | In the folder | |
//! |---|---|
//! | `store.meta` | format, base model, tokenizer, creation; written last, so a folder with it is a whole store |
//! | `lock` | held by the one process that writes; holds its process id |
//! | `replay/log` | the [`ReplayLog`], on a [`FileFlash`] |
//! | `revisions/` | the [`RevisionStore`] |
//!
//! `store.meta` is 128 bytes, little-endian: magic `MYNAHSTO`, version (2 bytes, 1), 6 zero bytes, creation in seconds since
//! 1970 (8), SHA-256 of the base model (32), SHA-256 of the tokenizer (32), 36 zero bytes, CRC32C of all before it (4).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crc::{CRC_32_ISCSI, Crc};

use crate::checkpoint::{CheckpointError, Identity, InvalidRevision, RevisionReport, RevisionStore};
use crate::file_flash::{FileError, FileFlash};
use crate::files::lock::{Lock, LockError};
use crate::files::{Files, Mode, SystemFiles, read_up_to, replace_file, retry};
use crate::replay::{Hex, LogConfig, RecoveryReport, ReplayError, ReplayLog, TaskCount, VerifyReport};

const META_NAME: &str = "store.meta";
const LOCK_NAME: &str = "lock";
const REPLAY_NAME: &str = "replay";
const REVISIONS_NAME: &str = "revisions";
const META_BYTES: usize = 128;
const MAGIC: [u8; 8] = *b"MYNAHSTO";
const FORMAT_VERSION: u16 = 1;

/// Settings of a store that are not part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreOptions {
    /// What the replay log may grow to in bytes, rounded to blocks of 64 KiB, below 4 GiB. It is never cut shorter.
    pub replay_capacity_bytes: u32,
}

impl Default for StoreOptions {
    /// One gibibyte of replay log: millions of interactions.
    fn default() -> Self {
        Self { replay_capacity_bytes: 1 << 30 }
    }
}

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
    /// The replay log failed.
    #[error("the replay log of the store failed")]
    Replay(#[from] ReplayError<FileError>),
    /// The revisions failed.
    #[error("the revisions of the store failed")]
    Checkpoint(#[from] CheckpointError),
}

impl StoreError {
    fn io(path: &Path, doing: &'static str) -> impl Fn(io::Error) -> Self + use<> {
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

impl From<LockError> for StoreError {
    fn from(error: LockError) -> Self {
        match error {
            LockError::Io { path, source } => Self::io(&path, "lock")(source),
            in_use => Self::Locked(in_use),
        }
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
}

impl StoreVerification {
    /// Whether everything that was acknowledged is there and sound.
    pub fn is_ok(&self) -> bool {
        self.replay.is_ok() && self.revisions.is_empty()
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
    _lock: Option<Lock>,
}

/// What `store.meta` holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Meta {
    identity: Identity,
    created_unix_s: u64,
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
        Self::open_parts(files, path, meta, Some(options), Some(lock), is_new)
    }

    /// Opens an existing store to change it, whatever model it belongs to.
    ///
    /// # Errors
    /// As [`Store::create_or_open`]; [`StoreError::NotAStore`] if there is none.
    pub fn open(path: &Path, options: &StoreOptions) -> Result<(Self, StoreReport), StoreError> {
        let files = Arc::new(SystemFiles);
        let meta = Meta::read(files.as_ref(), path)?;
        let lock = Lock::acquire(&path.join(LOCK_NAME))?;
        Self::open_parts(files, path, meta, Some(options), Some(lock), false)
    }

    /// Opens an existing store to look at it, even while another process writes to it. What is being written at this
    /// moment may show up as an interrupted append.
    ///
    /// # Errors
    /// [`StoreError::NotAStore`]; [`StoreError::NewerFormat`]; [`StoreError::Damaged`]; what log and revisions report.
    pub fn open_read(path: &Path) -> Result<(Self, StoreReport), StoreError> {
        let files = Arc::new(SystemFiles);
        let meta = Meta::read(files.as_ref(), path)?;
        Self::open_parts(files, path, meta, None, None, false)
    }

    /// Opens log and revisions, to be read only if there are no options.
    fn open_parts(
        files: Arc<dyn Files>,
        path: &Path,
        meta: Meta,
        options: Option<&StoreOptions>,
        lock: Option<Lock>,
        is_new: bool,
    ) -> Result<(Self, StoreReport), StoreError> {
        let folder = path.join(REVISIONS_NAME);
        let (revisions, revision_report) =
            RevisionStore::open_with(files.clone(), &folder, &meta.identity, options.is_none())?;
        let flash = match options {
            Some(options) => FileFlash::open_unlocked(files, &log_path(path), options.replay_capacity_bytes),
            None => FileFlash::open_unlocked_read(files, &log_path(path)),
        };
        let flash = flash.map_err(opening_log)?;
        let config = LogConfig::new(meta.identity.tokenizer_digest);
        let (replay, replay_report) = ReplayLog::open(flash, &config)?;
        let store = Self {
            replay,
            revisions,
            path: path.to_path_buf(),
            meta,
            invalid_revisions: revision_report.invalid.iter().map(|invalid| invalid.name.clone()).collect(),
            _lock: lock,
        };
        let report = StoreReport { is_new, replay: replay_report, revisions: revision_report };
        Ok((store, report))
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
        Ok(StoreVerification { replay: self.replay.verify()?, revisions })
    }
}

impl Meta {
    fn encode(&self) -> [u8; META_BYTES] {
        let mut bytes = [0; META_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.created_unix_s.to_le_bytes());
        bytes[24..56].copy_from_slice(&self.identity.base_digest);
        bytes[56..88].copy_from_slice(&self.identity.tokenizer_digest);
        let crc = Crc::<u32>::new(&CRC_32_ISCSI).checksum(&bytes[..124]);
        bytes[124..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn read(files: &dyn Files, folder: &Path) -> Result<Self, StoreError> {
        let path = folder.join(META_NAME);
        if !path.is_file() {
            return Err(StoreError::NotAStore {
                path: folder.to_path_buf(),
                reason: match folder.is_dir() {
                    true => "it holds no `store.meta`; name the folder of a store, or learn into it first",
                    false => "there is no such folder; name the folder of a store, or learn into it first",
                },
            });
        }
        let io = |source| StoreError::Io { path: path.clone(), doing: "read", source };
        let file = retry(|| files.open(&path, Mode::Read)).map_err(io)?;
        // One byte more, to see a file that is too long.
        let mut bytes = [0; META_BYTES + 1];
        let read = read_up_to(files, &file, 0, &mut bytes).map_err(io)?;
        let crc = Crc::<u32>::new(&CRC_32_ISCSI).checksum(&bytes[..124]);
        if read != META_BYTES || bytes[..8] != MAGIC || bytes[124..128] != crc.to_le_bytes() {
            return Err(StoreError::Damaged { path });
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version != FORMAT_VERSION {
            return Err(StoreError::NewerFormat {
                path: folder.to_path_buf(),
                found: version,
                supported: FORMAT_VERSION,
            });
        }
        let mut created = [0; 8];
        created.copy_from_slice(&bytes[16..24]);
        let digest = |at: usize| {
            let mut digest = [0; 32];
            digest.copy_from_slice(&bytes[at..at + 32]);
            digest
        };
        Ok(Self {
            created_unix_s: u64::from_le_bytes(created),
            identity: Identity { base_digest: digest(24), tokenizer_digest: digest(56) },
        })
    }

    fn check(&self, path: &Path, identity: &Identity) -> Result<(), StoreError> {
        let path = path.to_path_buf();
        let (expected, found) = (identity, &self.identity);
        if expected.base_digest != found.base_digest {
            return Err(StoreError::OtherBase { path, expected: expected.base_digest, found: found.base_digest });
        }
        if expected.tokenizer_digest != found.tokenizer_digest {
            return Err(StoreError::OtherTokenizer {
                path,
                expected: expected.tokenizer_digest,
                found: found.tokenizer_digest,
            });
        }
        Ok(())
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Draft, RevisionKind, SectionData};
    use crate::example::{Example, ExampleId};
    use crate::files::faulty::{EINTR, EIO, ENOSPC, FaultyFiles};
    use std::fs;

    const IDENTITY: Identity = Identity { base_digest: [0xB5; 32], tokenizer_digest: [0x70; 32] };
    const OPTIONS: StoreOptions = StoreOptions { replay_capacity_bytes: 4 << 20 };

    fn open(path: &Path) -> (Store, StoreReport) {
        Store::create_or_open(path, &IDENTITY, &OPTIONS, 1_700_000_000).unwrap()
    }

    fn example(seed: u32) -> Example {
        Example::new(&[1, seed], &[seed; 20], 2, "math", 0).unwrap()
    }

    fn commit(store: &mut Store, value: f32) -> Result<(), CheckpointError> {
        let draft = Draft {
            kind: RevisionKind::Step,
            parent: None,
            created_unix_s: 0,
            sections: &[("fast", SectionData::F32(&[value; 10]))],
        };
        store.revisions.commit(&draft).map(drop)
    }

    #[test]
    fn a_store_is_made_once_and_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        let (mut store, report) = open(&path);
        assert!(report.is_new);
        store.replay.append(&[example(1), example(2)]).unwrap();
        commit(&mut store, 1.0).unwrap();
        drop(store);
        let (store, report) = open(&path);
        assert!(!report.is_new);
        assert_eq!((report.replay.records, store.created_unix_s()), (2, 1_700_000_000));
        assert_eq!(report.revisions.newest.unwrap().number, 1);
        let stat = store.stat();
        assert_eq!((stat.records, stat.tokens, stat.revisions), (2, 46, 1));
        assert_eq!(stat.tasks[0].task, "math");
        drop(store);
        let (mut reading, _) = Store::open_read(&path).unwrap();
        assert_eq!((reading.stat(), *reading.identity()), (stat, IDENTITY));
        assert!(reading.verify().unwrap().is_ok());
        assert!(reading.replay.append(&[example(3)]).is_err());
        assert!(matches!(commit(&mut reading, 2.0).unwrap_err(), CheckpointError::ReadOnly { .. }));
        let (mut changing, _) = Store::open(&path, &OPTIONS).unwrap();
        changing.replay.remove(ExampleId(1)).unwrap();
    }

    #[test]
    fn a_folder_becomes_a_store_by_its_last_write() {
        let folder = tempfile::tempdir().unwrap();
        let files = Arc::new(FaultyFiles::new(usize::MAX, 0));
        let meta = Meta { identity: IDENTITY, created_unix_s: 0 };
        let path = folder.path();
        replace_file(files.as_ref(), path, META_NAME, &meta.encode()).unwrap();
        assert_eq!(files.call_names(), ["open", "write_at", "sync_data", "rename", "sync_folder"]);
        // All of it but the last write: the store is made as if nothing had been there.
        fs::rename(path.join(META_NAME), path.join("store.meta.tmp")).unwrap();
        fs::create_dir(path.join("revisions")).unwrap();
        assert!(open(path).1.is_new);
        assert!(!open(path).1.is_new);
    }

    #[test]
    fn another_model_is_refused_with_both_digests() {
        let folder = tempfile::tempdir().unwrap();
        open(folder.path());
        let mut other = IDENTITY;
        other.base_digest[0] = 0xAA;
        let refused = Store::create_or_open(folder.path(), &other, &OPTIONS, 0).unwrap_err();
        assert!(matches!(refused, StoreError::OtherBase { .. }));
        let said = refused.to_string();
        assert!(said.contains(&"b5".repeat(32)), "{said}");
        assert!(said.contains(&format!("aa{}", "b5".repeat(31))), "{said}");
        let mut other = IDENTITY;
        other.tokenizer_digest[0] = 0xAA;
        let refused = Store::create_or_open(folder.path(), &other, &OPTIONS, 0).unwrap_err();
        assert!(matches!(refused, StoreError::OtherTokenizer { .. }));
    }

    #[test]
    fn one_writer_at_a_time_and_readers_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = open(folder.path());
        for refused in
            [Store::create_or_open(folder.path(), &IDENTITY, &OPTIONS, 0), Store::open(folder.path(), &OPTIONS)]
        {
            let Err(StoreError::Locked(LockError::InUse { holder, .. })) = refused else { panic!("{refused:?}") };
            assert_eq!(holder, Some(std::process::id()));
        }
        store.replay.append(&[example(1)]).unwrap();
        let (mut reading, _) = Store::open_read(folder.path()).unwrap();
        assert_eq!(reading.replay.read(ExampleId(1)).unwrap(), example(1));
        store.replay.append(&[example(2)]).unwrap();
        assert_eq!(reading.replay.len(), 1);
    }

    #[test]
    fn what_is_no_store_is_refused_with_a_cure() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let said = |refused: Result<(Store, StoreReport), StoreError>| {
            let refused = refused.unwrap_err().to_string();
            assert!(refused.contains(&path.display().to_string()), "{refused}");
            refused
        };
        assert!(said(Store::open_read(&path.join("no"))).contains("no such folder"));
        assert!(said(Store::open(path, &OPTIONS)).contains("no `store.meta`"));
        fs::write(path.join("photo.jpg"), "mine").unwrap();
        let refused = said(Store::create_or_open(path, &IDENTITY, &OPTIONS, 0));
        assert!(refused.contains("empty folder"));
        assert_eq!(fs::read_dir(path).unwrap().count(), 1, "nothing was left there");
        // A file where the folder should be.
        let file = path.join("photo.jpg");
        said(Store::create_or_open(&file, &IDENTITY, &OPTIONS, 0));
        said(Store::create_or_open(&file.join("x"), &IDENTITY, &OPTIONS, 0));
    }

    #[test]
    fn damaged_and_newer_meta_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        open(folder.path());
        let path = folder.path().join(META_NAME);
        let bytes = fs::read(&path).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &flipped).unwrap();
            let refused = Store::open_read(folder.path()).unwrap_err();
            assert!(matches!(refused, StoreError::Damaged { .. }));
        }
        for len in 0..bytes.len() {
            fs::write(&path, &bytes[..len]).unwrap();
            let refused = Store::open_read(folder.path()).unwrap_err();
            assert!(matches!(refused, StoreError::Damaged { .. }));
        }
        let mut newer = bytes.clone();
        newer[8] = 2;
        let crc = Crc::<u32>::new(&CRC_32_ISCSI).checksum(&newer[..124]);
        newer[124..].copy_from_slice(&crc.to_le_bytes());
        fs::write(&path, &newer).unwrap();
        let refused = Store::open_read(folder.path()).unwrap_err();
        assert!(matches!(refused, StoreError::NewerFormat { found: 2, .. }));
    }

    #[test]
    fn verify_names_what_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = open(folder.path());
        store.replay.append(&[example(1)]).unwrap();
        store.replay.append(&[example(2)]).unwrap();
        commit(&mut store, 1.0).unwrap();
        commit(&mut store, 2.0).unwrap();
        assert!(store.verify().unwrap().problems().is_empty());
        let damage = |name: &str, at: usize| {
            let path = folder.path().join(name);
            let mut bytes = fs::read(&path).unwrap();
            bytes[at] ^= 1;
            fs::write(path, bytes).unwrap();
        };
        damage("revisions/00000002.rev", 200);
        damage("replay/log", 130);
        let (mut reading, report) = Store::open_read(folder.path()).unwrap();
        assert_eq!(report.revisions.newest.unwrap().number, 1);
        let found = reading.verify().unwrap();
        assert!(!found.is_ok());
        let problems = found.problems();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].contains("flipped bit"), "{problems:?}");
        assert!(problems[1].contains("00000002.rev"), "{problems:?}");
        assert_eq!(reading.replay.len(), 2, "the flipped bit cost nothing");
    }

    #[test]
    fn short_reads_and_writes_are_carried_on() {
        let folder = tempfile::tempdir().unwrap();
        let files = Arc::new(FaultyFiles::short(13));
        let again = || {
            let files = files.clone();
            Store::create_or_open_with(files, folder.path(), &IDENTITY, &OPTIONS, 0).unwrap()
        };
        let (mut store, _) = again();
        store.replay.append(&[example(1), example(2)]).unwrap();
        commit(&mut store, 1.0).unwrap();
        drop(store);
        let (mut store, _) = again();
        assert_eq!(store.replay.read(ExampleId(2)).unwrap(), example(2));
        let revision = store.revisions.load(1).unwrap();
        assert_eq!(revision.f32s("fast").unwrap(), [1.0; 10]);
        assert!(store.verify().unwrap().is_ok());
    }

    #[test]
    fn whichever_file_call_fails_the_store_opens_again_with_everything_acknowledged() {
        for error in [ENOSPC, EIO, EINTR] {
            for nth in 0.. {
                let folder = tempfile::tempdir().unwrap();
                let files = Arc::new(FaultyFiles::new(nth, error));
                let made = Store::create_or_open_with(files.clone(), folder.path(), &IDENTITY, &OPTIONS, 0);
                let (mut records, mut revisions) = (0, 0);
                match made {
                    Ok((mut store, _)) => {
                        records += usize::from(store.replay.append(&[example(1)]).is_ok());
                        revisions += usize::from(commit(&mut store, 1.0).is_ok());
                    }
                    Err(refused) => assert!(error != EINTR, "{refused}"),
                }
                assert!(error != EINTR || records + revisions == 2);
                let (mut store, _) = open(folder.path());
                assert!(store.replay.len() >= records);
                assert!(store.revisions.list().len() >= revisions);
                assert!(store.verify().unwrap().is_ok());
                if files.calls() <= nth {
                    break;
                }
            }
        }
    }
}
