#![doc = include_str!("FORMAT.md")]

mod append;
mod config;
mod error;
mod index;
mod log;
mod policy;
mod record;
mod recover;
mod repair;
mod segment;

#[cfg(test)]
mod tests;

pub use config::{LogConfig, RecordInfo, RecoveryReport, VerifyReport};
pub use error::{DropReason, Dropped, ReplayError};
pub use index::TaskCount;
pub use log::ReplayLog;
pub use policy::{Insertion, Memory, MemoryV1, Newcomer, Policy};
pub use record::RecordError;
