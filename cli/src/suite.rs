//! Task suites: a folder with `suite.json` and, per task, `train.jsonl`, `valid.jsonl` and `test.jsonl`.
//!
//! `suite.json` names the tasks in their order, the metric of each, and the text that joins a prompt to its answer.
//! A line is `{"prompt", "answer"}`; other keys are left alone. Reading checks all of it and names file and line of
//! what is wrong. This module knows no model: scoring by text is here, decoding is not.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use mynah::session::WordingError;
use serde::Deserialize;

/// What can be wrong with a suite or with a file of examples.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum SuiteError {
    /// The file is missing or cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// `suite.json` is no JSON, or not of the form of a suite.
    #[error("{} is not a suite description", path.display())]
    Manifest {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    /// `order` names a task that has no metric.
    #[error("{}: task `{task}` has no metric", path.display())]
    NoMetric { path: PathBuf, task: String },
    /// The suite has no task in its `order`.
    #[error("{}: `order` names no task", path.display())]
    NoTasks { path: PathBuf },
    /// A task's name would lead out of the suite's folder.
    #[error("{}: `{task}` is not the name of a folder in the suite", path.display())]
    TaskName { path: PathBuf, task: String },
    /// A line is not the JSON object that it should be.
    #[error("{}, line {line}, column {column}: not an example: {fault}", path.display())]
    Line { path: PathBuf, line: usize, column: usize, fault: String },
    /// A line's texts make no example.
    #[error("{}, line {line}", path.display())]
    Unlearnable {
        path: PathBuf,
        line: usize,
        #[source]
        source: WordingError,
    },
    /// A prompt or an answer has no text.
    #[error("{}, line {line}: `{field}` is empty", path.display())]
    Empty { path: PathBuf, line: usize, field: &'static str },
    /// The file has no line with an example.
    #[error("{} holds no example", path.display())]
    NoExamples { path: PathBuf },
}

/// How an answer is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Metric {
    /// 1 if the text equals the answer, both trimmed.
    Accuracy,
    /// 1 if the first number in the text equals the answer's.
    Number,
    /// F1 of the longest common sequence of words.
    RougeL,
}

/// One prompt and its answer, as a suite or a file of examples holds it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Line {
    pub(crate) prompt: String,
    pub(crate) answer: String,
    /// Of the line in its file, from 1.
    #[serde(skip)]
    pub(crate) number: usize,
}

/// A suite whose description was read and checked; the lines are read task by task.
#[derive(Debug)]
pub(crate) struct Suite {
    pub(crate) name: String,
    pub(crate) tasks: Vec<Task>,
}

/// One task of a suite.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) name: String,
    pub(crate) metric: Metric,
    /// Stands between prompt and answer.
    pub(crate) join: String,
    folder: PathBuf,
}

/// Which of a task's three files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Split {
    Train,
    Valid,
    Test,
}

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    name: String,
    order: Vec<String>,
    metric: BTreeMap<String, Metric>,
    #[serde(default = "one_space")]
    join: String,
    #[serde(default)]
    tasks: BTreeMap<String, TaskEntry>,
}

#[derive(Deserialize)]
struct TaskEntry {
    join: Option<String>,
}

/// What joins a prompt and its answer where nothing else is said.
pub(crate) fn one_space() -> String {
    " ".to_owned()
}

impl Suite {
    /// Reads and checks `folder/suite.json`.
    pub(crate) fn open(folder: &Path) -> Result<Self, SuiteError> {
        let path = folder.join("suite.json");
        let bytes = std::fs::read(&path).map_err(|source| SuiteError::Read { path: path.clone(), source })?;
        let manifest: Manifest =
            serde_json::from_slice(&bytes).map_err(|source| SuiteError::Manifest { path: path.clone(), source })?;
        if manifest.order.is_empty() {
            return Err(SuiteError::NoTasks { path });
        }
        let tasks = manifest.order.iter().map(|task| manifest.task(folder, &path, task));
        let tasks = tasks.collect::<Result<Vec<Task>, SuiteError>>()?;
        let name = if manifest.name.is_empty() { folder.display().to_string() } else { manifest.name };
        Ok(Self { name, tasks })
    }

    /// The task and the suite that `file` belongs to, if it lies in the folder of one: `SUITE/TASK/train.jsonl`.
    pub(crate) fn task_of(file: &Path) -> Option<Task> {
        let folder = file.parent()?;
        let name = folder.file_name()?.to_str()?;
        let suite = Self::open(folder.parent()?).ok()?;
        suite.tasks.into_iter().find(|task| task.name == name)
    }
}

