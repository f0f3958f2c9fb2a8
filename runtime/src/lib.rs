//! An interaction becomes a better adapter.
//!
//! Without default features only the storage core is built: [`example`], [`storage`] and [`replay`]. It needs `alloc`
//! and nothing else, knows no tensor, and runs on microcontrollers.
#![cfg_attr(not(any(feature = "std", test)), no_std)]

extern crate alloc;

pub mod example;
pub mod replay;
pub mod storage;
