//! Checks a folder.

fn main() {}
