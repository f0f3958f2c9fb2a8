//! `mynah store export`: the records as a file that outlives the store.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use mynah::example::{Example, ExampleId};
use mynah::store::{Store, StoreError};
use mynah_models::tokenizer::Tokenizer;
use serde::Serialize;

use super::tokenizer_of;
use crate::error::CliError;
use crate::options::Options;
use crate::output::Output;

/// A line of the file.
#[derive(Debug, Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    content: Content<'a>,
    /// In a text, as `learn` reads it.
    id: String,
    task: &'a str,
    time_unix_s: u64,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Content<'a> {
    Text { prompt: String, answer: String },
    Ids { prompt_ids: &'a [u32], answer_ids: &'a [u32] },
}

#[derive(Debug, Serialize)]
struct Document {
    records: u64,
    file: String,
}

/// Writes every record of the store into the new file `out`.
pub(super) fn export(
    folder: &Path,
    out: &Path,
    model: Option<&str>,
    options: &Options,
    output: Output,
) -> Result<(), CliError> {
    let (mut store, _) = Store::open_read(folder, options.store()?.key.as_ref())?;
    let tokenizer = model.map(|model| tokenizer_of(&store, folder, model)).transpose()?;
    let write_error = |source| CliError::Write { path: out.to_owned(), source };
    let mut file = BufWriter::new(File::create_new(out).map_err(write_error)?);
    let ids: Vec<ExampleId> = store.replay.iter().map(|info| info.id).collect();
    for id in &ids {
        let example = store.replay.read(*id).map_err(StoreError::from)?;
        let line = serde_json::to_string(&line(*id, &example, tokenizer.as_ref()))
            .map_err(|source| CliError::Encode { source })?;
        writeln!(file, "{line}").map_err(write_error)?;
    }
    file.into_inner().map_err(|error| write_error(error.into_error()))?.sync_all().map_err(write_error)?;
    let document = Document { records: ids.len() as u64, file: out.display().to_string() };
    output.result(&document, || format!("{} records in {}", document.records, document.file))
}

fn line<'a>(id: ExampleId, example: &'a Example, tokenizer: Option<&Tokenizer>) -> Line<'a> {
    let content = match tokenizer {
        Some(tokenizer) => text(example, tokenizer),
        None => Content::Ids { prompt_ids: example.prompt(), answer_ids: example.answer() },
    };
    Line { content, id: id.to_string(), task: example.task(), time_unix_s: example.time_unix_s() }
}

/// Prompt and answer as the two parts of one text: alone, an answer may lose the space in front of it.
fn text<'a>(example: &Example, tokenizer: &Tokenizer) -> Content<'a> {
    let begin = match example.prompt().first() {
        // It is no text, and `learn` puts it there again.
        Some(first) if tokenizer.adds_bos() && Some(*first) == tokenizer.bos() => 1,
        _ => 0,
    };
    // The last token of an answer ends it and is no text either.
    let end = example.tokens().len() - 1;
    let prompt = tokenizer.decode(&example.tokens()[begin..example.prompt_len()]);
    let whole = tokenizer.decode(&example.tokens()[begin..end]);
    let answer = match whole.strip_prefix(&prompt) {
        Some(answer) => answer.to_owned(),
        // A character that begins in the prompt and ends in the answer.
        None => tokenizer.decode(&example.tokens()[example.prompt_len()..end]),
    };
    Content::Text { prompt, answer }
}
