//! A receipt of forgetting, as it is shown.

use mynah::example::ExampleId;
use mynah::store::{BackTo, Forget, Receipt};
use serde::Serialize;

/// A receipt for `--json`.
#[derive(Debug, Serialize)]
pub(crate) struct ReceiptView {
    number: u64,
    request: RequestView,
    requested_unix_s: u64,
    records: Vec<ExampleId>,
    dropped_revisions: Vec<u64>,
    /// Number of the revision that is the newest now; 0 if nothing is learned any more, none if none had to go.
    back_to: Option<u64>,
    queued: Vec<ExampleId>,
    removed_unix_s: Option<u64>,
    erased_unix_s: Option<u64>,
    rolled_back_unix_s: Option<u64>,
    relearned_unix_s: Option<u64>,
    complete: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum RequestView {
    Ids(Vec<ExampleId>),
    Task(String),
    BeforeUnixS(u64),
    Other,
}

impl From<&Receipt> for ReceiptView {
    fn from(receipt: &Receipt) -> Self {
        Self {
            number: receipt.number,
            request: match &receipt.request {
                Forget::Ids(ids) => RequestView::Ids(ids.clone()),
                Forget::Task(task) => RequestView::Task(task.clone()),
                Forget::Before(time_unix_s) => RequestView::BeforeUnixS(*time_unix_s),
                _ => RequestView::Other,
            },
            requested_unix_s: receipt.requested_unix_s,
            records: receipt.records.ids().collect(),
            dropped_revisions: receipt.dropped_revisions.clone(),
            back_to: match receipt.back_to {
                BackTo::Revision(number) => Some(number),
                BackTo::NothingLearned => Some(0),
                _ => None,
            },
            queued: receipt.queued.ids().collect(),
            removed_unix_s: receipt.removed_unix_s,
            erased_unix_s: receipt.erased_unix_s,
            rolled_back_unix_s: receipt.rolled_back_unix_s,
            relearned_unix_s: receipt.relearned_unix_s,
            complete: receipt.is_complete(),
        }
    }
}

/// A receipt in a line.
pub(crate) fn text(receipt: &Receipt) -> String {
    let back = match receipt.back_to {
        BackTo::Revision(number) => format!("back at revision {number}"),
        BackTo::NothingLearned => "nothing is learned any more".to_owned(),
        _ => "nothing was learned from them".to_owned(),
    };
    let pending = match receipt.queued.len() {
        _ if !receipt.is_forgotten() => "; the rest is done when the store is opened to be changed".to_owned(),
        0 => String::new(),
        _ if receipt.is_complete() => "; what was lost with them is learned again".to_owned(),
        count => format!("; {count} others wait to be learned again"),
    };
    format!("{} forgotten; {back}{pending}", records(receipt.records.len()))
}

fn records(count: u64) -> String {
    if count == 1 { "1 record".to_owned() } else { format!("{count} records") }
}
