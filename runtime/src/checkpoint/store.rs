//! A folder of revisions: commit, list, load, roll back, prune.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::container::{self, Container, FORMAT_VERSION, Fault, ReadError};
use super::{CheckpointError, Draft, Identity, Revision, RevisionInfo, RevisionKind, Section, SectionData};
use crate::files::{Files, Mode, SystemFiles, is_full, retry};

/// How many revisions [`RevisionStore::prune`] keeps. The newest of all is kept in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Newest step revisions.
    pub steps: usize,
    /// Newest published revisions.
    pub published: usize,
    /// What their files may have together. Where that is less, the oldest steps go first, then the oldest published ones. A
    /// commit comes before its prune: for that moment there is one file more.
    pub bytes: u64,
}

impl Keep {
    /// Two steps, so that one damaged file costs one step; eight published states to go back to; half a gibibyte, which
    /// holds all of these for a model of 135 million parameters at rank 8 (234 MB).
    pub const DEFAULT: Self = Self { steps: 2, published: 8, bytes: 512 << 20 };
}

impl Default for Keep {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// A file in the folder that is no sound revision.
#[derive(Debug)]
#[non_exhaustive]
pub struct InvalidRevision {
    /// Its name.
    pub name: String,
    /// What is wrong with it.
    pub reason: CheckpointError,
}

/// What was found when a folder of revisions was opened.
#[derive(Debug)]
#[non_exhaustive]
pub struct RevisionReport {
    /// The newest sound revision, read in full.
    pub newest: Option<RevisionInfo>,
    /// Files that are no sound revision, left as they are.
    pub invalid: Vec<InvalidRevision>,
    /// Commits that never finished, now removed.
    pub removed: Vec<String>,
}

/// A folder of revisions. One writer at a time: whoever opens it to write holds a lock on the store around it.
#[derive(Debug)]
pub struct RevisionStore {
    folder: PathBuf,
    identity: Identity,
    files: Arc<dyn Files>,
    /// Ascending by number; sound as far as their headers say.
    revisions: Vec<RevisionInfo>,
    next_number: u64,
    is_read_only: bool,
}

impl RevisionStore {
    /// Opens the existing folder `folder`, whose revisions belong to `identity`.
    ///
    /// Reads all headers and the newest revision in full, falling back to older ones while it is damaged. Removes
    /// commits that never finished.
    ///
    /// # Errors
    /// [`CheckpointError::NewerFormat`] if a revision was written by a newer version: going on from an older state
    /// would lose it. [`CheckpointError::Io`]. A damaged file is no error but part of the report.
    pub fn open(folder: &Path, identity: &Identity) -> Result<(Self, RevisionReport), CheckpointError> {
        Self::open_with(Arc::new(SystemFiles), folder, identity, false)
    }

    /// As [`RevisionStore::open`], but changes nothing, now or later.
    ///
    /// # Errors
    /// As [`RevisionStore::open`].
    pub fn open_read(folder: &Path, identity: &Identity) -> Result<(Self, RevisionReport), CheckpointError> {
        Self::open_with(Arc::new(SystemFiles), folder, identity, true)
    }

    pub(crate) fn open_with(
        files: Arc<dyn Files>,
        folder: &Path,
        identity: &Identity,
        is_read_only: bool,
    ) -> Result<(Self, RevisionReport), CheckpointError> {
        let mut store = Self {
            folder: folder.to_path_buf(),
            identity: *identity,
            files,
            revisions: Vec::new(),
            next_number: 1,
            is_read_only,
        };
        let mut report = RevisionReport { newest: None, invalid: Vec::new(), removed: Vec::new() };
        let names = retry(|| store.files.list(folder)).map_err(store.io(folder, "list"))?;
        for name in names {
            let Some(name) = name.to_str() else { continue };
            if name.ends_with(".rev.tmp") && !is_read_only {
                store.remove_unfinished(name)?;
                report.removed.push(name.to_owned());
            } else if let Some(number) = number_in(name) {
                store.next_number = store.next_number.max(number.saturating_add(1));
                match store.read_header(number) {
                    Ok(info) => store.revisions.push(info),
                    Err(reason) => report.invalid.push(invalid(name, reason)?),
                }
            }
        }
        store.revisions.sort_by_key(|info| info.number);
        while let Some(newest) = store.revisions.last() {
            match store.verify_one(newest.number) {
                Ok(()) => break,
                Err(reason) => {
                    let name = file_name(newest.number);
                    report.invalid.push(invalid(&name, reason)?);
                    store.revisions.pop();
                }
            }
        }
        report.newest = store.revisions.last().cloned();
        for invalid in &report.invalid {
            log::warn!("revision file `{}`: {}", invalid.name, invalid.reason);
        }
        Ok((store, report))
    }

