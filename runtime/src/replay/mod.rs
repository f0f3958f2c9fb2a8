#![doc = include_str!("FORMAT.md")]
#![forbid(unsafe_code)]

mod append;
mod batch;
mod codec;
mod coding;
mod compact;
mod config;
mod error;
mod frame;
mod index;
mod log;
mod policy;
mod query;
mod read;
mod record;
mod recover;
mod repair;
mod rewrite;
mod route;
mod score;
mod seal;
mod segment;
mod stage;
mod tables;
mod tally;

#[cfg(test)]
mod tests;

pub use config::{
    Compact, CompactReport, Eviction, LogConfig, RecordInfo, RecoveryReport, SegmentInfo, SegmentState, VerifyReport,
};
pub use error::{DropReason, Dropped, ReplayError};
pub use index::TaskCount;
pub use log::ReplayLog;
pub use policy::{Insertion, Memory, MemoryV1, Newcomer, Policy};
pub use record::RecordError;
pub use seal::Seal;
