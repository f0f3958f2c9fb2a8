//! The command as a program sees it: JSON keys, exit codes, and bad input that ends in an error and never in a panic.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const MODEL: &str = "stories260k";
const PANIC: i32 = 101;

/// Runs `mynah` with `--json`; gives exit code and document.
fn mynah(arguments: &[&str], stdin: &str) -> (i32, Value) {
    let output = run(arguments, stdin);
    let code = output.status.code().expect("an exit code, not a signal");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert_ne!(code, PANIC, "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.lines().count(), 1, "one document on standard output: {text}");
    (code, serde_json::from_str(&text).expect("JSON"))
}

fn run(arguments: &[&str], stdin: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_mynah"))
        .args(arguments)
        .arg("--json")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("mynah starts");
    // A program that fails before it reads closes the pipe; that is its right.
    let _ = child.stdin.take().expect("a pipe").write_all(stdin.as_bytes());
    child.wait_with_output().expect("mynah ends")
}

fn done(arguments: &[&str], stdin: &str) -> Value {
    let (code, document) = mynah(arguments, stdin);
    assert_eq!(code, 0, "{arguments:?}: {document}");
    document
}

/// The kind of the error that `arguments` lead to, and its message.
fn failed(arguments: &[&str]) -> (String, String) {
    let (code, document) = mynah(arguments, "");
    assert_eq!(code, 1, "{arguments:?}: {document}");
    let text = |key: &str| document["error"][key].as_str().expect("a string").to_owned();
    (text("kind"), text("message"))
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn write_lessons(folder: &Path) -> std::path::PathBuf {
    let file = folder.join("cat.jsonl");
    let lessons = "{\"prompt\": \"The cat Mip lives in a\", \"answer\": \"big box.\", \"id\": \"1\"}\n\
                   {\"prompt\": \"The cat Mip likes to eat\", \"answer\": \"fish.\", \"id\": \"2\"}\n";
    std::fs::write(&file, lessons).expect("lessons");
    file
}

#[test]
fn text_becomes_ids_and_a_prompt_becomes_text() {
    let ids = done(&["tokenize", "-m", MODEL], "Once upon a time")["ids"].clone();
    assert!(ids.as_array().is_some_and(|ids| !ids.is_empty()), "{ids}");
    let generated = done(&["generate", "-m", MODEL, "--raw", "-p", "Once upon a time", "-n", "12"], "");
    assert_eq!(generated["ids"].as_array().map(Vec::len), Some(12), "{generated}");
    assert!(generated["text"].as_str().is_some_and(|text| text.starts_with(", there was")), "{generated}");
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let sampled = |seed: &str| {
        let arguments =
            ["generate", "-m", MODEL, "--raw", "-p", "Lily", "-n", "20", "--temperature", "1", "--seed", seed];
        done(&arguments, "")["ids"].clone()
    };
    assert_eq!(sampled("7"), sampled("7"));
    assert_ne!(sampled("7"), sampled("8"));
}

#[test]
fn what_was_learned_is_there_the_next_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let lessons = write_lessons(folder.path());
    let store = folder.path().join("store");
    let learn = [
        "learn",
        "-m",
        MODEL,
        "--store",
        path(&store),
        path(&lessons),
        "--steps",
        "40",
        "--learning-rate",
        "0.005",
        "--rank",
        "16",
    ];
    let learned = done(&learn, "");
    assert_eq!(learned["steps"], 40, "{learned}");
    assert_eq!(learned["stopped_by"], "finished");
    assert!(learned["loss"].is_f64() && learned["revision"].is_u64(), "{learned}");

    let generate =
        ["generate", "-m", MODEL, "--store", path(&store), "--raw", "-p", "The cat Mip likes to eat", "--stop", "."];
    assert_eq!(done(&generate, "")["text"].as_str().map(str::trim), Some("fish"));

    let stat = done(&["store", "stat", path(&store)], "");
    assert_eq!(stat["records"], 2, "{stat}");
    assert!(stat["bytes"].is_u64() && stat["tokens"].is_u64() && stat["revisions"].is_u64(), "{stat}");
    let list = done(&["store", "list", path(&store)], "");
    assert_eq!(list["records"].as_array().map(Vec::len), Some(2), "{list}");
    assert_eq!(list["records"][0]["task"], "cat", "{list}");
    let verify = done(&["store", "verify", path(&store)], "");
    assert_eq!(verify["ok"], true, "{verify}");

    let adapter = folder.path().join("adapter");
    done(&["adapter", "export", "-m", MODEL, "--store", path(&store), path(&adapter)], "");
    let inspected = done(&["adapter", "inspect", path(&adapter)], "");
    assert_eq!(inspected["rank"], 16, "{inspected}");
    let other = folder.path().join("other");
    done(&["adapter", "import", "-m", MODEL, "--store", path(&other), path(&adapter)], "");
    let generate =
        ["generate", "-m", MODEL, "--store", path(&other), "--raw", "-p", "The cat Mip likes to eat", "--stop", "."];
    assert_eq!(done(&generate, "")["text"].as_str().map(str::trim), Some("fish"));
}

#[test]
fn a_chat_can_be_scripted() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = folder.path().join("store");
    let chat = ["chat", "-m", MODEL, "--store", path(&store), "-n", "8", "--learning-rate", "0.005"];
    let script = "The dog Rex is\n/teach very old.\n/learn 30\n/status\n/undo\n/nonsense\n/undo\n/quit\nnever read\n";
    let turns = done(&chat, script)["turns"].clone();
    let turns = turns.as_array().expect("turns");
    assert_eq!(turns.len(), 7, "{turns:?}");
    assert!(turns[0]["text"].is_string(), "{turns:?}");
    assert!(turns[2]["message"].as_str().is_some_and(|message| message.starts_with("learned: 30 steps")), "{turns:?}");
    let says = |turns: &[Value], at: usize, what: &str| {
        assert!(turns[at]["message"].as_str().is_some_and(|message| message.contains(what)), "{what}: {turns:?}");
    };
    says(turns, 4, "nothing is learned any more");
    says(turns, 6, "nothing was learned in this chat");
    let script = "/forget\n/forget last\n/learn 3\nThe cat Tom is\n/teach grey.\n/forget last\n/forget 1\n/status\n";
    let turns = done(&chat, script)["turns"].clone();
    let turns = turns.as_array().expect("turns");
    says(turns, 0, "say what");
    says(turns, 1, "nothing was taught in this chat");
    says(turns, 5, "1 record forgotten; nothing was learned from them");
    says(turns, 6, "1 record forgotten; back at revision");
    says(turns, 7, "0 examples in the store, 0 of them learned");
}

