//! Texts that are not part of the repository become examples.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use mynah::example::Example;
use mynah_models::tokenizer::{ParseSpecial, Tokenizer};
use serde::Deserialize;

/// Bytes of a plain text that make one example: some 300 tokens of English.
const PASSAGE_BYTES: usize = 1300;

/// One line of a suite's file, or a passage of a text.
#[derive(Debug, Clone, Deserialize)]
pub struct Line {
    /// What is asked.
    pub prompt: String,
    /// What is to be learned.
    pub answer: String,
    /// The task that it belongs to: the name of its folder.
    #[serde(skip)]
    pub task: String,
}

impl Line {
    /// Prompt and answer as one text.
    pub fn text(&self) -> String {
        format!("{} {}", self.prompt, self.answer)
    }

    /// Its tokens, as a store keeps them.
    ///
    /// # Errors
    /// If it is too long for a record.
    pub fn example(&self, tokenizer: &Tokenizer, end_token: u32) -> anyhow::Result<Example> {
        let ids = |text: &str| tokenizer.encode(text, ParseSpecial::No);
        // A time of the size that clocks show, the same for all so that two runs store the same bytes.
        let time_unix_s = 1_760_000_000;
        Ok(Example::new(&ids(&self.prompt), &ids(&format!(" {}", self.answer)), end_token, &self.task, time_unix_s)?)
    }
}

/// Reads files (`.jsonl` with prompts and answers, `.txt` in passages), and of folders each `train.jsonl` and `.txt` below them.
///
/// # Errors
/// Which file cannot be read, or that there is none.
pub fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for path in paths {
        for file in files(path)? {
            let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let task = task_of(&file);
            match file.extension().is_some_and(|extension| extension == "txt") {
                true => lines.extend(passages(&text, &task)),
                false => lines.extend(parse(&text, &task).with_context(|| format!("in {}", file.display()))?),
            }
        }
    }
    if lines.is_empty() {
        bail!("no text in {paths:?}");
    }
    Ok(lines)
}

/// Lines whose tasks take turns, as those of a person's days do.
pub fn interleave(lines: Vec<Line>) -> Vec<Line> {
    let mut tasks: BTreeMap<String, Vec<Line>> = BTreeMap::new();
    for line in lines.into_iter().rev() {
        tasks.entry(line.task.clone()).or_default().push(line);
    }
    let mut mixed = Vec::new();
    while !tasks.is_empty() {
        tasks.retain(|_, rest| {
            mixed.extend(rest.pop());
            !rest.is_empty()
        });
    }
    mixed
}

fn files(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))?;
    let mut entries: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<_>>()?;
    entries.sort();
    let mut found = Vec::new();
    for entry in entries {
        let is_text = entry.extension().is_some_and(|extension| extension == "txt");
        if entry.is_dir() {
            found.extend(files(&entry)?);
        } else if is_text || entry.file_name().is_some_and(|name| name == "train.jsonl") {
            found.push(entry);
        }
    }
    Ok(found)
}

fn task_of(file: &Path) -> String {
    let folder = file.parent().and_then(Path::file_name);
    folder.map_or_else(|| "text".to_owned(), |name| name.to_string_lossy().into_owned())
}

fn parse(text: &str, task: &str) -> anyhow::Result<Vec<Line>> {
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines.map(|line| Ok(Line { task: task.to_owned(), ..serde_json::from_str(line)? })).collect()
}

/// Pieces of about [`PASSAGE_BYTES`], cut at spaces; the first quarter of each is its prompt.
fn passages(text: &str, task: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut rest = text.trim();
    while let Some((passage, after)) = cut(rest, PASSAGE_BYTES) {
        if let Some((prompt, answer)) = cut(passage, PASSAGE_BYTES / 4) {
            lines.push(Line { prompt: prompt.to_owned(), answer: answer.to_owned(), task: task.to_owned() });
        }
        rest = after;
    }
    lines
}

/// Cuts a text at the first space after `bytes`.
fn cut(text: &str, bytes: usize) -> Option<(&str, &str)> {
    let space = text.as_bytes().get(bytes..)?.iter().position(|byte| *byte == b' ')?;
    text.split_at_checked(bytes + space).map(|(left, right)| (left, right.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(task: &str, prompt: &str) -> Line {
        Line { prompt: prompt.to_owned(), answer: String::new(), task: task.to_owned() }
    }

    #[test]
    fn tasks_take_turns_and_keep_their_order() {
        let mixed = interleave(vec![line("a", "1"), line("a", "2"), line("a", "3"), line("b", "4")]);
        assert_eq!(mixed.iter().map(|line| line.prompt.as_str()).collect::<String>(), "1423");
    }

    #[test]
    fn passages_are_cut_at_spaces_and_lose_nothing_but_the_end() {
        let text = "ärger und freude ".repeat(400);
        let lines = passages(&text, "t");
        assert_eq!(lines.len(), text.len() / PASSAGE_BYTES);
        let joined: String = lines.iter().map(|line| line.text() + " ").collect();
        assert!(text.starts_with(joined.trim_end()));
    }
}