    /// The newest revision.
    pub fn newest(&self) -> Option<&RevisionInfo> {
        self.revisions.last()
    }

    /// All revisions, oldest first. Their sections are checked when they are loaded.
    pub fn list(&self) -> &[RevisionInfo] {
        &self.revisions
    }

    /// Bytes of all revision files.
    pub fn bytes(&self) -> u64 {
        self.revisions.iter().map(|info| info.bytes).sum()
    }

    /// What the revisions belong to.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Reads revision `number`, checking every byte.
    ///
    /// # Errors
    /// [`CheckpointError::NotFound`]; [`CheckpointError::Damaged`]; [`CheckpointError::OutOfMemory`];
    /// [`CheckpointError::Io`].
    pub fn load(&self, number: u64) -> Result<Revision, CheckpointError> {
        self.known(number)?;
        let (file, container) = self.open_file(number)?;
        let sections = container.load(self.files.as_ref(), &file).map_err(|error| self.read_error(number, error))?;
        Ok(Revision { info: container.info, sections })
    }

    /// Reads one section of revision `number`, which was committed as bytes.
    ///
    /// # Errors
    /// As [`RevisionStore::load`]; [`CheckpointError::NoSection`].
    pub fn section_bytes(&self, number: u64, name: &str) -> Result<Vec<u8>, CheckpointError> {
        self.known(number)?;
        let (file, container) = self.open_file(number)?;
        let section = container.section(self.files.as_ref(), &file, name);
        match section.map_err(|error| self.read_error(number, error))? {
            Some(Section::Bytes(bytes)) => Ok(bytes),
            _ => Err(CheckpointError::NoSection { number, name: name.to_owned() }),
        }
    }

    /// Gives no revision a number up to `number`, of one that is gone and that others may still speak of.
    pub(crate) fn skip_numbers(&mut self, number: u64) {
        self.next_number = self.next_number.max(number.saturating_add(1));
    }

    /// Commits a revision under the next number. When this returns, it survives a crash.
    ///
    /// # Errors
    /// [`CheckpointError::Full`], [`CheckpointError::Io`]: earlier revisions are as they were. If only the last sync
    /// failed, the new one may or may not be there after a crash. [`CheckpointError::BadSection`] before anything is
    /// written; [`CheckpointError::ReadOnly`].
    pub fn commit(&mut self, draft: &Draft<'_>) -> Result<RevisionInfo, CheckpointError> {
        self.check_writable()?;
        if let Some((name, reason)) = container::broken_rule(draft) {
            let name = name.to_owned();
            return Err(CheckpointError::BadSection { name, reason });
        }
        let number = self.next_number;
        let after = number.checked_add(1);
        let after = after.ok_or(CheckpointError::NumbersExhausted)?;
        let path = self.folder.join(file_name(number));
        let temporary = self.folder.join(file_name(number) + ".tmp");
        let written = self.write(&temporary, &path, number, draft);
        let info = match written {
            Ok(info) => info,
            Err(error) => {
                // Opening the store removes it if this cannot.
                let _ = self.files.remove(&temporary);
                return Err(self.write_error(&temporary, draft, error));
            }
        };
        // The name is there now, whatever becomes of it.
        self.next_number = after;
        self.revisions.push(info.clone());
        retry(|| self.files.sync_folder(&self.folder)).map_err(self.io(&self.folder, "sync"))?;
        Ok(info)
    }