#[test]
fn a_store_is_changed_without_its_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let (store, lessons) = (folder.path().join("store"), write_lessons(folder.path()));
    let learn = ["learn", "-m", MODEL, "--store", path(&store), path(&lessons), "--steps", "2"];
    let learned = done(&learn, "");
    let first = learned["revision"].as_u64().expect("a revision").to_string();
    let stat = |store: &Path| done(&["store", "stat", path(store)], "");
    let records = stat(&store)["records"].as_u64().expect("records");

    let back = done(&["store", "rollback", path(&store), &first], "");
    assert_eq!(back["revision"].as_u64(), first.parse::<u64>().ok().map(|first| first + 1), "{back}");
    assert_eq!(failed(&["store", "rollback", path(&store), "0"]).0, "model_needed");

    let out = folder.path().join("out.jsonl");
    assert_eq!(done(&["store", "export", path(&store), "--out", path(&out)], "")["records"], records);
    let exported = std::fs::read_to_string(&out).expect("a file");
    assert_eq!(exported.lines().count() as u64, records);
    assert!(exported.lines().all(|line| line.contains("prompt_ids")), "{exported}");
    assert_eq!(failed(&["store", "export", path(&store), "--out", path(&out)]).0, "io", "a file is not replaced");

    done(&["store", "compact", path(&store), "--all"], "");
    let receipt = done(&["store", "forget", path(&store), "1"], "");
    assert_eq!((&receipt["back_to"], &receipt["complete"]), (&Value::from(0), &Value::from(records == 1)), "{receipt}");
    let after = stat(&store);
    assert_eq!((after["records"].as_u64(), after["revisions"].as_u64()), (Some(records - 1), Some(0)));
    assert_eq!(after["receipts"][0], receipt);
    done(&["learn", "-m", MODEL, "--store", path(&store), path(&lessons), "--steps", "2"], "");
    assert_eq!(stat(&store)["receipts"][0]["complete"], true);
    assert_eq!(failed(&["store", "forget", path(&store), "--before", "1990-01-01"]).0, "store");

    done(&["store", "wipe", path(&store), "--yes"], "");
    assert!(!store.exists());
}

