//! An interaction becomes a better adapter.
//!
//! ```text
//! interaction ─ session.observe ─► Example ─► replay log ─► batch ─► a step ─► fast, slow adapter ─► revision
//!                                                                                          │
//! prompt ──────────────────────── session.generate ◄──────────────────────── slow ◄────────┘
//! ```
//!
//! Without default features only the storage core is built: [`example`], [`storage`] and [`replay`]. It needs `alloc`
//! and nothing else, knows no tensor, and runs on microcontrollers. With feature `std` alone there are files
//! too: a medium for the log, and revisions.
#![cfg_attr(
    feature = "model",
    doc = r#"
A [`Session`] is the whole of it: a model that talks, is taught, learns what it was taught without losing what it knew,
and knows it after a restart. Learning is done in slices that the app grants, and any of them may be the last.

```no_run
use std::time::Duration;

use mynah::generate::GenerateOptions;
use mynah::session::{Interaction, LearnRequest};
use mynah::{Budget, Session};
use mynah_models::chat_template::Message;

let mut session = Session::builder("model.gguf").store("what-i-was-taught").open()?;
session.observe(&Interaction::chat("What is my dog's name?", "Your dog is called Bramble."))?;
let report = session.learn(&LearnRequest::default(), Budget::time(Duration::from_secs(60)))?;
println!("{} of {} steps", report.steps_done, report.steps_total);

let question = Message::user("What is my dog's name?");
session.chat(&[question], &GenerateOptions::default(), &mut |text| {
    print!("{text}");
    true
})?;
# Ok::<(), mynah::SessionError>(())
```"#
)]
#![cfg_attr(not(any(feature = "std", test)), no_std)]
// Files without models are for fuzzing and small tools; what only stores of learning use is idle then.
#![cfg_attr(all(feature = "std", not(feature = "model")), allow(dead_code, unused_imports))]

extern crate alloc;

#[cfg(feature = "model")]
pub mod budget;
#[cfg(feature = "std")]
pub mod checkpoint;
#[cfg(feature = "model")]
pub mod device;
pub mod example;
#[cfg(feature = "model")]
pub mod generate;
#[cfg(feature = "model")]
pub mod learn;
pub mod replay;
#[cfg(feature = "model")]
pub mod session;
pub mod storage;
#[cfg(feature = "model")]
pub mod store;

// Declared here and not in `storage`, because only this file names features.
#[cfg(feature = "std")]
#[path = "storage/file.rs"]
mod file_flash;
#[cfg(feature = "std")]
mod files;
mod hex;

#[cfg(feature = "model")]
pub use budget::{Budget, Report, StoppedBy};
#[cfg(feature = "model")]
pub use device::DeviceChoice;
#[cfg(feature = "std")]
pub use file_flash::{FileError, FileFlash};
#[cfg(feature = "std")]
pub use files::lock::{Lock, LockError};
#[cfg(feature = "model")]
pub use mynah_models::Precision;
#[cfg(feature = "model")]
pub use session::{Control, Learner, Session, SessionBuilder, SessionError};
