//! An interaction becomes a better adapter.
//!
//! Without default features only the storage core is built: [`example`], [`storage`] and [`replay`]. It needs `alloc`
//! and nothing else, knows no tensor, and runs on microcontrollers.
#![cfg_attr(not(any(feature = "std", test)), no_std)]

extern crate alloc;

#[cfg(feature = "std")]
pub mod budget;
#[cfg(feature = "std")]
pub mod checkpoint;
#[cfg(feature = "std")]
pub mod device;
pub mod example;
#[cfg(feature = "std")]
pub mod generate;
#[cfg(feature = "std")]
pub mod learn;
pub mod replay;
#[cfg(feature = "std")]
pub mod session;
pub mod storage;

#[cfg(feature = "std")]
pub use budget::{Budget, Report, StoppedBy};
#[cfg(feature = "std")]
pub use device::DeviceChoice;
#[cfg(feature = "std")]
pub use session::{Control, Learner, Session, SessionBuilder, SessionError};
#[cfg(feature = "std")]
pub mod store;

// Declared here and not in `storage`, because only this file names features.
#[cfg(feature = "std")]
#[path = "storage/file.rs"]
mod file_flash;
#[cfg(feature = "std")]
mod files;

#[cfg(feature = "std")]
pub use file_flash::{FileError, FileFlash};
#[cfg(feature = "std")]
pub use files::lock::{Lock, LockError};
