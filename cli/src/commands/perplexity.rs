//! `mynah perplexity`: how well the model expects a text.

use std::path::PathBuf;

use mynah_models::Precision;
use serde::Serialize;

use crate::error::CliError;
use crate::open::{self, LearnerChoice, ModelArg};
use crate::options::Options;
use crate::output::Output;

/// Measure the perplexity of a text file.
///
/// The text is cut into windows, each with a fresh context; every token but the first of a window is scored. What is left
/// at the end and fills no window is not scored, unless it is all there is.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  mynah perplexity -m smollm2-135m-instruct book.txt --tokens 512")]
pub(crate) struct PerplexityArgs {
    #[command(flatten)]
    model: ModelArg,
    /// The text, UTF-8
    file: PathBuf,
    /// Tokens of a window
    #[arg(long, value_name = "N", default_value_t = 512)]
    tokens: usize,
    /// Score with what was learned in this store
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Which learner of the store is scored
    #[arg(long, value_enum, default_value = "slow")]
    learner: LearnerChoice,
}

#[derive(Debug, Serialize)]
struct Document {
    perplexity: f64,
    scored: usize,
}

/// Runs the verb.
pub(crate) fn run(args: &PerplexityArgs, options: &Options, output: Output) -> Result<(), CliError> {
    let text =
        std::fs::read_to_string(&args.file).map_err(|source| CliError::Read { path: args.file.clone(), source })?;
    let mut session = open::open_to_read(&args.model.model, args.store.as_deref(), Precision::Exact, options)?;
    let measured = open::watched(&mut session, "perplexity", |session| {
        session.perplexity(&text, args.tokens, args.learner.into())
    })?;
    let document = Document { perplexity: measured.perplexity, scored: measured.scored };
    output.result(&document, || format!("perplexity {:.4} over {} tokens", document.perplexity, document.scored))
}
