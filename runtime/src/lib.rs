//! An interaction becomes a better adapter.
