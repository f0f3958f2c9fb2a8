//! `mynah store`: look into a store and change it, without the model that it belongs to. Looking is possible while another
//! process writes to it.

mod change;
mod export;
mod look;
pub(crate) mod receipt;
mod time;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use mynah::store::{Store, StoreError};
use mynah_models::tokenizer::Tokenizer;

use crate::error::CliError;
use crate::open;
use crate::options::Options;
use crate::output::Output;

/// Look into a store, and change what is in it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mynah store stat ~/bird
  mynah store list ~/bird -m smollm2-135m-instruct
  mynah store verify ~/bird --json
  mynah store forget ~/bird 12 13
  mynah store forget ~/bird --before 2026-01-01
  mynah store rollback ~/bird 7
  mynah store export ~/bird --out bird.jsonl -m smollm2-135m-instruct")]
pub(crate) struct StoreArgs {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Debug, clap::Subcommand)]
enum StoreCommand {
    /// How much is in it, and what was asked to be forgotten
    Stat {
        /// The store
        folder: PathBuf,
    },
    /// Every record, oldest first, and every revision
    List {
        /// The store
        folder: PathBuf,
        /// The store's model, to show the records as text: a GGUF file, or a name that `pull` knows
        #[arg(short, long, value_name = "MODEL")]
        model: Option<String>,
    },
    /// Read every byte and compare the checksums; what is unsound ends with exit code 1
    Verify {
        /// The store
        folder: PathBuf,
    },
    /// Write the log anew where much of it was removed
    Compact {
        /// The store
        folder: PathBuf,
        /// All of it, however little was removed
        #[arg(long)]
        all: bool,
    },
    /// Forget records: erase them and every revision that learned from them
    ///
    /// What those revisions had learned from other records is learned again by the next run. A receipt says what is done and
    /// what is pending; `stat` shows it.
    #[command(group = clap::ArgGroup::new("what").required(true).multiple(false))]
    Forget {
        /// The store
        folder: PathBuf,
        /// The records, as `list` numbers them
        #[arg(value_name = "ID", group = "what", value_parser = clap::value_parser!(u64))]
        ids: Vec<u64>,
        /// All records of this task
        #[arg(long, value_name = "NAME", group = "what")]
        task: Option<String>,
        /// All records from before this time (UTC): 2026-01-31, 2026-01-31T12:00:00Z, or seconds since 1970
        #[arg(long, value_name = "TIME", group = "what", value_parser = time::parse)]
        before: Option<u64>,
    },
    /// Go back to an earlier revision, as a new one; what was learned since counts as not yet learned
    Rollback {
        /// The store
        folder: PathBuf,
        /// The revision, as `list` numbers it; 0 is before anything was learned, and needs -m
        revision: u64,
        /// The store's model
        #[arg(short, long, value_name = "MODEL")]
        model: Option<String>,
    },
    /// Write the records into a file, one JSON object a line, oldest first
    ///
    /// As text, an answer begins with what joined it to its prompt, so that `learn --join ""` learns the same tokens again.
    /// What was taught in a chat holds the text of the template's control tokens, which `learn` takes as text.
    Export {
        /// The store
        folder: PathBuf,
        /// The file; it must not be there
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// The store's model, to write text, which `learn` takes; token ids if not given
        #[arg(short, long, value_name = "MODEL")]
        model: Option<String>,
    },
    /// Delete the store: everything taught, everything learned
    Wipe {
        /// The store
        folder: PathBuf,
        /// Yes, all of it
        #[arg(long, required = true)]
        yes: bool,
    },
}

/// Runs the verb.
pub(crate) fn run(args: &StoreArgs, options: &Options, output: Output) -> Result<ExitCode, CliError> {
    match &args.command {
        StoreCommand::Stat { folder } => look::stat(folder, options, output)?,
        StoreCommand::List { folder, model } => look::list(folder, model.as_deref(), options, output)?,
        StoreCommand::Verify { folder } => return look::verify(folder, options, output),
        StoreCommand::Compact { folder, all } => change::compact(folder, *all, options, output)?,
        StoreCommand::Forget { folder, ids, task, before } => {
            change::forget(folder, &change::request(ids, task.as_deref(), *before), options, output)?;
        }
        StoreCommand::Rollback { folder, revision, model } => {
            change::rollback(folder, *revision, model.as_deref(), options, output)?;
        }
        StoreCommand::Export { folder, out, model } => export::export(folder, out, model.as_deref(), options, output)?,
        StoreCommand::Wipe { folder, yes: _ } => change::wipe(folder, output)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The tokenizer of the model, if it is the store's: another one would spell nonsense.
fn tokenizer_of(store: &Store, folder: &Path, model: &str) -> Result<Tokenizer, CliError> {
    let tokenizer = Tokenizer::from_gguf(&*open::gguf(model)?)?;
    let (expected, found) = (tokenizer.digest(), store.identity().tokenizer_digest);
    if expected == found {
        Ok(tokenizer)
    } else {
        Err(StoreError::OtherTokenizer { path: folder.to_owned(), expected, found }.into())
    }
}

/// Seconds since 1970; 0 on a clock before that.
fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
