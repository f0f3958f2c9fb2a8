//! The end of a store.

use std::io;
use std::path::{Path, PathBuf};

use super::error::StoreError;
use super::meta::META_NAME;
use super::receipt::RECEIPTS_NAME;
use super::{LOCK_NAME, REPLAY_NAME, REVISIONS_NAME, Store};
use crate::files::lock::Lock;
use crate::files::{Files, SystemFiles, retry};

impl Store {
    /// Deletes the store in the folder `path`, sound or damaged: records, revisions, receipts, and the folder itself, unless
    /// something else is in it. `store.meta` goes last, so that a wipe that was interrupted can be made again.
    ///
    /// Files are deleted, not overwritten: what a disk does with their blocks is its own affair. [`Store::forget`]
    /// overwrites.
    ///
    /// # Errors
    /// [`StoreError::NotAStore`] if there is no `store.meta`; [`StoreError::Locked`]; [`StoreError::Io`] names the file that
    /// cannot be deleted.
    pub fn wipe(path: &Path) -> Result<(), StoreError> {
        Self::wipe_with(&SystemFiles, path)
    }

    pub(super) fn wipe_with(files: &dyn Files, path: &Path) -> Result<(), StoreError> {
        if !path.join(META_NAME).is_file() {
            let reason = "it holds no `store.meta`, so nothing was deleted";
            return Err(StoreError::NotAStore { path: path.to_owned(), reason });
        }
        let lock = Lock::acquire(&path.join(LOCK_NAME))?;
        let folders = [REVISIONS_NAME, REPLAY_NAME, RECEIPTS_NAME].map(|name| path.join(name));
        for folder in &folders {
            for file in ours(files, folder)? {
                remove(files, &file)?;
            }
        }
        remove(files, &path.join("store.meta.tmp"))?;
        remove(files, &path.join(META_NAME))?;
        // From here on it is no store; what is left is empty, or not ours.
        remove(files, &path.join(LOCK_NAME))?;
        drop(lock);
        for folder in folders.iter().map(PathBuf::as_path).chain([path]) {
            match retry(|| files.remove_folder(folder)) {
                Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
                    return Err(StoreError::io(folder, "delete")(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The files in `folder` that a store puts there.
fn ours(files: &dyn Files, folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let names = match retry(|| files.list(folder)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        names => names.map_err(StoreError::io(folder, "list"))?,
    };
    let is_ours = |name: &str| {
        let name = name.strip_suffix(".tmp").unwrap_or(name);
        name == "log" || name.ends_with(".rev") || name.ends_with(".receipt")
    };
    Ok(names.iter().filter(|name| name.to_str().is_some_and(is_ours)).map(|name| folder.join(name)).collect())
}

fn remove(files: &dyn Files, path: &Path) -> Result<(), StoreError> {
    match retry(|| files.remove(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io(path, "delete")(error)),
        _ => Ok(()),
    }
}
