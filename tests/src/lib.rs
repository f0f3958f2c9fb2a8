//! Fixtures and check functions of the black-box tests, and the program `reference` that holds a folder of golden numbers
//! against the runtime.

pub mod fuzz;
pub mod golden;
pub mod reference;
pub mod stories;
pub mod tiny_model;

use std::path::PathBuf;

/// Where `mynah pull` keeps SmolLM2's file; none if the system names no home folder.
pub fn smollm2_path() -> Option<PathBuf> {
    let folder = match std::env::var_os("MYNAH_CACHE") {
        Some(folder) if !folder.is_empty() => PathBuf::from(folder),
        _ => directories::ProjectDirs::from("", "", "mynah")?.cache_dir().join("models"),
    };
    Some(folder.join("SmolLM2-135M-Instruct.Q4_1.gguf"))
}

/// SmolLM2's file, if it was pulled.
pub fn cached_smollm2() -> Option<PathBuf> {
    smollm2_path().filter(|file| file.is_file())
}

/// Says aloud that a test is skipped, or fails it where the environment variable demands that it runs.
///
/// # Panics
/// If `demanded_by` is set to anything but `0`.
pub fn skip(test: &str, reason: &str, demanded_by: &str) {
    let demanded = std::env::var(demanded_by).is_ok_and(|value| value != "0");
    assert!(!demanded, "{test}: {reason}, and {demanded_by} is set");
    eprintln!("SKIPPED {test}: {reason}");
}