    /// Makes revision `number` the newest again, by committing a published copy of it under the next number. Later
    /// revisions stay until they are pruned, so a rollback can be rolled back.
    ///
    /// # Errors
    /// As [`RevisionStore::load`] and [`RevisionStore::commit`].
    pub fn rollback(&mut self, number: u64, now_unix_s: u64) -> Result<RevisionInfo, CheckpointError> {
        let revision = self.load(number)?;
        let sections: Vec<(&str, SectionData<'_>)> =
            revision.sections.iter().map(|(name, section)| (name.as_str(), section.as_data())).collect();
        self.commit(&Draft {
            kind: RevisionKind::Published,
            parent: Some(number),
            created_unix_s: now_unix_s,
            sections: &sections,
        })
    }

    /// Removes all but the newest revisions of each kind, as far as they fit the quota; the newest of all always stays.
    /// Returns the numbers removed.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] at the first file that cannot be removed; [`CheckpointError::ReadOnly`].
    pub fn prune(&mut self, keep: Keep) -> Result<Vec<u64>, CheckpointError> {
        let removed = self.beyond(keep);
        self.unlink(&removed)?;
        Ok(removed)
    }

    /// The revisions that are not to be kept.
    fn beyond(&self, keep: Keep) -> Vec<u64> {
        let Some((newest, older)) = self.revisions.split_last() else { return Vec::new() };
        let mut bytes_left = keep.bytes.saturating_sub(newest.bytes);
        let mut removed = Vec::new();
        // The published ones take what there is of the quota before the steps do.
        for (kind, most) in [(RevisionKind::Published, keep.published), (RevisionKind::Step, keep.steps)] {
            let mut left = most.saturating_sub(usize::from(newest.kind == kind));
            for info in older.iter().rev().filter(|info| info.kind == kind) {
                if left > 0 && info.bytes <= bytes_left {
                    left -= 1;
                    bytes_left -= info.bytes;
                } else {
                    // Nor anything older: what stays are the newest ones.
                    left = 0;
                    removed.push(info.number);
                }
            }
        }
        removed
    }

    /// Removes revisions, sound or not, the newest too; those that are not there are left alone. On return they stay away
    /// after a crash too.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] at the first file that cannot be removed; [`CheckpointError::ReadOnly`].
    pub fn remove(&mut self, numbers: &[u64]) -> Result<(), CheckpointError> {
        self.check_writable()?;
        self.unlink(numbers)?;
        retry(|| self.files.sync_folder(&self.folder)).map_err(self.io(&self.folder, "sync"))
    }

    fn unlink(&mut self, numbers: &[u64]) -> Result<(), CheckpointError> {
        for &number in numbers {
            let path = self.folder.join(file_name(number));
            match retry(|| self.files.remove(&path)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(self.io(&path, "remove")(error));
                }
                _ => self.revisions.retain(|info| info.number != number),
            }
        }
        Ok(())
    }

    /// Bytes that commits have written since `time_unix_s`, about: as many as revisions were numbered since the last one
    /// before that is still there, each counted like the largest.
    pub fn bytes_written_since(&self, time_unix_s: u64) -> u64 {
        let (old, recent): (Vec<_>, Vec<_>) = self.revisions.iter().partition(|info| info.created_unix_s < time_unix_s);
        let (Some(first), Some(last)) = (recent.first(), recent.last()) else { return 0 };
        let before = old.last().map_or(first.number.saturating_sub(1), |info| info.number);
        let largest = recent.iter().map(|info| info.bytes).max().unwrap_or(0);
        last.number.saturating_sub(before).saturating_mul(largest)
    }

    /// Reads every byte of every revision in the list. Returns those that are no longer sound.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] if a file cannot be read.
    pub fn verify(&self) -> Result<Vec<InvalidRevision>, CheckpointError> {
        let mut found = Vec::new();
        for info in &self.revisions {
            if let Err(reason) = self.verify_one(info.number) {
                found.push(invalid(&file_name(info.number), reason)?);
            }
        }
        Ok(found)
    }

    /// Reads the file `name` again; returns it if it is still no sound revision.
    pub(crate) fn examine(&self, name: &str) -> Result<Option<InvalidRevision>, CheckpointError> {
        let Some(number) = number_in(name) else {
            return Ok(None);
        };
        let checked = self.read_header(number);
        match checked.and_then(|_| self.verify_one(number)) {
            Ok(()) => Ok(None),
            Err(reason) => invalid(name, reason).map(Some),
        }
    }

