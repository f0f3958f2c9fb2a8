//! Every system call on a store's files fails in turn, in the real program, by `strace`: it ends well or with an error that
//! says why, nothing that was there before is lost, and the next run makes good what was begun.

#![cfg(target_os = "linux")]

mod running;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use mynah_tests::skip;
use running::{copy, document, done, learn, lessons, records, text, verify};

const CALLS: &str = "write,pwrite64,fdatasync,fsync,rename,openat,fallocate,unlink";
const ERRORS: [&str; 3] = ["ENOSPC", "EIO", "EINTR"];

/// What lies in a store, as far as the runs here get; only calls on these fail.
fn files_of(store: &Path) -> Vec<PathBuf> {
    let names = ["", "replay", "revisions", "receipts", "replay/log", "lock"];
    let mut files: Vec<PathBuf> = names.iter().map(|name| store.join(name)).collect();
    for number in 1..=6 {
        let replaced = [format!("revisions/{number:08}.rev"), format!("receipts/{number:08}.receipt")];
        files.extend(replaced.iter().flat_map(|name| [store.join(name), store.join(format!("{name}.tmp"))]));
    }
    files.push(store.join("store.meta"));
    files.push(store.join("store.meta.tmp"));
    files
}

/// The program under strace, which lets a call fail if `inject` says so.
fn traced(arguments: &[&str], store: &Path, log: &Path, inject: Option<&str>) -> Output {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", text(log), "-e", &format!("trace={CALLS}")]);
    if let Some(inject) = inject {
        command.args(["-e", &format!("inject={inject}")]);
    }
    for file in files_of(store) {
        command.args(["-P", text(&file)]);
    }
    command.arg(env!("CARGO_BIN_EXE_mynah")).args(arguments).arg("--json");
    command.stdin(Stdio::null()).stderr(Stdio::null()).output().expect("strace runs")
}

/// How often each call is made on the store's files.
fn counts(log: &Path) -> Vec<(&'static str, usize)> {
    let log = fs::read_to_string(log).expect("a log");
    let count = |call: &str| log.lines().filter(|line| line.contains(&format!(" {call}("))).count();
    CALLS.split(',').map(|call| (call, count(call))).collect()
}

/// Lets each call of `arguments` on a copy of `template` fail with each error; gives the number of runs. `check` sees the
/// store after each, opened once more.
fn sweep(folder: &Path, template: &Path, arguments: &[&str], store: &Path, check: impl Fn(bool, &str)) -> usize {
    let log = folder.join("strace.log");
    copy(template, store);
    let whole = traced(arguments, store, &log, None);
    assert!(whole.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&whole.stdout));
    let mut runs = 0;
    for (call, count) in counts(&log) {
        for nth in 1..=count {
            for error in ERRORS {
                fs::remove_dir_all(store).expect("a folder");
                copy(template, store);
                let inject = format!("{call}:error={error}:when={nth}");
                let output = traced(arguments, store, &log, Some(&inject));
                let what = format!("{} {}: {inject}", arguments[0], arguments[1]);
                let is_done = output.status.success();
                let found = document(&output);
                assert!(is_done || output.status.code() == Some(1), "{what}: {:?}, {found}", output.status);
                assert!(is_done || found["error"]["message"].is_string(), "{what}: {found}");
                // A failed close or a file that a signal kept from being made is tried again.
                assert!(is_done || error != "EINTR", "{what}: {found}");
                check(is_done, &what);
                runs += 1;
            }
        }
    }
    runs
}

#[test]
#[ignore = "takes minutes"]
fn whichever_call_fails_the_program_says_so_and_the_store_is_whole() {
    if !Command::new("strace").args(["-qq", "true"]).output().is_ok_and(|output| output.status.success()) {
        return skip("failing calls", "strace is not there, or may not trace", "MYNAH_REQUIRE_STRACE");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let lessons = lessons(folder.path());
    let template = folder.path().join("template");
    done(&learn(&template, &lessons, "1"));
    let all = records(&template);
    let store = folder.path().join("store");
    let left: String = all.lines().skip(1).map(|line| format!("{line}\n")).collect();

    let compact = ["store", "compact", text(&store), "--all"];
    let compacted = sweep(folder.path(), &template, &compact, &store, |_, what| {
        verify(&store, what);
        assert_eq!(records(&store), all, "{what}");
    });
    let forget = ["store", "forget", text(&store), "1"];
    let forgotten = sweep(folder.path(), &template, &forget, &store, |is_done, what| {
        verify(&store, what);
        done(&["store", "compact", text(&store)]);
        let stat = done(&["store", "stat", text(&store)]);
        let has_receipt = stat["receipts"].as_array().is_some_and(|receipts| !receipts.is_empty());
        assert!(has_receipt || !is_done, "{what}: {stat}");
        assert_eq!(records(&store), if has_receipt { left.as_str() } else { all.as_str() }, "{what}");
        verify(&store, what);
    });
    let learn = learn(&store, &lessons, "2");
    let learned = sweep(folder.path(), &template, &learn, &store, |_, what| {
        verify(&store, what);
        assert_eq!(records(&store), all, "{what}");
    });
    eprintln!("{compacted} runs of compact, {forgotten} of forget, {learned} of learn");
    assert!(compacted > 20 && forgotten > 60 && learned > 40);
}
