//! `mynah eval`: what is still known of a suite.

use std::collections::BTreeMap;
use std::path::PathBuf;

use mynah::Session;
use mynah::generate::GenerateOptions;
use mynah::session::{EvalTask, Interaction, PromptFormat};
use mynah_models::Precision;
use mynah_models::tokenizer::ParseSpecial;
use serde::Serialize;

use crate::error::CliError;
use crate::interrupt;
use crate::open::{self, LearnerChoice, ModelArg};
use crate::options::Options;
use crate::output::{Output, table};
use crate::progress::Progress;
use crate::suite::{Line, Metric, Split, Suite, Task};

/// Tokens that an answer may have where its text is scored, beyond those of the answer that is wanted.
const SPARE_TOKENS: usize = 16;

/// Answer the questions of a suite and score them.
///
/// Decoding is greedy. A task with the metric `accuracy` counts the answers that are exactly right up to the end token;
/// `number` and `rouge-l` score the text.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mynah eval -m smollm2-135m-instruct --store ~/bird suites/assistant10
  mynah eval -m smollm2-135m-instruct suites/assistant10 --task banking --limit 50 --json")]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    model: ModelArg,
    /// The store; without it, the bare model answers
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// The suite's folder
    suite: PathBuf,
    /// Which learner of the store answers
    #[arg(long, value_enum, default_value = "slow")]
    learner: LearnerChoice,
    /// Which questions
    #[arg(long, value_enum, default_value = "test")]
    split: Split,
    /// Only this task; may be given several times
    #[arg(long, value_name = "NAME")]
    task: Vec<String>,
    /// Only the first N questions of each task
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
}

#[derive(Debug, Serialize)]
struct Document {
    tasks: BTreeMap<String, f64>,
    mean: f64,
    questions: BTreeMap<String, usize>,
    suite: String,
}

/// Runs the verb.
pub(crate) fn run(args: &EvalArgs, options: &Options, output: Output) -> Result<(), CliError> {
    let suite = Suite::open(&args.suite)?;
    let questions = questions(&suite, args)?;
    let mut session = open::open_to_read(&args.model.model, args.store.as_deref(), Precision::Exact, options)?;
    let mut rows = Vec::new();
    let mut document =
        Document { tasks: BTreeMap::new(), mean: 0.0, questions: BTreeMap::new(), suite: suite.name.clone() };
    for (task, lines) in questions {
        let score = score(&mut session, task, &lines, args.learner)?;
        rows.push(vec![task.name.clone(), format!("{score:.3}"), lines.len().to_string()]);
        document.tasks.insert(task.name.clone(), score);
        document.questions.insert(task.name.clone(), lines.len());
    }
    document.mean = document.tasks.values().sum::<f64>() / document.tasks.len() as f64;
    rows.push(vec!["mean".to_owned(), format!("{:.3}", document.mean), String::new()]);
    output.result(&document, || table(&["task", "score", "questions"], &rows))
}

/// The tasks that were asked for, read before anything is computed: a bad line stops a long evaluation at its start.
fn questions<'a>(suite: &'a Suite, args: &EvalArgs) -> Result<Vec<(&'a Task, Vec<Line>)>, CliError> {
    if let Some(unknown) = args.task.iter().find(|name| suite.tasks.iter().all(|task| task.name != **name)) {
        let known = suite.tasks.iter().map(|task| task.name.clone()).collect();
        return Err(CliError::UnknownTask { task: unknown.clone(), suite: suite.name.clone(), known });
    }
    let asked = suite.tasks.iter().filter(|task| args.task.is_empty() || args.task.contains(&task.name));
    asked
        .map(|task| {
            let mut lines = task.read(args.split)?;
            lines.truncate(args.limit.map_or(usize::MAX, |limit| limit as usize));
            Ok((task, lines))
        })
        .collect()
}

/// Mean score of one task, in `[0, 1]`.
fn score(session: &mut Session, task: &Task, lines: &[Line], learner: LearnerChoice) -> Result<f64, CliError> {
    match task.metric {
        Metric::Accuracy => exact(session, task, lines, learner),
        Metric::Number | Metric::RougeL => by_text(session, task, lines, learner),
    }
}

fn exact(session: &mut Session, task: &Task, lines: &[Line], learner: LearnerChoice) -> Result<f64, CliError> {
    let item = |line: &Line| Interaction {
        prompt: line.prompt.clone(),
        answer: line.answer.clone(),
        format: PromptFormat::Raw { join: task.join.clone() },
        task: task.name.clone(),
    };
    let eval_task = EvalTask { name: task.name.clone(), items: lines.iter().map(item).collect() };
    let report = open::watched(session, &task.name, |session| session.eval(&[eval_task], learner.into()))?;
    Ok(report.mean())
}

fn by_text(session: &mut Session, task: &Task, lines: &[Line], learner: LearnerChoice) -> Result<f64, CliError> {
    session.serve(learner.into());
    let progress = Progress::counted(&task.name, lines.len() as u64);
    let mut sum = 0.0;
    for (done, line) in lines.iter().enumerate() {
        let wanted = session.tokenizer().encode(&line.answer, ParseSpecial::No).len();
        let options = GenerateOptions { max_new_tokens: wanted + SPARE_TOKENS, ..GenerateOptions::default() };
        let generation = session.generate(&line.prompt, &options, &mut |_| true)?;
        if interrupt::asked() {
            return Err(CliError::Cancelled);
        }
        sum += task.metric.score(&generation.text, &line.answer);
        progress.set(done as u64 + 1);
    }
    progress.clear();
    Ok(sum / lines.len() as f64)
}