impl Manifest {
    fn task(&self, folder: &Path, path: &Path, name: &str) -> Result<Task, SuiteError> {
        let is_plain = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0']);
        if !is_plain {
            return Err(SuiteError::TaskName { path: path.to_owned(), task: name.to_owned() });
        }
        let Some(&metric) = self.metric.get(name) else {
            return Err(SuiteError::NoMetric { path: path.to_owned(), task: name.to_owned() });
        };
        let join = self.tasks.get(name).and_then(|entry| entry.join.clone()).unwrap_or_else(|| self.join.clone());
        Ok(Task { name: name.to_owned(), metric, join, folder: folder.join(name) })
    }
}

impl Task {
    /// Reads and checks one of the task's files.
    pub(crate) fn read(&self, split: Split) -> Result<Vec<Line>, SuiteError> {
        let file = match split {
            Split::Train => "train.jsonl",
            Split::Valid => "valid.jsonl",
            Split::Test => "test.jsonl",
        };
        read_lines(&self.folder.join(file))
    }
}

/// What some editors put in front of a text.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Reads a file of examples, one JSON object a line; blank lines are passed over.
pub(crate) fn read_lines(path: &Path) -> Result<Vec<Line>, SuiteError> {
    let read_error = |source| SuiteError::Read { path: path.to_owned(), source };
    let mut reader = BufReader::new(File::open(path).map_err(read_error)?);
    let mut lines = Vec::new();
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        if reader.read_until(b'\n', &mut bytes).map_err(read_error)? == 0 {
            break;
        }
        let text = match line {
            1 => bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&bytes),
            _ => &bytes,
        };
        if !text.iter().all(u8::is_ascii_whitespace) {
            lines.push(parse_line(text, path, line)?);
        }
    }
    if lines.is_empty() {
        return Err(SuiteError::NoExamples { path: path.to_owned() });
    }
    Ok(lines)
}

fn parse_line(bytes: &[u8], path: &Path, line: usize) -> Result<Line, SuiteError> {
    let not_an_example = |error: serde_json::Error| {
        // The file has lines, for the parser there is one.
        let (text, column) = (error.to_string(), error.column());
        let fault = text.rsplit_once(" at line ").map_or(text.as_str(), |(fault, _)| fault).to_owned();
        SuiteError::Line { path: path.to_owned(), line, column, fault }
    };
    let example: Line = serde_json::from_slice(bytes).map_err(not_an_example)?;
    for (field, text) in [("prompt", &example.prompt), ("answer", &example.answer)] {
        if text.trim().is_empty() {
            return Err(SuiteError::Empty { path: path.to_owned(), line, field });
        }
    }
    Ok(Line { number: line, ..example })
}

impl Metric {
    /// How good `text` is, in `[0, 1]`, where `answer` is wanted.
    pub(crate) fn score(self, text: &str, answer: &str) -> f64 {
        let right = match self {
            Self::Accuracy => text.trim() == answer.trim(),
            Self::Number => match (first_number(text), first_number(answer)) {
                (Some(found), Some(wanted)) => found == wanted,
                _ => false,
            },
            Self::RougeL => return rouge_l(text, answer),
        };
        if right { 1.0 } else { 0.0 }
    }
}

/// The first decimal number in a text, `1,234` read as 1234.
fn first_number(text: &str) -> Option<f64> {
    let start = text.find(|c: char| c.is_ascii_digit())?;
    let negative = text[..start].ends_with('-');
    let mut digits = String::new();
    let mut rest = text[start..].chars().peekable();
    while let Some(c) = rest.next() {
        let before_digit = rest.peek().is_some_and(char::is_ascii_digit);
        match c {
            '0'..='9' => digits.push(c),
            '.' if before_digit && !digits.contains('.') => digits.push(c),
            ',' if before_digit && !digits.contains('.') => {}
            _ => break,
        }
    }
    let value: f64 = digits.parse().ok()?;
    Some(if negative { -value } else { value })
}

