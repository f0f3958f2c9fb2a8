//! The options that every verb takes.

use std::path::PathBuf;

use mynah::store::{StoreKey, StoreOptions};
use mynah_models::Precision;

use crate::error::CliError;

/// Options of every verb.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Options of every verb")]
pub(crate) struct Options {
    /// Print one JSON document, also for an error
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Where to compute
    #[arg(long, global = true, value_enum, default_value_t = DeviceChoice::Cpu)]
    pub(crate) device: DeviceChoice,
    /// How exactly the CPU computes. If not given, `exact` where results are compared (generate, eval, perplexity), else `fast`
    #[arg(long, global = true, value_enum)]
    pub(crate) precision: Option<PrecisionChoice>,
    /// How many threads compute; all cores if not given
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) threads: Option<u16>,
    /// The seed of everything random: the same seed gives the same result
    #[arg(long, global = true, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// The key of an encrypted store: a file of 32 bytes, or of 64 hexadecimal digits. A new store made with it is encrypted
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
}

impl Options {
    /// How stores are opened: with the key, if one was given.
    pub(crate) fn store(&self) -> Result<StoreOptions, CliError> {
        Ok(StoreOptions { key: self.store_key()?, ..StoreOptions::default() })
    }

    /// The key that was given.
    pub(crate) fn store_key(&self) -> Result<Option<StoreKey>, CliError> {
        let Some(path) = &self.key_file else { return Ok(None) };
        let bytes = std::fs::read(path).map_err(|source| CliError::Read { path: path.clone(), source })?;
        let key = key_in(&bytes).ok_or_else(|| CliError::KeyFile { path: path.clone(), bytes: bytes.len() })?;
        Ok(Some(StoreKey::new(key)))
    }

    /// Starts as many threads as were asked for, before anything computes.
    pub(crate) fn start_threads(&self) -> Result<(), CliError> {
        let Some(threads) = self.threads else { return Ok(()) };
        rayon::ThreadPoolBuilder::new()
            .num_threads(usize::from(threads))
            .build_global()
            .map_err(|source| CliError::Threads { threads, source })
    }
}

/// The devices that a model can be put on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DeviceChoice {
    Cpu,
    Gpu,
}

/// How exactly a model computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum PrecisionChoice {
    /// f32 on the weights as they are
    Exact,
    /// bf16 and 8 bits where the processor has instructions for them
    Fast,
}

impl From<PrecisionChoice> for Precision {
    fn from(choice: PrecisionChoice) -> Self {
        match choice {
            PrecisionChoice::Exact => Self::Exact,
            PrecisionChoice::Fast => Self::Fast,
        }
    }
}

/// The 32 bytes of a key file, as they are or as hexadecimal digits with a line end or without.
fn key_in(bytes: &[u8]) -> Option<[u8; 32]> {
    if let Ok(key) = bytes.try_into() {
        return Some(key);
    }
    let text = std::str::from_utf8(bytes).ok()?.trim_end();
    let is_hex = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut key = [0; 32];
    for (at, byte) in key.iter_mut().enumerate() {
        *byte = is_hex.then(|| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()).flatten()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_32_bytes_or_64_digits() {
        assert_eq!(key_in(&[7; 32]), Some([7; 32]));
        assert_eq!(key_in(format!("{}\n", "0a".repeat(32)).as_bytes()), Some([10; 32]));
        assert_eq!(key_in(&[7; 31]), None);
        assert_eq!(key_in("0g".repeat(32).as_bytes()), None);
    }
}
