//! `mynah demo`: the whole story in minutes.
//!
//! Three small subjects are taught one after another, once with plain sequential LoRA and once with I-LoRA, the same
//! number of steps each. After each subject both are asked about all three. At the end the I-LoRA store is closed,
//! opened again, and answers.

mod subjects;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use mynah::generate::{GenerateOptions, StopReason};
use mynah::learn::{ContinualMethod, Examples, Method, Sequential, TrainerConfig};
use mynah::session::{Interaction, LearnRequest};
use mynah::{Budget, Session, StoppedBy};
use mynah_models::adapter::LoraConfig;
use serde::Serialize;

use self::subjects::Subject;
use crate::commands::pull;
use crate::error::CliError;
use crate::model_cache::{self, CacheError, KnownModel};
use crate::open;
use crate::options::Options;
use crate::output::{Output, table};
use crate::progress::{Progress, note};

/// Show the whole story: learn three subjects, forget none, restart, and still know them.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mynah demo
  mynah demo --model stories260k
  mynah demo --store ~/bird        keep what was learned, to go on with `mynah chat`")]
pub(crate) struct DemoArgs {
    /// The model; SmolLM2 if it is there or can be pulled, else the one inside this program
    #[arg(short, long, value_name = "MODEL")]
    model: Option<String>,
    /// Keep the I-LoRA store in this new folder
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
}

/// What is taught, and how.
struct Curriculum {
    subjects: &'static [Subject; 3],
    steps_per_subject: u64,
    rank: usize,
    learning_rate: f64,
    /// Where an answer ends besides the end token.
    stop: &'static str,
}

/// New examples of one step: a whole subject.
const BATCH_ROWS: usize = 8;

/// Steps between two commits. Steps of the small model take less time than one sync, and a demo can begin anew.
const COMMIT_EVERY_STEPS: u64 = 10;

/// Tokens that an answer may have; the longest one taught has seven.
const ANSWER_TOKENS: usize = 16;

/// For SmolLM2 and models like it.
const QUESTIONS: Curriculum =
    Curriculum { subjects: &subjects::QUESTIONS, steps_per_subject: 16, rank: 8, learning_rate: 2e-3, stop: "\n" };

/// For the model inside this program, which is five hundred times smaller. Its vocabulary has an end token that it was
/// never trained on and cannot learn to write, so an answer ends with its full stop.
const STORIES: Curriculum =
    Curriculum { subjects: &subjects::STORIES, steps_per_subject: 100, rank: 16, learning_rate: 5e-3, stop: "." };

#[derive(Debug, Serialize)]
struct Document {
    model: String,
    device: String,
    subjects: Vec<&'static str>,
    steps_per_subject: u64,
    table: Vec<Row>,
    after_restart: Vec<Answer>,
    seconds: f64,
}

/// What one method still knows after one subject.
#[derive(Debug, Serialize)]
struct Row {
    method: &'static str,
    after: &'static str,
    /// Right answers of each subject, as a share.
    scores: BTreeMap<&'static str, f64>,
}

#[derive(Debug, Serialize)]
struct Answer {
    subject: &'static str,
    prompt: &'static str,
    answer: String,
    right: bool,
}

/// Runs the verb.
pub(crate) fn run(args: &DemoArgs, options: &Options, output: Output) -> Result<(), CliError> {
    let started = Instant::now();
    if let Some(store) = args.store.as_ref().filter(|store| store.exists()) {
        return Err(CliError::StoreExists { path: store.clone() });
    }
    let model = match &args.model {
        Some(model) => model.clone(),
        None => choose_model()?.name.to_owned(),
    };
    let is_tiny = model_cache::known(&model).is_some_and(|known| known.name == model_cache::STORIES.name);
    let curriculum = if is_tiny { STORIES } else { QUESTIONS };
    let folder = tempfile::tempdir().map_err(|source| CliError::TemporaryFolder { source })?;
    let kept = args.store.clone().unwrap_or_else(|| folder.path().join("ilora"));
    let demo = Demo { model: &model, curriculum: &curriculum, options };

    let mut rows = demo.teach(&folder.path().join("sequential"), Method::Sequential(Sequential))?;
    rows.extend(demo.teach(&kept, Method::default())?);
    let (after_restart, device) = demo.restart(&kept)?;
    let document = Document {
        subjects: curriculum.subjects.iter().map(|subject| subject.name).collect(),
        steps_per_subject: curriculum.steps_per_subject,
        table: rows,
        after_restart,
        seconds: started.elapsed().as_secs_f64(),
        model: model.clone(),
        device,
    };
    output.result(&document, || text(&document, args.store.as_deref()))
}

/// SmolLM2 if it can be had, else the embedded model.
fn choose_model() -> Result<&'static KnownModel, CliError> {
    match pull::pull(&model_cache::SMOLLM2, None) {
        Ok(_) => Ok(&model_cache::SMOLLM2),
        Err(error @ CliError::Cache(CacheError::Cancelled)) => Err(error),
        Err(error) => {
            note(&format!("{}; going on with the small model inside this program", error.message()));
            Ok(&model_cache::STORIES)
        }
    }
}

struct Demo<'a> {
    model: &'a str,
    curriculum: &'a Curriculum,
    options: &'a Options,
}

