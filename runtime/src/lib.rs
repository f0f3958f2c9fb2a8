//! An interaction becomes a better adapter.

#[cfg(feature = "std")]
pub mod budget;
#[cfg(feature = "std")]
pub mod device;
#[cfg(feature = "std")]
pub mod generate;
