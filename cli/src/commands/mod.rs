//! The verbs, one file each.

mod adapter;
mod bench;
mod chat;
mod demo;
mod eval;
mod generate;
mod learn;
mod perplexity;
pub(crate) mod pull;
mod store;
mod tokenize;

use std::process::ExitCode;

use crate::error::CliError;
use crate::options::Options;
use crate::output::Output;

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Demo(demo::DemoArgs),
    Pull(pull::PullArgs),
    Generate(generate::GenerateArgs),
    Tokenize(tokenize::TokenizeArgs),
    Perplexity(perplexity::PerplexityArgs),
    Chat(chat::ChatArgs),
    Learn(learn::LearnArgs),
    Eval(eval::EvalArgs),
    Store(store::StoreArgs),
    Adapter(adapter::AdapterArgs),
    Bench(bench::BenchArgs),
}

/// Runs the verb that was asked for.
pub(crate) fn run(command: &Command, options: &Options, output: Output) -> Result<ExitCode, CliError> {
    match command {
        Command::Demo(args) => demo::run(args, options, output)?,
        Command::Pull(args) => pull::run(args, output)?,
        Command::Generate(args) => generate::run(args, options, output)?,
        Command::Tokenize(args) => tokenize::run(args, output)?,
        Command::Perplexity(args) => perplexity::run(args, options, output)?,
        Command::Chat(args) => chat::run(args, options, output)?,
        Command::Learn(args) => learn::run(args, options, output)?,
        Command::Eval(args) => eval::run(args, options, output)?,
        Command::Store(args) => return store::run(args, options, output),
        Command::Adapter(args) => adapter::run(args, options, output)?,
        Command::Bench(args) => bench::run(args, options, output)?,
    }
    Ok(ExitCode::SUCCESS)
}
