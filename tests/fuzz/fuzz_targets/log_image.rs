#![no_main]

#[path = "../../src/fuzz/mod.rs"]
#[allow(dead_code, unused_imports)] // each target calls one body of several
mod fuzz;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::log_image(data));
