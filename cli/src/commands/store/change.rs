//! What changes a store: `compact`, `forget`, `rollback`, `wipe`.

use std::path::Path;

use mynah::example::ExampleId;
use mynah::replay::Compact;
use mynah::store::{Forget, Store, StoreError};
use mynah_models::Precision;
use serde::Serialize;

use super::now_unix_s;
use super::receipt::{self, ReceiptView};
use crate::error::CliError;
use crate::open;
use crate::options::Options;
use crate::output::{Output, bytes_text};

#[derive(Debug, Serialize)]
struct Compaction {
    bytes_before: u64,
    bytes_after: u64,
    records_moved: u64,
    segments_freed: u32,
    segments_written: u32,
}

#[derive(Debug, Serialize)]
struct Rollback {
    /// The newest revision now.
    revision: Option<u64>,
    back_to: u64,
}

#[derive(Debug, Serialize)]
struct Wiped {
    wiped: String,
}

/// What is to be forgotten; one of the three is given.
pub(super) fn request(ids: &[u64], task: Option<&str>, before: Option<u64>) -> Forget {
    match (task, before) {
        (Some(task), _) => Forget::Task(task.to_owned()),
        (None, Some(time_unix_s)) => Forget::Before(time_unix_s),
        (None, None) => Forget::Ids(ids.iter().copied().map(ExampleId).collect()),
    }
}

pub(super) fn compact(folder: &Path, all: bool, options: &Options, output: Output) -> Result<(), CliError> {
    let (mut store, _) = Store::open(folder, &options.store()?, now_unix_s())?;
    let what = if all { Compact::All } else { Compact::Wasteful };
    let report = store.replay.compact(what).map_err(StoreError::from)?;
    let document = Compaction {
        bytes_before: report.bytes_before,
        bytes_after: report.bytes_after,
        records_moved: report.records_moved,
        segments_freed: report.segments_freed,
        segments_written: report.segments_written,
    };
    output.result(&document, || match (document.bytes_before, document.bytes_after) {
        (before, after) if after < before => format!("{} now, {} before", bytes_text(after), bytes_text(before)),
        (before, _) => format!("{}, nothing to gain", bytes_text(before)),
    })
}

pub(super) fn forget(folder: &Path, request: &Forget, options: &Options, output: Output) -> Result<(), CliError> {
    let (mut store, _) = Store::open(folder, &options.store()?, now_unix_s())?;
    let receipt = store.forget(request, now_unix_s())?;
    output.result(&ReceiptView::from(&receipt), || format!("receipt {}: {}", receipt.number, receipt::text(&receipt)))
}

pub(super) fn rollback(
    folder: &Path,
    back_to: u64,
    model: Option<&str>,
    options: &Options,
    output: Output,
) -> Result<(), CliError> {
    let revision = match (back_to, model) {
        // What nothing learned looks like depends on the model's layers.
        (0, None) => return Err(CliError::ModelNeeded { what: "to go back to before anything was learned" }),
        (_, Some(model)) => {
            let mut session = open::open_to_read(model, Some(folder), Precision::Fast, options)?;
            session.rollback(back_to)?;
            session.status().revision
        }
        (_, None) => {
            let (mut store, _) = Store::open(folder, &options.store()?, now_unix_s())?;
            Some(store.rollback(back_to, now_unix_s())?.number)
        }
    };
    let document = Rollback { revision, back_to };
    output.result(&document, || match (back_to, revision) {
        (0, _) => "nothing is learned any more".to_owned(),
        (_, Some(revision)) => format!("back at revision {back_to}, as revision {revision}"),
        (_, None) => format!("back at revision {back_to}"),
    })
}

pub(super) fn wipe(folder: &Path, output: Output) -> Result<(), CliError> {
    Store::wipe(folder)?;
    let document = Wiped { wiped: folder.display().to_string() };
    output.result(&document, || format!("{} is gone", document.wiped))
}
