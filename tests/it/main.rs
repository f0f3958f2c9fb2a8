//! Black-box tests of the whole, in one binary: what takes long is linking burn.

mod ffi;
mod methods;
mod session;