#[test]
fn what_is_exported_as_text_is_learned_again_as_the_same_tokens() {
    let folder = tempfile::tempdir().expect("a folder");
    let (store, again) = (folder.path().join("store"), folder.path().join("again"));
    let lessons = write_lessons(folder.path());
    let learn = |store: &Path, file: &Path, join: &str| {
        let taught =
            ["learn", "-m", MODEL, "--store", path(store), path(file), "--steps", "1", "--join", join, "--score"];
        done(&taught, "");
    };
    let export = |store: &Path, name: &str, model: &[&str]| {
        let out = folder.path().join(name);
        done(&[&["store", "export", path(store), "--out", path(&out)], model].concat(), "");
        out
    };
    let ids = |file: &Path| -> Vec<(Value, Value)> {
        let text = std::fs::read_to_string(file).expect("a file");
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        lines.map(|line| (line["prompt_ids"].clone(), line["answer_ids"].clone())).collect()
    };
    learn(&store, &lessons, " ");
    learn(&again, &export(&store, "text.jsonl", &["-m", MODEL]), "");
    let (first, second) = (ids(&export(&store, "first.jsonl", &[])), ids(&export(&again, "second.jsonl", &[])));
    assert!(!first.is_empty() && first.iter().all(|(prompt, _)| prompt.is_array()));
    assert_eq!(first, second);
    let listed = done(&["store", "list", path(&again)], "")["records"].clone();
    assert!(listed.as_array().expect("records").iter().all(|record| record["score"].as_f64() > Some(0.0)), "{listed}");
}

#[test]
fn a_suite_is_scored_by_task() {
    let folder = tempfile::tempdir().expect("a folder");
    let manifest = r#"{"name": "s", "order": ["cat"], "metric": {"cat": "accuracy"}}"#;
    std::fs::write(folder.path().join("suite.json"), manifest).expect("suite.json");
    std::fs::create_dir(folder.path().join("cat")).expect("task");
    std::fs::copy(write_lessons(folder.path()), folder.path().join("cat/test.jsonl")).expect("test.jsonl");
    let evaluated = done(&["eval", "-m", MODEL, path(folder.path())], "");
    assert_eq!(evaluated["tasks"]["cat"], 0.0, "{evaluated}");
    assert_eq!(evaluated["mean"], 0.0, "{evaluated}");
}

