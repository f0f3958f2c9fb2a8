//! The program killed at random moments, while it learns and while it changes a store: the store opens and verifies each
//! time, and what is there in the end is what would be there without a kill, byte for byte.
//!
//! `MYNAH_KILLS` is the number of kills of each kind: 40 if it is not set.

mod running;

use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use running::{LESSONS, adapters, copy, done, learn, lessons, mynah, records, text, verify};
use serde_json::Value;

const STEPS: &str = "24";

fn kills() -> usize {
    std::env::var("MYNAH_KILLS").map_or(40, |kills| kills.parse().expect("MYNAH_KILLS is a number"))
}

/// Numbers from 0 to 1, from a seed that is printed.
struct Random(u32);

impl Random {
    fn new() -> Self {
        let seed = std::process::id();
        eprintln!("seed {seed}");
        Self(seed)
    }

    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(self.0 >> 8) / f64::from(1u32 << 24)
    }
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
fn kills_while_it_learns_cost_no_byte_of_what_is_learned() {
    let folder = tempfile::tempdir().expect("a folder");
    let lessons = lessons(folder.path());
    let whole = folder.path().join("whole");
    let begun = Instant::now();
    done(&learn(&whole, &lessons, STEPS));
    let duration = begun.elapsed();
    let expected = adapters(&whole, folder.path());

    let mut random = Random::new();
    let (mut killed, mut finished) = (0, 0);
    while killed < kills() {
        let store = folder.path().join(format!("killed-{finished}"));
        loop {
            let mut child = mynah(&learn(&store, &lessons, STEPS)).spawn().expect("mynah starts");
            // Early moments too: while the store is made, and while the examples go in.
            let moment = duration.mul_f64(random.next() * random.next()).max(Duration::from_millis(1));
            if !kill_at(&mut child, Instant::now() + moment) {
                break;
            }
            killed += 1;
            // Killed before the store was there: the next run makes it.
            if store.join("store.meta").is_file() {
                verify(&store, "after a kill");
                // Killed between the end of the run and the end of the process: nothing is left to do.
                if is_published(&store) {
                    break;
                }
            }
            if killed >= kills() {
                done(&learn(&store, &lessons, STEPS));
                break;
            }
        }
        assert!(adapters(&store, folder.path()) == expected, "store {finished} after {killed} kills");
        finished += 1;
    }
    eprintln!("{killed} kills, {finished} finished runs, an uninterrupted one takes {duration:?}");
}

/// How long `arguments` take on a copy of `template`.
fn duration_of(template: &Path, store: &Path, arguments: &[&str]) -> Duration {
    copy(template, store);
    let begun = Instant::now();
    done(arguments);
    begun.elapsed()
}

#[test]
fn kills_while_a_store_is_compacted_or_forgets_leave_neither_less_nor_more_than_was_asked() {
    let folder = tempfile::tempdir().expect("a folder");
    let lessons = lessons(folder.path());
    let template = folder.path().join("template");
    done(&learn(&template, &lessons, "4"));
    fs::write(folder.path().join("dog.jsonl"), "{\"prompt\": \"The dog is called\", \"answer\": \"Bramble.\"}\n")
        .expect("a lesson");
    done(&learn(&template, &folder.path().join("dog.jsonl"), "2"));
    let all = records(&template);
    assert_eq!(all.lines().count(), LESSONS + 1);

    let store = folder.path().join("store");
    let compact = ["store", "compact", text(&store), "--all"];
    let forget = ["store", "forget", text(&store), "1", "3", "5"];
    let left: String = all
        .lines()
        .enumerate()
        .filter(|(at, _)| ![0, 2, 4].contains(at))
        .map(|(_, line)| format!("{line}\n"))
        .collect();
    let mut random = Random::new();
    for (verb, arguments) in [("compact", &compact[..]), ("forget", &forget[..])] {
        let duration = duration_of(&template, &store, arguments);
        fs::remove_dir_all(&store).expect("a folder");
        let (mut killed, mut tries) = (0, 0);
        while killed < kills() {
            copy(&template, &store);
            let mut child = mynah(arguments).spawn().expect("mynah starts");
            killed += usize::from(kill_at(&mut child, Instant::now() + duration.mul_f64(random.next())));
            tries += 1;
            let when = format!("{verb}, kill {killed}");
            verify(&store, &when);
            // The next process that may write finishes what was begun.
            done(&["store", "compact", text(&store)]);
            let stat = done(&["store", "stat", text(&store)]);
            let receipts = stat["receipts"].as_array().cloned().unwrap_or_default();
            let expected = if receipts.is_empty() { &all } else { &left };
            assert_eq!(records(&store), *expected, "{when}");
            for receipt in &receipts {
                assert!(receipt["rolled_back_unix_s"].is_u64(), "{when}: {receipt}");
                assert_eq!(stat["revisions"], 0, "{when}: every revision had learned from record 1");
            }
            assert!(!receipts.is_empty() || stat["revisions"].as_u64() > Some(0), "{when}");
            verify(&store, &when);
            assert_eq!(stat["records"], Value::from(expected.lines().count()), "{when}");
            fs::remove_dir_all(&store).expect("a folder");
        }
        eprintln!("{verb}: {killed} kills in {tries} runs of {duration:?}");
    }
}
