//! What the programs that measure steps of a model have in common.

use std::path::PathBuf;

use crate::model::{self, ModelArgs, PrecisionArgs};
use crate::report::{OutputArgs, Report};

/// Their options.
#[derive(Debug, clap::Args)]
pub struct StepArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// How exactly is computed.
    #[command(flatten)]
    pub precision: PrecisionArgs,
    /// Threads that compute
    #[arg(long, default_value_t = 2)]
    pub threads: usize,
    /// Try the program itself in seconds, on a tiny model
    #[arg(long)]
    pub smoke: bool,
    #[command(flatten)]
    output: OutputArgs,
}

impl StepArgs {
    /// Starts the report of the program `command` and the threads; gives the model's file.
    ///
    /// # Errors
    /// If there is no model, or the system gives no threads.
    pub fn start(&self, command: &'static str) -> anyhow::Result<(Report, PathBuf)> {
        let report = Report::start(command, self.output);
        let file = self.model.file(self.smoke)?;
        model::start_threads(self.threads)?;
        Ok((report, file))
    }
}