/// F1 over the longest common sequence of words, compared without case.
fn rouge_l(text: &str, answer: &str) -> f64 {
    let words = |s: &str| s.split_whitespace().map(str::to_lowercase).collect::<Vec<_>>();
    let (found, wanted) = (words(text), words(answer));
    let mut row = vec![0usize; wanted.len() + 1];
    for word in &found {
        let mut diagonal = 0;
        for column in 0..wanted.len() {
            let above = row[column + 1];
            row[column + 1] = if *word == wanted[column] { diagonal + 1 } else { above.max(row[column]) };
            diagonal = above;
        }
    }
    let common = row[wanted.len()] as f64;
    if common == 0.0 { 0.0 } else { 2.0 * common / (found.len() + wanted.len()) as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suite_folder(manifest: &str, lines: &[u8]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("suite.json"), manifest).expect("suite.json");
        std::fs::create_dir(folder.path().join("town")).expect("task folder");
        std::fs::write(folder.path().join("town/test.jsonl"), lines).expect("test.jsonl");
        folder
    }

    const MANIFEST: &str =
        r#"{"name": "s", "order": ["town"], "metric": {"town": "rouge-l"}, "tasks": {"town": {"join": ""}}}"#;

    #[test]
    fn a_suite_gives_its_tasks_in_order_with_metric_and_join() {
        let manifest = r#"{"order": ["b", "a"], "metric": {"a": "accuracy", "b": "number"}, "join": "\n", "tasks": {"a": {"join": ""}}}"#;
        let folder = suite_folder(manifest, b"");
        let suite = Suite::open(folder.path()).expect("a suite");
        let seen: Vec<_> = suite.tasks.iter().map(|t| (t.name.as_str(), t.metric, t.join.as_str())).collect();
        assert_eq!(seen, [("b", Metric::Number, "\n"), ("a", Metric::Accuracy, "")]);
    }

    #[test]
    fn a_line_that_is_no_json_is_named_with_its_number() {
        let folder = suite_folder(MANIFEST, b"{\"prompt\": \"p\", \"answer\": \"a\"}\n\n{oops\n");
        let error = Suite::open(folder.path()).expect("a suite").tasks[0].read(Split::Test).expect_err("a bad line");
        assert!(matches!(error, SuiteError::Line { line: 3, column: 2, .. }), "{error}");
        assert!(error.to_string().ends_with("line 3, column 2: not an example: key must be a string"), "{error}");
    }

    #[test]
    fn a_mark_of_byte_order_and_keys_of_others_are_passed_over() {
        let lines =
            "\u{feff}{\"prompt\": \"p\", \"answer\": \"a\", \"id\": 5}\r\n\r\n{\"prompt\": \"q\", \"answer\": \"b\"}";
        let folder = suite_folder(MANIFEST, lines.as_bytes());
        let lines = Suite::open(folder.path()).expect("a suite").tasks[0].read(Split::Test).expect("two lines");
        let line = |prompt: &str, answer: &str, number| Line { prompt: prompt.into(), answer: answer.into(), number };
        assert_eq!(lines, [line("p", "a", 1), line("q", "b", 3)]);
    }

    #[test]
    fn an_empty_answer_is_named_with_its_number() {
        let folder = suite_folder(MANIFEST, b"{\"prompt\": \"p\", \"answer\": \"  \"}\n");
        let error =
            Suite::open(folder.path()).expect("a suite").tasks[0].read(Split::Test).expect_err("an empty answer");
        assert!(matches!(error, SuiteError::Empty { line: 1, field: "answer", .. }), "{error}");
    }

    #[test]
    fn bytes_that_are_no_text_are_an_error() {
        let folder = suite_folder(MANIFEST, b"{\"prompt\": \"\xff\", \"answer\": \"a\"}\n");
        let error = Suite::open(folder.path()).expect("a suite").tasks[0].read(Split::Test).expect_err("no text");
        assert!(matches!(error, SuiteError::Line { line: 1, .. }), "{error}");
    }

    #[test]
    fn a_task_name_cannot_leave_the_suite() {
        for name in ["..", "a/b", ""] {
            let manifest = format!(r#"{{"order": ["{name}"], "metric": {{"{name}": "accuracy"}}}}"#);
            let folder = suite_folder(&manifest, b"");
            let error = Suite::open(folder.path()).expect_err("a bad name");
            assert!(matches!(error, SuiteError::TaskName { .. }), "{error}");
        }
    }

    #[test]
    fn a_file_in_a_suite_knows_its_task() {
        let folder = suite_folder(MANIFEST, b"");
        let task = Suite::task_of(&folder.path().join("town/train.jsonl")).expect("a task");
        assert_eq!((task.name.as_str(), task.join.as_str()), ("town", ""));
        assert!(Suite::task_of(&folder.path().join("train.jsonl")).is_none());
    }

    #[test]
    fn metrics_score_as_the_suites_say() {
        assert_eq!(Metric::Accuracy.score(" yes\n", "yes"), 1.0);
        assert_eq!(Metric::Accuracy.score("yes, sir", "yes"), 0.0);
        assert_eq!(Metric::Number.score("It is 1,204.50 in all", "1204.5"), 1.0);
        assert_eq!(Metric::Number.score("-3 degrees", "3"), 0.0);
        assert_eq!(Metric::Number.score("none", "3"), 0.0);
        assert_eq!(Metric::RougeL.score("the cat sat", "The cat slept"), 2.0 / 3.0);
        assert_eq!(Metric::RougeL.score("", "word"), 0.0);
    }
}
