//! Black-box tests of the whole, in one binary: what takes long is linking burn.

mod ffi;
mod fuzz_corpus;
mod golden;
mod methods;
mod precision;
mod resume;
mod session;
