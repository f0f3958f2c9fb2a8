//! The `mynah` command: pull, generate, chat, learn, eval and look into a store.
//!
//! Each verb lives in one file under [`commands`]. Results go to standard output, progress and errors to standard error;
//! with `--json` the result, or the error, is one JSON document. Exit codes: 0 done, 1 failed, 2 wrong usage.

mod commands;
mod error;
mod interrupt;
mod method;
mod model_cache;
mod open;
mod options;
mod output;
mod probe_view;
mod progress;
mod suite;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use crate::error::ErrorDocument;
use crate::options::Options;
use crate::output::Output;

/// A small language model that learns on this device from the people it lives with, and does not forget.
#[derive(Debug, Parser)]
#[command(
    name = "mynah",
    version,
    propagate_version = true,
    after_help = "\
Start here:
  mynah demo                                         the whole story, in minutes
  mynah pull smollm2-135m-instruct                   a model to talk to
  mynah chat -m smollm2-135m-instruct --store ~/bird teach it something, and ask again tomorrow"
)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: commands::Command,
}

fn main() -> ExitCode {
    log_to_stderr();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    interrupt::install();
    let output = Output::new(cli.options.json);
    let outcome = cli.options.start_threads().and_then(|()| commands::run(&cli.command, &cli.options, output));
    let error = match outcome {
        Ok(code) => return code,
        Err(error) => error,
    };
    if output.is_json() {
        report(output, &error.document());
    } else {
        eprintln!("{}", error.text());
    }
    ExitCode::FAILURE
}

/// Diagnostics go to standard error, warnings and worse unless RUST_LOG says otherwise.
fn log_to_stderr() {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn"))
        .format(|out, record| writeln!(out, "{}: {}", record.level().as_str().to_lowercase(), record.args()))
        .init();
}

/// Shows help and version as they are, and wrong usage as an error that a program can read too.
fn usage(error: &clap::Error) -> ExitCode {
    let wants_json = std::env::args_os().any(|argument| argument == "--json");
    if error.use_stderr() && wants_json {
        let text = error.to_string();
        let message = text.strip_prefix("error: ").unwrap_or(&text).trim_end().to_owned();
        report(Output::new(true), &ErrorDocument::new("usage", message, None));
        return ExitCode::from(2);
    }
    error.exit()
}

/// Prints an error document; where even that fails, standard error is all that is left.
fn report(output: Output, document: &ErrorDocument) {
    if let Err(error) = output.result(document, String::new) {
        eprintln!("error: {}", error.message());
    }
}
