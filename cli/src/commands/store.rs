//! `mynah store`: look into a store without the model that it belongs to, also while another process writes to it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use mynah::checkpoint::RevisionKind;
use mynah::example::ExampleId;
use mynah::store::{Store, StoreError};
use mynah_models::tokenizer::Tokenizer;
use serde::Serialize;

use crate::error::CliError;
use crate::model_cache::hex;
use crate::open;
use crate::output::{Output, bytes_text, table};

/// Look into a store.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mynah store stat ~/bird
  mynah store list ~/bird -m smollm2-135m-instruct
  mynah store verify ~/bird --json")]
pub(crate) struct StoreArgs {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Debug, clap::Subcommand)]
enum StoreCommand {
    /// How much is in it
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
}

#[derive(Debug, Serialize)]
struct Stat {
    records: u64,
    bytes: u64,
    tokens: u64,
    revisions: u64,
    newest_revision: Option<u64>,
    tasks: Vec<TaskStat>,
    base_sha256: String,
    created_unix_s: u64,
}

#[derive(Debug, Serialize)]
struct TaskStat {
    task: String,
    records: u64,
    tokens: u64,
}

#[derive(Debug, Serialize)]
struct List {
    records: Vec<Record>,
    revisions: Vec<RevisionEntry>,
}

#[derive(Debug, Serialize)]
struct Record {
    id: ExampleId,
    task: String,
    tokens: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<String>,
}

#[derive(Debug, Serialize)]
struct RevisionEntry {
    number: u64,
    kind: &'static str,
    bytes: u64,
    created_unix_s: u64,
}

#[derive(Debug, Serialize)]
struct Verification {
    ok: bool,
    problems: Vec<String>,
}

/// Runs the verb.
pub(crate) fn run(args: &StoreArgs, output: Output) -> Result<ExitCode, CliError> {
    match &args.command {
        StoreCommand::Stat { folder } => stat(folder, output)?,
        StoreCommand::List { folder, model } => list(folder, model.as_deref(), output)?,
        StoreCommand::Verify { folder } => return verify(folder, output),
    }
    Ok(ExitCode::SUCCESS)
}

fn stat(folder: &Path, output: Output) -> Result<(), CliError> {
    let (store, _) = Store::open_read(folder)?;
    let stat = store.stat();
    let tasks =
        stat.tasks.iter().map(|task| TaskStat { task: task.task.clone(), records: task.records, tokens: task.tokens });
    let document = Stat {
        records: stat.records,
        bytes: stat.bytes,
        tokens: stat.tokens,
        revisions: stat.revisions,
        newest_revision: stat.newest_revision,
        tasks: tasks.collect(),
        base_sha256: hex(&store.identity().base_digest),
        created_unix_s: store.created_unix_s(),
    };
    output.result(&document, || {
        let rows: Vec<Vec<String>> = document
            .tasks
            .iter()
            .map(|task| vec![task.task.clone(), task.records.to_string(), task.tokens.to_string()])
            .collect();
        format!(
            "{} records, {} tokens; {} revisions, the newest {}; {} in all\n{}",
            document.records,
            document.tokens,
            document.revisions,
            document.newest_revision.map_or_else(|| "none".to_owned(), |number| number.to_string()),
            bytes_text(document.bytes),
            table(&["task", "records", "tokens"], &rows),
        )
    })
}

fn list(folder: &Path, model: Option<&str>, output: Output) -> Result<(), CliError> {
    let (mut store, _) = Store::open_read(folder)?;
    let tokenizer = model.map(|model| tokenizer_of(&store, folder, model)).transpose()?;
    let mut records: Vec<Record> = store
        .replay
        .iter()
        .map(|info| Record { id: info.id, task: info.task.to_owned(), tokens: info.tokens, prompt: None, answer: None })
        .collect();
    if let Some(tokenizer) = &tokenizer {
        for record in &mut records {
            let example = store.replay.read(record.id).map_err(StoreError::from)?;
            let end = example.answer().len().saturating_sub(1);
            record.prompt = Some(tokenizer.decode(example.prompt()));
            // The last token of an answer ends it and is no text.
            record.answer = Some(tokenizer.decode(&example.answer()[..end]));
        }
    }
    let revisions = store.revisions.list().iter().map(|info| RevisionEntry {
        number: info.number,
        kind: kind(info.kind),
        bytes: info.bytes,
        created_unix_s: info.created_unix_s,
    });
    let document = List { revisions: revisions.collect(), records };
    output.result(&document, || list_text(&document))
}

fn kind(kind: RevisionKind) -> &'static str {
    match kind {
        RevisionKind::Published => "published",
        _ => "step",
    }
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

fn list_text(document: &List) -> String {
    let one_line = |text: &Option<String>| text.as_deref().unwrap_or_default().replace('\n', "\\n");
    let mut lines: Vec<String> = document
        .records
        .iter()
        .map(|record| {
            let Record { id, task, tokens, .. } = record;
            match &record.prompt {
                Some(_) => {
                    format!("{id}  {task}  {} => {}", one_line(&record.prompt).trim(), one_line(&record.answer).trim())
                }
                None => format!("{id}  {task}  {tokens} tokens"),
            }
        })
        .collect();
    lines.extend(
        document
            .revisions
            .iter()
            .map(|revision| format!("revision {}  {}  {}", revision.number, revision.kind, bytes_text(revision.bytes))),
    );
    if lines.is_empty() { "nothing yet".to_owned() } else { lines.join("\n") }
}

/// Finding damage is what was asked for and no error, but a script must see it.
fn verify(folder: &Path, output: Output) -> Result<ExitCode, CliError> {
    let (mut store, _) = Store::open_read(folder)?;
    let verification = store.verify()?;
    let document = Verification { ok: verification.is_ok(), problems: verification.problems() };
    output.result(&document, || {
        let verdict = if document.ok { "sound" } else { "not sound" };
        std::iter::once(verdict.to_owned()).chain(document.problems.iter().cloned()).collect::<Vec<_>>().join("\n")
    })?;
    Ok(if document.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
