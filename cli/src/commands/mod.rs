//! The verbs, one file each.

pub(crate) mod pull;

use crate::error::CliError;
use crate::options::Options;
use crate::output::Output;

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Pull(pull::PullArgs),
}

/// Runs the verb that was asked for.
pub(crate) fn run(command: &Command, options: &Options, output: Output) -> Result<(), CliError> {
    let _ = options;
    match command {
        Command::Pull(args) => pull::run(args, output),
    }
}
