//! `mynah tokenize`: text on standard input becomes token ids.

use mynah_models::tokenizer::{ParseSpecial, Tokenizer};
use serde::Serialize;

use crate::error::CliError;
use crate::open::{self, ModelArg};
use crate::output::Output;

/// Turn text on standard input into token ids.
///
/// The text is taken byte for byte, a line break at its end included. No token is added in front.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  printf 'Polly wants a cracker' | mynah tokenize -m smollm2-135m-instruct
  printf '<|im_start|>user' | mynah tokenize -m smollm2-135m-instruct --special --json")]
pub(crate) struct TokenizeArgs {
    #[command(flatten)]
    model: ModelArg,
    /// Read the names of special tokens as those tokens, not as text
    #[arg(long)]
    special: bool,
}

#[derive(Debug, Serialize)]
struct Document {
    ids: Vec<u32>,
}

/// Runs the verb.
pub(crate) fn run(args: &TokenizeArgs, output: Output) -> Result<(), CliError> {
    let tokenizer = Tokenizer::from_gguf(&*open::gguf(&args.model.model)?)?;
    let text = std::io::read_to_string(std::io::stdin().lock()).map_err(|source| CliError::Stdin { source })?;
    let parse = if args.special { ParseSpecial::Yes } else { ParseSpecial::No };
    let document = Document { ids: tokenizer.encode(&text, parse) };
    output.result(&document, || {
        let ids: Vec<String> = document.ids.iter().map(u32::to_string).collect();
        ids.join(" ")
    })
}
