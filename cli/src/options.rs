//! The options that every verb takes.

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
}

impl Options {
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
