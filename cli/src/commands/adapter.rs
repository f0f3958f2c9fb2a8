//! `mynah adapter`: adapters out of a store and into one, as folders that PEFT loads.

use std::path::PathBuf;

use mynah_models::Precision;
use mynah_models::adapter::inspect_peft;
use serde::Serialize;

use crate::error::CliError;
use crate::open::{self, LearnerChoice, ModelArg};
use crate::options::Options;
use crate::output::{Output, bytes_text};
use crate::progress::note;

/// Move adapters between a store and PEFT folders.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mynah adapter export -m smollm2-135m-instruct --store ~/bird bird-adapter
  mynah adapter import -m smollm2-135m-instruct --store ~/other bird-adapter
  mynah adapter inspect bird-adapter")]
pub(crate) struct AdapterArgs {
    #[command(subcommand)]
    command: AdapterCommand,
}

#[derive(Debug, clap::Subcommand)]
enum AdapterCommand {
    /// Write a learner's adapter as a PEFT folder, with the digest of its base model
    Export {
        #[command(flatten)]
        place: Place,
        /// Which learner's
        #[arg(long, value_enum, default_value = "slow")]
        learner: LearnerChoice,
        /// The folder to write
        folder: PathBuf,
    },
    /// Make a PEFT folder's adapter the one that a store serves and goes on from
    Import {
        #[command(flatten)]
        place: Place,
        /// The folder to read
        folder: PathBuf,
    },
    /// Say what is in a PEFT folder
    Inspect {
        /// The folder to read
        folder: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct Place {
    #[command(flatten)]
    model: ModelArg,
    /// The store
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
}

#[derive(Debug, Serialize)]
struct Exported<'a> {
    folder: &'a PathBuf,
    learner: &'static str,
    revision: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Imported {
    revision: Option<u64>,
    base_is_known: bool,
}

#[derive(Debug, Serialize)]
struct Inspected {
    rank: usize,
    alpha: f32,
    use_rslora: bool,
    target_modules: Vec<&'static str>,
    base_model: Option<String>,
    base_sha256: Option<String>,
    tensors: usize,
    values: u64,
    bytes: u64,
}

/// Runs the verb.
pub(crate) fn run(args: &AdapterArgs, options: &Options, output: Output) -> Result<(), CliError> {
    match &args.command {
        AdapterCommand::Export { place, learner, folder } => export(place, *learner, folder, options, output),
        AdapterCommand::Import { place, folder } => import(place, folder, options, output),
        AdapterCommand::Inspect { folder } => inspect(folder, output),
    }
}

fn export(
    place: &Place,
    learner: LearnerChoice,
    folder: &PathBuf,
    options: &Options,
    output: Output,
) -> Result<(), CliError> {
    let session = open::open_to_read(&place.model.model, Some(&place.store), Precision::Fast, options)?;
    session.export_adapter(folder, learner.into())?;
    let learner = match learner {
        LearnerChoice::Slow => "slow",
        LearnerChoice::Fast => "fast",
    };
    let document = Exported { folder, learner, revision: session.status().revision };
    output.result(&document, || format!("the {learner} learner's adapter is in {}", folder.display()))
}

fn import(place: &Place, folder: &std::path::Path, options: &Options, output: Output) -> Result<(), CliError> {
    let mut session = open::open(open::builder(&place.model.model, options)?.store(&place.store))?;
    let base_is_known = session.import_adapter(folder)?;
    if !base_is_known {
        note("the folder does not say which model it was made for; only its shapes were compared");
    }
    let document = Imported { revision: session.status().revision, base_is_known };
    output.result(&document, || format!("{} serves the adapter of {}", place.store.display(), folder.display()))
}

fn inspect(folder: &std::path::Path, output: Output) -> Result<(), CliError> {
    let summary = inspect_peft(folder)?;
    let document = Inspected {
        rank: summary.config.rank,
        alpha: summary.config.alpha,
        use_rslora: summary.config.use_rslora,
        target_modules: summary.config.target_modules.iter().map(|projection| projection.name()).collect(),
        base_model: summary.base_model,
        base_sha256: summary.base_sha256,
        tensors: summary.tensors,
        values: summary.values,
        bytes: summary.bytes,
    };
    output.result(&document, || {
        let unknown = || "unknown".to_owned();
        format!(
            "rank {}, alpha {}{}, on {}\n{} values in {} tensors, {}\nbase {}, sha256 {}",
            document.rank,
            document.alpha,
            if document.use_rslora { " (rslora)" } else { "" },
            document.target_modules.join(" "),
            document.values,
            document.tensors,
            bytes_text(document.bytes),
            document.base_model.clone().unwrap_or_else(unknown),
            document.base_sha256.clone().unwrap_or_else(unknown),
        )
    })
}