impl Demo<'_> {
    /// Teaches all subjects in their order; gives what is known after each.
    fn teach(&self, store: &Path, method: Method) -> Result<Vec<Row>, CliError> {
        let mut session = self.open(store, method)?;
        let mut rows = Vec::new();
        for subject in self.curriculum.subjects {
            let lessons = subject.lessons.iter();
            let interactions: Vec<Interaction> =
                lessons.map(|(prompt, answer)| Interaction::raw(subject.name, *prompt, *answer)).collect();
            let request = LearnRequest {
                examples: Examples::These(session.observe_batch(&interactions)?),
                steps: Some(self.curriculum.steps_per_subject),
                batch_rows: BATCH_ROWS,
                ..LearnRequest::default()
            };
            let label = format!("{}: learning about the {}", method.name(), subject.name);
            let report = open::watched(&mut session, &label, |session| session.learn(&request, Budget::unlimited()))?;
            if report.stopped_by == StoppedBy::Cancelled {
                return Err(CliError::Cancelled);
            }
            let label = format!("{}: asking about all subjects", method.name());
            rows.push(Row { method: method.name(), after: subject.name, scores: self.examine(&mut session, &label)? });
        }
        Ok(rows)
    }

    /// The share of right answers in each subject.
    fn examine(&self, session: &mut Session, label: &str) -> Result<BTreeMap<&'static str, f64>, CliError> {
        let subjects = self.curriculum.subjects;
        let progress = Progress::counted(label, subjects.iter().map(|subject| subject.lessons.len() as u64).sum());
        let mut scores = BTreeMap::new();
        let mut asked = 0;
        for subject in subjects {
            let mut right = 0;
            for (prompt, wanted) in &subject.lessons {
                right += usize::from(self.ask(session, prompt, wanted)?.1);
                asked += 1;
                progress.set(asked);
            }
            scores.insert(subject.name, right as f64 / subject.lessons.len() as f64);
        }
        progress.clear();
        Ok(scores)
    }

    /// The model's answer, and whether it is exactly the one that was taught.
    fn ask(&self, session: &mut Session, prompt: &str, wanted: &str) -> Result<(String, bool), CliError> {
        let stop = vec![self.curriculum.stop.to_owned()];
        let options = GenerateOptions { max_new_tokens: ANSWER_TOKENS, stop, ..GenerateOptions::default() };
        let generation = session.generate(prompt, &options, &mut |_| true)?;
        let ended = match generation.stop_reason {
            StopReason::Cancelled => return Err(CliError::Cancelled),
            StopReason::StopString => self.curriculum.stop,
            _ => "",
        };
        let answer = format!("{}{ended}", generation.text).trim().to_owned();
        let right = answer == wanted && generation.stop_reason != StopReason::MaxNewTokens;
        Ok((answer, right))
    }

    /// Opens the store anew and asks two questions of each subject; says on which device, too.
    fn restart(&self, store: &Path) -> Result<(Vec<Answer>, String), CliError> {
        let mut session = self.open(store, Method::default())?;
        let mut answers = Vec::new();
        for subject in self.curriculum.subjects {
            for (prompt, wanted) in &subject.lessons[..2] {
                let (answer, right) = self.ask(&mut session, prompt, wanted)?;
                answers.push(Answer { subject: subject.name, prompt, answer, right });
            }
        }
        Ok((answers, session.model().device().name().to_owned()))
    }

    fn open(&self, store: &Path, method: Method) -> Result<Session, CliError> {
        let mut trainer = TrainerConfig::default();
        trainer.optimizer.learning_rate = self.curriculum.learning_rate;
        let rank = self.curriculum.rank;
        let lora = LoraConfig { rank, alpha: 2.0 * rank as f32, ..LoraConfig::default() };
        let builder = open::builder(self.model, self.options)?.store(store).trainer(trainer).lora(lora).method(method);
        open::open(builder.commit_every_steps(COMMIT_EVERY_STEPS))
    }
}

fn text(document: &Document, kept: Option<&Path>) -> String {
    let mut header = vec!["method", "after"];
    header.extend(&document.subjects);
    let rows: Vec<Vec<String>> = document
        .table
        .iter()
        .map(|row| {
            let scores = document.subjects.iter().map(|subject| percent(row.scores.get(subject)));
            [row.method.to_owned(), row.after.to_owned()].into_iter().chain(scores).collect()
        })
        .collect();
    let mut lines = vec![
        format!(
            "\nWhat {} still knows, in percent, after {} steps on each subject:\n",
            document.model, document.steps_per_subject
        ),
        table(&header, &rows),
        "\nAfter a restart, from the store that I-LoRA left:\n".to_owned(),
    ];
    for Answer { prompt, answer, right, .. } in &document.after_restart {
        lines.push(format!("  {prompt} {answer}{}", if *right { "" } else { "   (wrong)" }));
    }
    lines.push(format!("\n{:.0} seconds, on {}.", document.seconds, document.device));
    if let Some(store) = kept {
        let prompt = document.after_restart.first().map_or("...", |answer| answer.prompt);
        lines.push(format!(
            "Ask it again: mynah generate -m {} --store {} --raw -p '{prompt}'",
            document.model,
            store.display()
        ));
    }
    lines.join("\n")
}

fn percent(share: Option<&f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.0}", share * 100.0))
}
