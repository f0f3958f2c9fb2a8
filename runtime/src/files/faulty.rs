//! The operating system's file calls, of which one fails.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Files, Mode, SystemFiles};

/// Counts calls and lets the `nth` (from 0) fail. A write that fails has written half of its bytes.
#[derive(Debug)]
pub(crate) struct FaultyFiles {
    calls: Mutex<Vec<&'static str>>,
    nth: usize,
    error: i32,
    is_done_anyway: bool,
    /// Most bytes that one read or write moves.
    most_bytes: usize,
    /// Growths that find no room.
    growths_refused: AtomicUsize,
}

pub(crate) const ENOSPC: i32 = 28;
pub(crate) const EIO: i32 = 5;
pub(crate) const EINTR: i32 = 4;

impl FaultyFiles {
    /// Fails the `nth` call with the error number `error`.
    pub(crate) fn new(nth: usize, error: i32) -> Self {
        Self {
            calls: Mutex::new(Vec::new()),
            nth,
            error,
            is_done_anyway: false,
            most_bytes: usize::MAX,
            growths_refused: AtomicUsize::new(0),
        }
    }

    /// Moves at most `most_bytes` with one read or write.
    pub(crate) fn short(most_bytes: usize) -> Self {
        Self { most_bytes, ..Self::new(usize::MAX, 0) }
    }

    /// Has no room for the first `growths` growths.
    pub(crate) fn full_disk(growths: usize) -> Self {
        Self { growths_refused: AtomicUsize::new(growths), ..Self::new(usize::MAX, 0) }
    }

    /// Does what the `nth` call asks and then says that it failed.
    pub(crate) fn after_the_fact(nth: usize, error: i32) -> Self {
        Self { is_done_anyway: true, ..Self::new(nth, error) }
    }

    /// The error number of the call that fails.
    pub(crate) fn error(&self) -> i32 {
        self.error
    }

    /// Whether the call that fails was made.
    pub(crate) fn has_failed(&self) -> bool {
        self.calls() > self.nth
    }

    /// The number of calls so far.
    pub(crate) fn calls(&self) -> usize {
        self.call_names().len()
    }

    /// The calls so far, by name.
    pub(crate) fn call_names(&self) -> Vec<&'static str> {
        self.calls.lock().unwrap().clone()
    }

    fn call<T>(&self, name: &'static str, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let nth = self.calls();
        self.calls.lock().unwrap().push(name);
        if nth != self.nth {
            return call();
        }
        if self.is_done_anyway {
            call()?;
        }
        Err(io::Error::from_raw_os_error(self.error))
    }
}

impl Files for FaultyFiles {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.call("create_folder", || SystemFiles.create_folder(path))
    }

    fn open(&self, path: &Path, mode: Mode) -> io::Result<File> {
        self.call("open", || SystemFiles.open(path, mode))
    }

    fn len_bytes(&self, file: &File) -> io::Result<u64> {
        self.call("len_bytes", || SystemFiles.len_bytes(file))
    }

    fn allocate(&self, file: &File, len_bytes: u64) -> io::Result<()> {
        let one_less = |left: usize| left.checked_sub(1);
        let order = Ordering::Relaxed;
        let refused = self.growths_refused.fetch_update(order, order, one_less);
        if refused.is_ok() {
            return Err(io::Error::from_raw_os_error(ENOSPC));
        }
        self.call("allocate", || SystemFiles.allocate(file, len_bytes))
    }

    fn set_len(&self, file: &File, len_bytes: u64) -> io::Result<()> {
        self.call("set_len", || SystemFiles.set_len(file, len_bytes))
    }

    fn read_at(&self, file: &File, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let most = bytes.len().min(self.most_bytes);
        let bytes = &mut bytes[..most];
        self.call("read_at", || SystemFiles.read_at(file, offset, bytes))
    }

    fn write_at(&self, file: &File, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let bytes = &bytes[..bytes.len().min(self.most_bytes)];
        self.call("write_at", || SystemFiles.write_at(file, offset, bytes)).inspect_err(|_| {
            let _ = SystemFiles.write_at(file, offset, &bytes[..bytes.len() / 2]);
        })
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        self.call("sync_data", || SystemFiles.sync_data(file))
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.call("sync_folder", || SystemFiles.sync_folder(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call("rename", || SystemFiles.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.call("remove", || SystemFiles.remove(path))
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        self.call("remove_folder", || SystemFiles.remove_folder(path))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        self.call("list", || SystemFiles.list(path))
    }
}
