//! The C border: `libmynah` and `include/mynah.h`. It translates and holds no behaviour of its own.
//!
//! The conventions, which the header repeats for its readers:
//!
//! - Every call that can fail gives a [`Status`](status::Status). Values go out through pointers, which are set on
//!   failure too, to 0 or NULL.
//! - Objects are opaque pointers, made and freed by paired calls; every cast of one is in `handle.rs`.
//! - Text is UTF-8 with its length, copied during the call; the slices are made in `text.rs`.
//! - The few structs with a layout begin with their size as the caller knows it: fields are only added at the end.
//! - A panic ends in `guard.rs`: the call gives `MYNAH_PANIC`, and its session is of no more use.
//! - A session does one thing at a time, on the caller's thread. Cancel and progress never wait for it.
#![allow(unsafe_code, reason = "the one crate that meets C pointers")]

mod guard;
mod handle;
mod text;

// In the order of the header.
pub mod options;

pub mod session;

pub mod learn;

pub mod status;

use std::ffi::{CStr, c_char};

/// Version of this interface. It grows when a program built against an older header would no longer work.
pub const MYNAH_ABI_VERSION: u32 = 1;

const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(version) => version,
    Err(_) => c"",
};

/// The interface version of this library, to be held against MYNAH_ABI_VERSION of the header.
#[unsafe(no_mangle)]
pub extern "C" fn mynah_abi_version() -> u32 {
    MYNAH_ABI_VERSION
}

/// The version of this library in words, such as "0.1.0". The text lives as long as the library.
#[unsafe(no_mangle)]
pub extern "C" fn mynah_version() -> *const c_char {
    VERSION.as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_crate_s() {
        assert_eq!(VERSION.to_str(), Ok(env!("CARGO_PKG_VERSION")));
        assert_eq!(mynah_abi_version(), MYNAH_ABI_VERSION);
    }
}
