//! A file that is not synced: to fill a store in minutes that took its owner years.

use embedded_storage::nor_flash::{ErrorType, NorFlash, ReadNorFlash};
use mynah::storage::Medium;
use mynah::{FileError, FileFlash};

/// The bytes of a [`FileFlash`] without its promise.
#[derive(Debug)]
pub struct Unsynced(pub FileFlash);

impl ErrorType for Unsynced {
    type Error = FileError;
}

impl ReadNorFlash for Unsynced {
    const READ_SIZE: usize = FileFlash::READ_SIZE;

    fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), FileError> {
        self.0.read(offset, bytes)
    }

    fn capacity(&self) -> usize {
        self.0.capacity()
    }
}

impl NorFlash for Unsynced {
    const WRITE_SIZE: usize = FileFlash::WRITE_SIZE;
    const ERASE_SIZE: usize = FileFlash::ERASE_SIZE;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), FileError> {
        self.0.erase(from, to)
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), FileError> {
        self.0.write(offset, bytes)
    }
}

impl Medium for Unsynced {
    fn sync(&mut self) -> Result<(), FileError> {
        Ok(())
    }

    fn is_full(error: &FileError) -> bool {
        FileFlash::is_full(error)
    }
}
