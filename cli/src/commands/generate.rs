//! `mynah generate`: a prompt becomes text, streamed.

use std::path::PathBuf;

use mynah::Session;
use mynah::generate::{GenerateOptions, Generation, Sampling};
use mynah_models::Precision;
use mynah_models::chat_template::Message;
use serde::Serialize;

use crate::error::CliError;
use crate::open::{self, LearnerChoice, ModelArg};
use crate::options::Options;
use crate::output::Output;
use crate::progress::note;

/// Continue a prompt.
///
/// The prompt goes through the model's chat template, unless `--raw` is given or the model has none. With `--store` the
/// adapter that was learned there is used.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mynah generate -m smollm2-135m-instruct -p 'Name three birds that can speak.'
  mynah generate -m stories260k --raw -p 'Once upon a time' -n 50 --temperature 0.8 --seed 7
  mynah generate -m model.gguf --store ~/bird -p 'Which river runs through Brindlewick?' --json")]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    model: ModelArg,
    /// The prompt
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: String,
    /// Take the prompt as it is, without the chat template
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Answer with what was learned in this store
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Which learner of the store answers
    #[arg(long, value_enum, default_value = "slow")]
    learner: LearnerChoice,
}

/// How tokens are chosen, and how many.
#[derive(Debug, clap::Args)]
pub(crate) struct SamplingArgs {
    /// New tokens at most
    #[arg(short = 'n', long = "tokens", value_name = "N", default_value_t = 256)]
    max_new_tokens: usize,
    /// 0 always takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Choose among the K likeliest tokens; 0 means all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Choose among the likeliest tokens that have this probability together
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Leave out tokens less likely than this share of the likeliest one
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// Make recent tokens less likely by this factor
    #[arg(long, value_name = "F", default_value_t = 1.0)]
    repetition_penalty: f32,
    /// End before this text; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
}

impl SamplingArgs {
    /// The same, as the runtime takes it.
    pub(crate) fn options(&self, seed: u64) -> GenerateOptions {
        let sampling = Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed,
            ..Sampling::default()
        };
        GenerateOptions { max_new_tokens: self.max_new_tokens, sampling, stop: self.stop.clone() }
    }
}

#[derive(Debug, Serialize)]
struct Document<'a> {
    ids: &'a [u32],
    text: &'a str,
    stop_reason: &'static str,
    prompt_tokens: usize,
    prefill_seconds: f64,
    decode_seconds: f64,
}

/// Runs the verb.
pub(crate) fn run(args: &GenerateArgs, options: &Options, output: Output) -> Result<(), CliError> {
    let mut session = open::open_to_read(&args.model.model, args.store.as_deref(), Precision::Exact, options)?;
    session.serve(args.learner.into());
    let generate_options = args.sampling.options(options.seed);
    let generation = if args.raw || !has_chat_template(&session) {
        streamed(output, |on_text| Ok(session.generate(&args.prompt, &generate_options, on_text)?))?
    } else {
        let messages = [Message::user(&args.prompt)];
        streamed(output, |on_text| Ok(session.chat(&messages, &generate_options, on_text)?))?
    };
    let document = Document {
        ids: &generation.ids,
        text: &generation.text,
        stop_reason: generation.stop_reason.name(),
        prompt_tokens: generation.prompt_tokens,
        prefill_seconds: generation.prefill_time.as_secs_f64(),
        decode_seconds: generation.decode_time.as_secs_f64(),
    };
    output.line("")?;
    output.document(&document)
}

/// Whether the model says how a conversation is written; a line says so if not.
pub(crate) fn has_chat_template(session: &Session) -> bool {
    let has = session.can_chat();
    if !has {
        note("the model has no chat template: the prompt is taken as it is");
    }
    has
}

/// Generates, each piece of text going to the output as soon as it is there.
pub(crate) fn streamed(
    output: Output,
    generate: impl FnOnce(&mut dyn FnMut(&str) -> bool) -> Result<Generation, CliError>,
) -> Result<Generation, CliError> {
    let mut failed = None;
    let generation = generate(&mut |piece| match output.piece(piece) {
        Ok(()) => true,
        Err(error) => {
            failed = Some(error);
            false
        }
    });
    match failed {
        Some(error) => Err(error),
        None => generation,
    }
}
