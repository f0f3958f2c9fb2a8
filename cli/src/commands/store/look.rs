//! What is in a store: `stat`, `list`, `verify`.

use std::path::Path;
use std::process::ExitCode;

use mynah::checkpoint::{RevisionInfo, RevisionKind};
use mynah::example::ExampleId;
use mynah::replay::SegmentState;
use mynah::store::{Store, StoreError};
use serde::Serialize;

use super::receipt::{self, ReceiptView};
use super::tokenizer_of;
use crate::error::CliError;
use crate::model_cache::hex;
use crate::options::Options;
use crate::output::{Output, bytes_text, table};
use crate::probe_view::ProbeView;

#[derive(Debug, Serialize)]
struct Stat {
    records: u64,
    bytes: u64,
    tokens: u64,
    revisions: u64,
    newest_revision: Option<u64>,
    tasks: Vec<TaskStat>,
    log_bytes: u64,
    revision_bytes: u64,
    /// None while there are no tokens.
    log_bytes_per_token: Option<f64>,
    segments: Segments,
    receipts: Vec<ReceiptView>,
    probes: Vec<ProbeView>,
    base_sha256: String,
    created_unix_s: u64,
}

/// The pieces that the log is written in.
#[derive(Debug, Default, Serialize)]
struct Segments {
    /// That hold something, and what of it belongs to live records, about.
    used: u32,
    used_bytes: u64,
    live_bytes: u64,
    free: u32,
    /// How often the one was erased that was erased least or most.
    fewest_erases: u32,
    most_erases: u32,
}

impl Segments {
    fn of(store: &Store) -> Self {
        let all = store.replay.segments();
        let erases = || store.replay.segments().map(|segment| segment.erases);
        let counts = Self {
            fewest_erases: erases().min().unwrap_or(0),
            most_erases: erases().max().unwrap_or(0),
            ..Self::default()
        };
        all.fold(counts, |mut sum, segment| {
            match segment.state {
                SegmentState::Used => sum.used += 1,
                _ => sum.free += 1,
            }
            sum.used_bytes += u64::from(segment.used_bytes);
            sum.live_bytes += u64::from(segment.live_bytes);
            sum
        })
    }
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
    /// How little the model expected it when it was stored, in nats a token; none if that was not asked for.
    score: Option<f32>,
    /// How often it was replayed up to the last compaction; none if its frame cannot be read.
    replays: Option<u32>,
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

pub(super) fn stat(folder: &Path, options: &Options, output: Output) -> Result<(), CliError> {
    let (store, _) = Store::open_read(folder, options.store()?.key.as_ref())?;
    let stat = store.stat();
    let tasks =
        stat.tasks.iter().map(|task| TaskStat { task: task.task.clone(), records: task.records, tokens: task.tokens });
    let (log_bytes, revision_bytes) = (store.replay.bytes(), store.revisions.bytes());
    let document = Stat {
        log_bytes,
        revision_bytes,
        log_bytes_per_token: (stat.tokens > 0).then(|| log_bytes as f64 / stat.tokens as f64),
        segments: Segments::of(&store),
        receipts: store.receipts().iter().map(ReceiptView::from).collect(),
        probes: store.probes()?.iter().map(ProbeView::from).collect(),
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
        let mut lines = vec![
            format!("{} records, {} tokens; {} in all", document.records, document.tokens, bytes_text(document.bytes)),
            log_text(&document),
            revisions_text(store.revisions.list()),
            table(&["task", "records", "tokens"], &rows),
        ];
        lines.extend(document.probes.iter().map(ProbeView::text));
        let receipts = store.receipts().iter();
        lines.extend(receipts.map(|receipt| format!("receipt {}: {}", receipt.number, receipt::text(receipt))));
        lines.join("\n")
    })
}

fn log_text(document: &Stat) -> String {
    let Segments { used, free, used_bytes, live_bytes, fewest_erases, most_erases } = &document.segments;
    let per_token =
        document.log_bytes_per_token.map_or_else(String::new, |bytes| format!(", {bytes:.2} bytes per token"));
    format!(
        "log: {}{per_token}; {used} segments used, {free} free, {}% of what is used is live, erased {fewest_erases} to \
         {most_erases} times",
        bytes_text(document.log_bytes),
        (100 * live_bytes).checked_div(*used_bytes).unwrap_or(100).min(100),
    )
}

fn revisions_text(revisions: &[RevisionInfo]) -> String {
    let revision = |info: &RevisionInfo| format!("{} {} {}", info.number, kind(info.kind), bytes_text(info.bytes));
    match revisions.len() {
        0 => "revisions: none".to_owned(),
        _ => format!("revisions: {}", revisions.iter().map(revision).collect::<Vec<_>>().join(", ")),
    }
}

pub(super) fn list(folder: &Path, model: Option<&str>, options: &Options, output: Output) -> Result<(), CliError> {
    let (mut store, _) = Store::open_read(folder, options.store()?.key.as_ref())?;
    let tokenizer = model.map(|model| tokenizer_of(&store, folder, model)).transpose()?;
    let mut records: Vec<Record> = store
        .replay
        .iter()
        .map(|info| Record {
            id: info.id,
            task: info.task.to_owned(),
            tokens: info.tokens,
            score: info.score,
            replays: None,
            prompt: None,
            answer: None,
        })
        .collect();
    for record in &mut records {
        record.replays = store.replay.replays(record.id).ok();
    }
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
pub(super) fn verify(folder: &Path, options: &Options, output: Output) -> Result<ExitCode, CliError> {
    let (mut store, _) = Store::open_read(folder, options.store()?.key.as_ref())?;
    let verification = store.verify()?;
    let document = Verification { ok: verification.is_ok(), problems: verification.problems() };
    output.result(&document, || {
        let verdict = if document.ok { "sound" } else { "not sound" };
        std::iter::once(verdict.to_owned()).chain(document.problems.iter().cloned()).collect::<Vec<_>>().join("\n")
    })?;
    Ok(if document.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
