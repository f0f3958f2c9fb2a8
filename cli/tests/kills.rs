//! `mynah learn` killed at random moments: the store opens and verifies each time, and the finished run's adapters are those of
//! a run that was never stopped, byte for byte.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const MODEL: &str = "stories260k";
const KILLS: usize = 50;
const STEPS: &str = "24";

fn mynah(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mynah"));
    command.args(arguments).arg("--json").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

fn done(arguments: &[&str]) -> Value {
    let output = mynah(arguments).output().expect("mynah runs");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn learn<'a>(store: &'a Path, lessons: &'a Path) -> [&'a str; 10] {
    ["learn", "-m", MODEL, "--store", text(store), text(lessons), "--task", "cat", "--steps", STEPS]
}

/// The weights of both learners, as they are exported.
fn adapters(store: &Path, folder: &Path) -> [Vec<u8>; 2] {
    ["slow", "fast"].map(|learner| {
        let out = folder.join(learner);
        done(&["adapter", "export", "-m", MODEL, "--store", text(store), "--learner", learner, text(&out)]);
        fs::read(out.join("adapter_model.safetensors")).expect("an exported adapter")
    })
}

/// Whether the newest revision is the end of a run.
fn is_published(store: &Path) -> bool {
    let list = done(&["store", "list", text(store)]);
    list["revisions"].as_array().and_then(|all| all.last()).is_some_and(|newest| newest["kind"] == "published")
}

/// Kills the child at the moment, if it is still running then; whether it was.
fn kill_at(child: &mut Child, moment: Instant) -> bool {
    while Instant::now() < moment {
        if child.try_wait().expect("a child").is_some() {
            return false;
        }
        std::thread::yield_now();
    }
    let running = child.try_wait().expect("a child").is_none();
    child.kill().expect("a child that may be killed");
    child.wait().expect("a child");
    running
}

#[test]
fn fifty_kills_cost_no_byte_of_what_is_learned() {
    let folder = tempfile::tempdir().expect("a folder");
    let lessons = folder.path().join("cat.jsonl");
    let lines: String = (0..12)
        .map(|i| {
            format!(
                "{{\"prompt\": \"Cat number {i} lives in a\", \"answer\": \"box with {i} holes.\", \"id\": \"{i}\"}}\n"
            )
        })
        .collect();
    fs::write(&lessons, lines).expect("lessons");

    let whole = folder.path().join("whole");
    let begun = Instant::now();
    done(&learn(&whole, &lessons));
    let duration = begun.elapsed();
    let expected = adapters(&whole, folder.path());

    let seed = std::process::id();
    eprintln!("seed {seed}, an uninterrupted run takes {duration:?}");
    let mut random = seed;
    let mut next = move || {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(random >> 8) / f64::from(1u32 << 24)
    };
    let (mut kills, mut finished) = (0, 0);
    while kills < KILLS {
        let store = folder.path().join(format!("killed-{finished}"));
        loop {
            let mut child = mynah(&learn(&store, &lessons)).spawn().expect("mynah starts");
            // Early moments too: while the store is made, and while the examples go in.
            let moment = Instant::now() + duration.mul_f64(next() * next()).max(Duration::from_millis(1));
            if !kill_at(&mut child, moment) {
                break;
            }
            kills += 1;
            // Killed before the store was there: the next run makes it.
            if store.join("store.meta").is_file() {
                assert_eq!(done(&["store", "verify", text(&store)])["problems"], Value::Array(Vec::new()));
                // Killed between the end of the run and the end of the process: nothing is left to do.
                if is_published(&store) {
                    break;
                }
            }
            if kills >= KILLS {
                done(&learn(&store, &lessons));
                break;
            }
        }
        assert_eq!(adapters(&store, folder.path()), expected, "store {finished} after {kills} kills, seed {seed}");
        finished += 1;
    }
    eprintln!("{kills} kills, {finished} finished runs");
}
