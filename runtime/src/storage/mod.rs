//! What the replay log demands of the medium it lives on, and media that meet it.
//!
//! A medium is flash as [`embedded_storage::nor_flash::NorFlash`] describes it, plus one barrier, [`Medium::sync`].
//! Two ship with this crate: [`SimFlash`](sim::SimFlash), RAM that enforces the contract and cuts power, and, with
//! feature `std`, `FileFlash`, a file. An app brings its own by implementing [`Medium`] for its driver and running
//! [`check_medium`] over it.
//!
//! # The power-cut contract
//!
//! Power may fail at any moment, inside a call or between two.
//!
//! 1. **Erase** sets every byte of the blocks it names to `0xFF`. A cut inside leaves each byte of those blocks at any
//!    value, and changes nothing else.
//! 2. **Program** (`write`) turns erased words into the given bytes. The log programs each word once per erase. A cut
//!    inside leaves each byte of the words it names at its old value, its new value or anything between, in any
//!    order, and changes nothing else. A word that still reads as erased after the cut may be programmed again.
//! 3. **Sync** is the barrier: when it has returned `Ok`, every erase and program before it survives any later cut.
//!    A medium without a cache returns at once.
//! 4. **Before the barrier** calls may take effect in any order, or in parts (a page cache does that); then each byte
//!    touched since the last barrier is at any value it had, or passed through, since.
//! 5. **A failed sync** says nothing about what survived, and retrying it proves nothing (Rebello et al., *Can
//!    Applications Recover from fsync Failures?*, USENIX ATC 2020). The log then refuses to write until it is reopened.
//! 6. **Read** returns what is stored, or an error; a driver for flash with error correction hands out the bytes it
//!    has for a word that was torn, so that the log's own checksum can judge them.
//!
//! A torn word is at least as long as the medium's `WRITE_SIZE`; the log itself pads to words of 8 bytes or more.

use embedded_storage::nor_flash::NorFlash;

mod check;
pub mod sim;

pub use check::{MediumFault, check_medium};

/// NOR flash with a barrier; the module documentation is its contract.
///
/// Errors are full [`core::error::Error`]s, so that a cause reaches the app's log; a driver whose error is only
/// `Debug` is wrapped in a newtype, which the app needs anyway to implement this trait.
pub trait Medium: NorFlash<Error: core::error::Error + Send + Sync + 'static> {
    /// Returns once everything erased and programmed so far survives a power cut.
    ///
    /// # Errors
    /// The medium's own. The caller must not trust anything done since the last successful sync.
    fn sync(&mut self) -> Result<(), Self::Error>;

    /// Whether erase and program have taken effect for good when they return, as on raw flash, so that there is nothing
    /// for a sync to do, or to lie about. Then a compaction can drop the notes of removals whose records it dropped
    /// before; else only after the log was opened again.
    fn is_write_through(&self) -> bool {
        false
    }

    /// Whether `error` means that the medium has no room, and that the failed call changed nothing. A file reports a
    /// full disk this way; raw flash never does.
    fn is_full(error: &Self::Error) -> bool {
        let _ = error;
        false
    }
}

impl<M: Medium> Medium for &mut M {
    fn sync(&mut self) -> Result<(), Self::Error> {
        M::sync(self)
    }

    fn is_write_through(&self) -> bool {
        M::is_write_through(self)
    }

    fn is_full(error: &Self::Error) -> bool {
        M::is_full(error)
    }
}
