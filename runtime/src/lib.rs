//! An interaction becomes a better adapter.

extern crate alloc;

#[cfg(feature = "std")]
pub mod budget;
#[cfg(feature = "std")]
pub mod device;
pub mod example;
#[cfg(feature = "std")]
pub mod generate;
#[cfg(feature = "std")]
pub mod learn;
#[cfg(feature = "std")]
pub mod session;

#[cfg(feature = "std")]
pub use budget::{Budget, Report, StoppedBy};
#[cfg(feature = "std")]
pub use device::DeviceChoice;
#[cfg(feature = "std")]
pub use session::{Control, Learner, Session, SessionBuilder, SessionError};