    fn write(&self, temporary: &Path, path: &Path, number: u64, draft: &Draft<'_>) -> io::Result<RevisionInfo> {
        let files = self.files.as_ref();
        let file = retry(|| files.open(temporary, Mode::Fresh))?;
        let info = container::write(files, &file, number, &self.identity, draft)?;
        retry(|| files.sync_data(&file))?;
        drop(file);
        retry(|| files.rename(temporary, path))?;
        Ok(info)
    }

    fn write_error(&self, path: &Path, draft: &Draft<'_>, source: io::Error) -> CheckpointError {
        if !is_full(&source) {
            return self.io(path, "write")(source);
        }
        CheckpointError::Full { path: path.to_path_buf(), needed_bytes: container::file_bytes(draft), source }
    }

    fn remove_unfinished(&self, name: &str) -> Result<(), CheckpointError> {
        let path = self.folder.join(name);
        retry(|| self.files.remove(&path)).map_err(self.io(&path, "remove"))
    }

    fn known(&self, number: u64) -> Result<&RevisionInfo, CheckpointError> {
        let found = self.revisions.iter().find(|info| info.number == number);
        found.ok_or_else(|| CheckpointError::NotFound {
            number,
            available: self.revisions.iter().map(|info| info.number).collect(),
        })
    }

    fn open_file(&self, number: u64) -> Result<(File, Container), CheckpointError> {
        let path = self.folder.join(file_name(number));
        let file = retry(|| self.files.open(&path, Mode::Read)).map_err(self.io(&path, "open"))?;
        let container = Container::open(self.files.as_ref(), &file).map_err(|error| self.read_error(number, error))?;
        Ok((file, container))
    }

    fn read_header(&self, number: u64) -> Result<RevisionInfo, CheckpointError> {
        let (_, Container { info, .. }) = self.open_file(number)?;
        let path = self.folder.join(file_name(number));
        let (expected, found) = (&self.identity, &info.identity);
        if info.number != number {
            let fault = Fault::Name { number: info.number };
            return Err(CheckpointError::Damaged { path, fault });
        }
        if expected.base_digest != found.base_digest {
            return Err(CheckpointError::OtherBase { path, expected: expected.base_digest, found: found.base_digest });
        }
        if expected.tokenizer_digest != found.tokenizer_digest {
            return Err(CheckpointError::OtherTokenizer {
                path,
                expected: expected.tokenizer_digest,
                found: found.tokenizer_digest,
            });
        }
        Ok(info)
    }

    fn verify_one(&self, number: u64) -> Result<(), CheckpointError> {
        let (file, container) = self.open_file(number)?;
        container.verify(self.files.as_ref(), &file).map_err(|error| self.read_error(number, error))
    }

    fn read_error(&self, number: u64, error: ReadError) -> CheckpointError {
        let path = self.folder.join(file_name(number));
        match error {
            ReadError::Io(source) => self.io(&path, "read")(source),
            ReadError::Fault(fault) => CheckpointError::Damaged { path, fault },
            ReadError::OutOfMemory(bytes) => CheckpointError::OutOfMemory { bytes },
            ReadError::Newer(found) => CheckpointError::NewerFormat { path, found, supported: FORMAT_VERSION },
        }
    }

    fn check_writable(&self) -> Result<(), CheckpointError> {
        if self.is_read_only {
            let path = self.folder.clone();
            return Err(CheckpointError::ReadOnly { path });
        }
        Ok(())
    }

    fn io(&self, path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> CheckpointError + use<> {
        let path = path.to_path_buf();
        move |source| CheckpointError::Io { path, doing, source }
    }
}

/// Sets a file aside in the report if it is damaged or foreign. What may be gone the next time is an error instead.
fn invalid(name: &str, reason: CheckpointError) -> Result<InvalidRevision, CheckpointError> {
    use CheckpointError::{Damaged, OtherBase, OtherTokenizer};
    match reason {
        Damaged { .. } | OtherBase { .. } | OtherTokenizer { .. } => {
            Ok(InvalidRevision { name: name.to_owned(), reason })
        }
        other => Err(other),
    }
}

fn file_name(number: u64) -> String {
    format!("{number:08}.rev")
}

/// The number in the name of a revision file.
pub(crate) fn number_in(name: &str) -> Option<u64> {
    let number = name.strip_suffix(".rev")?.parse().ok()?;
    // Only the name that this number is stored under, so that no two names mean one revision.
    (file_name(number) == name && number > 0).then_some(number)
}
