//! `mynah demo`: the whole story in minutes.
//!
//! Three small subjects are taught one after another, once with plain sequential LoRA and once with I-LoRA, the same
//! number of steps each. After each subject both are asked about all three. At the end the I-LoRA store is closed,
//! opened again, and answers.

mod subjects;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use mynah::generate::GenerateOptions;
use mynah::learn::{Method, Sequential};
use mynah::{
    Budget, EvalItem, EvalTask, Examples, Interaction, Learner, LearnRequest, LoraConfig, PromptFormat, Session,
    TrainerConfig,
};
use serde::Serialize;

use self::subjects::Subject;
use crate::commands::pull;
use crate::error::CliError;
use crate::model_cache::{self, KnownModel};
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
    batch_rows: usize,
    rank: usize,
    learning_rate: f64,
}

/// For SmolLM2 and models like it.
const QUESTIONS: Curriculum = Curriculum {
    subjects: &subjects::QUESTIONS,
    steps_per_subject: 24,
    batch_rows: 4,
    rank: 8,
    learning_rate: 2e-3,
};

/// For the model inside this program, which is a thousand times smaller than what one would talk to.
const STORIES: Curriculum = Curriculum {
    subjects: &subjects::STORIES,
    steps_per_subject: 150,
    batch_rows: 8,
    rank: 16,
    learning_rate: 1e-2,
};

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
    let model = match &args.model {
        Some(model) => model.clone(),
        None => choose_model().name.to_owned(),
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
fn choose_model() -> &'static KnownModel {
    match pull::pull(&model_cache::SMOLLM2, None) {
        Ok(_) => &model_cache::SMOLLM2,
        Err(error) => {
            note(&format!("{}; going on with the small model inside this program", error.message()));
            &model_cache::STORIES
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
        let mut session = self.open(store, Some(method))?;
        let mut rows = Vec::new();
        for subject in self.curriculum.subjects {
            let interactions: Vec<Interaction> = subject.lessons.iter().map(|lesson| interaction(subject, lesson)).collect();
            let examples = Examples::These(session.observe_batch(&interactions)?);
            let request = LearnRequest {
                task: Some(subject.name.to_owned()),
                examples,
                steps: Some(self.curriculum.steps_per_subject),
                batch_rows: self.curriculum.batch_rows,
                ..LearnRequest::default()
            };
            let label = format!("{:>10} learns about the {}", method.name(), subject.name);
            let report =
                open::watched(&mut session, &label, |session| session.learn(&request, &Budget::unlimited()))?;
            if report.stopped_by == mynah::StoppedBy::Cancelled {
                return Err(CliError::Cancelled);
            }
            rows.push(Row { method: method.name(), after: subject.name, scores: self.examine(&mut session)? });
        }
        Ok(rows)
    }

    /// The share of right answers in each subject.
    fn examine(&self, session: &mut Session) -> Result<BTreeMap<&'static str, f64>, CliError> {
        let item = |lesson: &(&str, &str)| EvalItem { prompt: lesson.0.to_owned(), answer: lesson.1.to_owned() };
        let tasks: Vec<EvalTask> = self
            .curriculum
            .subjects
            .iter()
            .map(|subject| EvalTask {
                name: subject.name.to_owned(),
                items: subject.lessons.iter().map(item).collect(),
                format: format(),
            })
            .collect();
        let report = open::watched(session, "asking", |session| session.eval(&tasks, Learner::Slow))?;
        Ok(self.curriculum.subjects.iter().zip(report.tasks).map(|(s, t)| (s.name, t.score())).collect())
    }

    /// Opens the store anew and asks a question of each subject; says on which device, too.
    fn restart(&self, store: &Path) -> Result<(Vec<Answer>, String), CliError> {
        let mut session = self.open(store, None)?;
        let progress = Progress::spinner("answering after a restart");
        let options = GenerateOptions { max_new_tokens: 24, ..GenerateOptions::default() };
        let mut answers = Vec::new();
        for subject in self.curriculum.subjects {
            for (prompt, wanted) in &subject.lessons[..2] {
                let generation = session.generate(prompt, &options, &mut |_| true)?;
                let answer = generation.text.trim().to_owned();
                let right = answer == *wanted;
                answers.push(Answer { subject: subject.name, prompt, answer, right });
            }
        }
        progress.clear();
        Ok((answers, session.model().device().name().to_owned()))
    }

    fn open(&self, store: &Path, method: Option<Method>) -> Result<Session, CliError> {
        let mut trainer = TrainerConfig::default();
        trainer.optimizer.learning_rate = self.curriculum.learning_rate;
        let rank = self.curriculum.rank;
        let builder = open::builder(self.model, self.options)?
            .store(store)
            .trainer(trainer)
            .lora(LoraConfig { rank, alpha: 2.0 * rank as f32, ..LoraConfig::default() });
        open::open(match method {
            Some(method) => builder.method(method),
            None => builder,
        })
    }
}

fn format() -> PromptFormat {
    PromptFormat::Raw { join: " ".to_owned() }
}

fn interaction(subject: &Subject, (prompt, answer): &(&str, &str)) -> Interaction {
    Interaction {
        prompt: (*prompt).to_owned(),
        answer: (*answer).to_owned(),
        format: format(),
        task: Some(subject.name.to_owned()),
        source_id: None,
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
        lines.push(format!("Go on with: mynah chat -m {} --store {}", document.model, store.display()));
    }
    lines.join("\n")
}

fn percent(share: Option<&f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.0}", share * 100.0))
}