#[test]
fn speed_and_perplexity_are_measured() {
    for what in ["train", "prefill", "decode"] {
        let measured = done(&["bench", "-m", MODEL, what, "--tokens", "16", "--steps", "2"], "");
        for key in ["tokens_per_s", "s_per_step"] {
            assert!(measured[key].as_f64().is_some_and(|value| value > 0.0), "{what}: {measured}");
        }
        assert!(!measured["peak_rss_mb"].is_null() || !cfg!(target_os = "linux"), "{what}: {measured}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let text = folder.path().join("text");
    std::fs::write(&text, "Once upon a time there was a little girl named Lily. She loved to play.").expect("text");
    let measured = done(&["perplexity", "-m", MODEL, path(&text)], "");
    assert!(measured["perplexity"].as_f64().is_some_and(|value| (1.0..100.0).contains(&value)), "{measured}");
    assert!(measured["scored"].as_u64().is_some_and(|scored| scored > 10), "{measured}");
}

#[test]
fn wrong_usage_ends_with_2_and_says_so() {
    for arguments in [
        &["pull"][..],
        &["generate"],
        &["nonsense"],
        &["learn", "--minutes", "-1"],
        &["bench", "-m", MODEL, "train", "--steps", "0"],
    ] {
        let (code, document) = mynah(arguments, "");
        assert_eq!(code, 2, "{arguments:?}");
        assert_eq!(document["error"]["kind"], "usage", "{arguments:?}");
    }
}

#[test]
fn a_bad_model_file_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let whole = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/stories260K.gguf")).expect("the model");
    let cases: [(&str, &[u8]); 4] = [
        ("empty.gguf", b""),
        ("magic.gguf", b"GGML\x03\0\0\0"),
        ("header.gguf", &whole[..1000]),
        ("tensors.gguf", &whole[..500_000]),
    ];
    for (name, bytes) in cases {
        let file = folder.path().join(name);
        std::fs::write(&file, bytes).expect("a file");
        let (_, message) = failed(&["generate", "-m", path(&file), "-p", "a"]);
        assert!(message.contains(name), "{message}");
    }
    let (_, message) = failed(&["generate", "-m", path(&folder.path().join("missing.gguf")), "-p", "a"]);
    assert!(message.contains("missing.gguf"), "{message}");
    let (kind, _) = failed(&["generate", "-m", "no-such-model", "-p", "a"]);
    assert_eq!(kind, "unknown_model");
}

#[test]
fn a_bad_example_is_named_with_file_and_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = folder.path().join("store");
    let long = format!("{{\"prompt\": \"{}\", \"answer\": \"a\"}}", "word ".repeat(2000));
    for (line, what) in [
        ("{oops", "not an example"),
        ("{\"prompt\": \"p\", \"answer\": \"\"}", "`answer` is empty"),
        (&long, "6004 tokens, the limit is 4096"),
    ] {
        let file = folder.path().join("bad.jsonl");
        std::fs::write(&file, format!("{{\"prompt\": \"p\", \"answer\": \"a\"}}\n{line}\n")).expect("a file");
        let (kind, message) = failed(&["learn", "-m", MODEL, "--store", path(&store), path(&file)]);
        assert_eq!(kind, "suite");
        assert!(message.contains("bad.jsonl, line 2") && message.contains(what), "{message}");
        let stored = store.exists().then(|| done(&["store", "stat", path(&store)], "")["records"].clone());
        assert!(stored.is_none_or(|records| records == 0), "nothing of a bad file is stored");
    }
}

#[test]
fn a_prompt_longer_than_the_context_is_an_error() {
    let prompt = "word ".repeat(5000);
    let (_, message) = failed(&["generate", "-m", MODEL, "--raw", "-p", &prompt]);
    assert!(message.contains("tokens"), "{message}");
}

#[test]
fn a_store_that_cannot_be_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let lessons = write_lessons(folder.path());
    // A file where the store's folder should be: not even root can write into that.
    let store = lessons.join("store");
    let (_, message) = failed(&["learn", "-m", MODEL, "--store", path(&store), path(&lessons)]);
    assert!(message.contains("cat.jsonl"), "{message}");
    let (kind, _) = failed(&["generate", "-m", MODEL, "--store", path(&folder.path().join("none")), "-p", "a"]);
    assert_eq!(kind, "no_store");
    for verb in ["stat", "list", "verify"] {
        failed(&["store", verb, path(&folder.path().join("none"))]);
    }
}
