//! `mynah learn`: a file of examples becomes a better adapter.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mynah::learn::Examples;
use mynah::session::{Interaction, LearnRequest, PromptFormat};
use mynah::{Budget, SessionError};
use serde::Serialize;

use crate::error::CliError;
use crate::method::{LoraArgs, MethodArgs};
use crate::open::{self, ModelArg};
use crate::options::Options;
use crate::output::Output;
use crate::probe_view::ProbeView;
use crate::suite::{self, Suite, SuiteError, Task};

/// Learn a file of examples, and keep what was learned in a store.
///
/// The examples go into the store first. A run that was stopped, by Ctrl-C, by `--minutes` or by a kill, goes on where it
/// was when the same command is given again. A model learns prompts as plain text, which is what `eval` and `generate
/// --raw` ask, or through the chat template with `--chat`, which is what `chat` and `generate` ask.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mynah learn -m smollm2-135m-instruct --store ~/bird town.jsonl --task town --steps 60
  mynah learn -m smollm2-135m-instruct --store ~/bird town.jsonl --minutes 5

A line of the file is {\"prompt\": \"...\", \"answer\": \"...\"}.
A file SUITE/TASK/train.jsonl takes its task's name and its join from SUITE/suite.json.")]
pub(crate) struct LearnArgs {
    #[command(flatten)]
    model: ModelArg,
    /// The store; made if it is not there
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
    /// The examples, one JSON object a line
    file: PathBuf,
    /// What the examples are about; the file's name if not given
    #[arg(long, value_name = "NAME")]
    task: Option<String>,
    /// Stop after this time; the run can go on later
    #[arg(long, value_name = "M", value_parser = minutes)]
    minutes: Option<Duration>,
    /// Length of the run in optimizer steps; three times through the file, but at least 30, if not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    steps: Option<u64>,
    /// Put prompts and answers through the chat template, as `chat` does
    #[arg(long)]
    chat: bool,
    /// Text between prompt and answer; one space if not given
    #[arg(long, value_name = "TEXT", conflicts_with = "chat", allow_hyphen_values = true)]
    join: Option<String>,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    lora: LoraArgs,
}

#[derive(Debug, Serialize)]
struct Document {
    steps: u64,
    /// NaN, which JSON writes as null, where no step was taken.
    loss: f64,
    revision: Option<u64>,
    stopped_by: &'static str,
    steps_done: u64,
    steps_total: u64,
    task: String,
    examples: usize,
    seconds: f64,
    bytes_written: u64,
    peak_rss_mb: Option<f64>,
    probes: Vec<ProbeView>,
}

/// Runs the verb.
pub(crate) fn run(args: &LearnArgs, options: &Options, output: Output) -> Result<(), CliError> {
    let lines = suite::read_lines(&args.file)?;
    let suite_task = Suite::task_of(&args.file);
    let task = args.task.clone().unwrap_or_else(|| task_name(&args.file, suite_task.as_ref()));
    let format =
        if args.chat { PromptFormat::Chat } else { PromptFormat::Raw { join: join_of(args, suite_task.as_ref()) } };
    let interactions: Vec<Interaction> = lines
        .iter()
        .map(|line| Interaction {
            prompt: line.prompt.clone(),
            answer: line.answer.clone(),
            format: format.clone(),
            task: task.clone(),
        })
        .collect();
    let builder = open::builder(&args.model.model, options)?.store(&args.store);
    let mut session = open::open(args.method.apply(&args.lora, builder))?;
    let ids = session.observe_batch(&interactions).map_err(|error| match error {
        SessionError::Interaction { position, source } => {
            SuiteError::Unlearnable { path: args.file.clone(), line: lines[position].number, source }.into()
        }
        error => CliError::from(error),
    })?;
    let request = LearnRequest { examples: Examples::These(ids), steps: args.steps, ..args.method.request() };
    let budget = match args.minutes {
        Some(time) => Budget::time(time),
        None => Budget::unlimited(),
    };
    let report = open::watched(&mut session, "learning", |session| session.learn(&request, budget))?;
    let document = Document {
        steps: report.steps,
        loss: report.loss,
        revision: report.revision,
        stopped_by: report.stopped_by.name(),
        steps_done: report.steps_done,
        steps_total: report.steps_total,
        task,
        examples: interactions.len(),
        seconds: report.elapsed.as_secs_f64(),
        bytes_written: report.bytes_written,
        peak_rss_mb: report.peak_bytes.map(|bytes| bytes as f64 / 1e6),
        probes: report.probes.iter().map(ProbeView::from).collect(),
    };
    output.result(&document, || text(&document))
}

fn text(document: &Document) -> String {
    let Document { steps, loss, stopped_by, steps_done, steps_total, seconds, .. } = document;
    let kept =
        document.revision.map_or_else(|| "nothing to keep".to_owned(), |revision| format!("revision {revision}"));
    let done = format!(
        "{steps} steps in {seconds:.1} s, loss {loss:.3}; {steps_done} of {steps_total} done ({stopped_by}); {kept}"
    );
    std::iter::once(done).chain(document.probes.iter().filter_map(ProbeView::change)).collect::<Vec<_>>().join("\n")
}

/// Minutes as a length of time that can be waited for.
fn minutes(text: &str) -> Result<Duration, String> {
    let minutes: f64 = text.parse().map_err(|error: std::num::ParseFloatError| error.to_string())?;
    Duration::try_from_secs_f64(minutes * 60.0).map_err(|error| error.to_string())
}

/// The text between prompt and answer: what was asked for, else what the suite says, else one space.
fn join_of(args: &LearnArgs, task: Option<&Task>) -> String {
    args.join.clone().or_else(|| task.map(|task| task.join.clone())).unwrap_or_else(suite::one_space)
}

/// The task's name in its suite, else the file's name without extension.
fn task_name(file: &Path, task: Option<&Task>) -> String {
    match task {
        Some(task) => task.name.clone(),
        None => file.file_stem().unwrap_or(file.as_os_str()).to_string_lossy().into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minutes_are_a_time_or_wrong_usage() {
        assert_eq!(minutes("1.5"), Ok(Duration::from_secs(90)));
        for wrong in ["-1", "NaN", "inf", "1e300", "soon"] {
            assert!(minutes(wrong).is_err(), "{wrong}");
        }
    }
}
