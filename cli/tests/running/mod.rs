//! The real program, run by tests: with `--json`, in folders of its own.

#![allow(dead_code, reason = "each test file uses its part")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

pub(crate) const MODEL: &str = "stories260k";
/// Lessons in the file of [`lessons`].
pub(crate) const LESSONS: usize = 12;

pub(crate) fn mynah(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mynah"));
    command.args(arguments).arg("--json").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

/// What the program printed, if it ended well.
pub(crate) fn done(arguments: &[&str]) -> Value {
    let output = mynah(arguments).output().expect("mynah runs");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    document(&output)
}

/// The one JSON document on standard output.
pub(crate) fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}, {:?}", String::from_utf8_lossy(&output.stdout), output.status))
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A file of lessons about cats.
pub(crate) fn lessons(folder: &Path) -> PathBuf {
    let line = |i: usize| {
        format!("{{\"prompt\": \"Cat number {i} lives in a\", \"answer\": \"box with {i} holes.\", \"id\": \"{i}\"}}\n")
    };
    let file = folder.join("cat.jsonl");
    fs::write(&file, (0..LESSONS).map(line).collect::<String>()).expect("lessons");
    file
}

pub(crate) fn learn<'a>(store: &'a Path, lessons: &'a Path, steps: &'a str) -> [&'a str; 10] {
    ["learn", "-m", MODEL, "--store", text(store), text(lessons), "--task", "cat", "--steps", steps]
}

/// The weights of both learners, as they are exported.
pub(crate) fn adapters(store: &Path, folder: &Path) -> [Vec<u8>; 2] {
    ["slow", "fast"].map(|learner| {
        let out = folder.join(learner);
        done(&["adapter", "export", "-m", MODEL, "--store", text(store), "--learner", learner, text(&out)]);
        fs::read(out.join("adapter_model.safetensors")).expect("an exported adapter")
    })
}

/// Every record of a store, as it is exported.
pub(crate) fn records(store: &Path) -> String {
    let out = store.with_extension("jsonl");
    let _ = fs::remove_file(&out);
    done(&["store", "export", text(store), "--out", text(&out)]);
    fs::read_to_string(out).expect("an exported file")
}

/// Asserts that every byte of a store is sound.
pub(crate) fn verify(store: &Path, when: &str) {
    let output = mynah(&["store", "verify", text(store)]).output().expect("mynah runs");
    assert_eq!(document(&output)["ok"], true, "{when}: {}", String::from_utf8_lossy(&output.stdout));
}

pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).expect("a copy");
        }
    }
}
