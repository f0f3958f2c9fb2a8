//! Revisions under every failing call, every truncation and every flipped bit.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::files::faulty::{EINTR, EIO, ENOSPC, FaultyFiles};
use crate::files::{Files, SystemFiles};

const IDENTITY: Identity = Identity { base_digest: [0xB5; 32], tokenizer_digest: [0x70; 32] };

/// What a revision of these tests holds: everything follows from one number.
fn contents(seed: u64) -> (Vec<u8>, Vec<f32>, Vec<f32>) {
    let fast = (0..100).map(|at| (seed * 100 + at) as f32 / 7.0).collect();
    let slow = (0..100).map(|at| -((seed * 100 + at) as f32)).collect();
    (seed.to_le_bytes().repeat(5), fast, slow)
}

fn commit(store: &mut RevisionStore, kind: RevisionKind, seed: u64) -> Result<RevisionInfo, CheckpointError> {
    let (state, fast, slow) = contents(seed);
    let parent = store.newest().map(|info| info.number);
    store.commit(&Draft {
        kind,
        parent,
        created_unix_s: 1_700_000_000 + seed,
        sections: &[
            ("state", SectionData::Bytes(&state)),
            ("fast", SectionData::F32(&fast)),
            ("slow", SectionData::F32(&slow)),
            ("empty", SectionData::F32(&[])),
        ],
    })
}

fn check_loads(store: &RevisionStore, number: u64, seed: u64) {
    let mut revision = store.load(number).unwrap();
    let (state, fast, slow) = contents(seed);
    assert_eq!(revision.bytes("state").unwrap(), state);
    assert_eq!(revision.f32s("fast").unwrap(), fast);
    assert_eq!(revision.take_f32s("slow").unwrap(), slow);
    assert!(revision.f32s("empty").unwrap().is_empty());
    assert_eq!(revision.info().created_unix_s, 1_700_000_000 + seed);
    assert!(matches!(revision.bytes("fast").unwrap_err(), CheckpointError::NoSection { .. }));
    assert!(revision.section_names().eq(["state", "fast", "slow", "empty"]));
}

fn open(folder: &Path) -> (RevisionStore, RevisionReport) {
    RevisionStore::open(folder, &IDENTITY).unwrap()
}

fn numbers(store: &RevisionStore) -> Vec<u64> {
    store.list().iter().map(|info| info.number).collect()
}

#[test]
fn what_is_committed_is_there_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, report) = open(folder.path());
    assert!(report.newest.is_none() && store.newest().is_none());
    for seed in 1..=3 {
        let info = commit(&mut store, RevisionKind::Step, seed).unwrap();
        assert_eq!((info.number, info.identity), (seed, IDENTITY));
        assert_eq!(info.parent, seed.checked_sub(1).filter(|&parent| parent > 0));
    }
    let (store, report) = open(folder.path());
    assert_eq!(report.newest.as_ref(), store.newest());
    assert_eq!(numbers(&store), [1, 2, 3]);
    (1..=3).for_each(|seed| check_loads(&store, seed, seed));
    let on_disk = fs::read_dir(folder.path()).unwrap();
    let on_disk: u64 = on_disk.map(|f| f.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(store.bytes(), on_disk);
    assert!(store.verify().unwrap().is_empty());
    assert!(matches!(store.load(4).unwrap_err(), CheckpointError::NotFound { number: 4, .. }));
}

/// Lets call `nth` of a commit fail and checks that the revision before it is there afterwards.
fn check_failing_call(files: FaultyFiles, error: i32) -> bool {
    let folder = tempfile::tempdir().unwrap();
    commit(&mut open(folder.path()).0, RevisionKind::Published, 1).unwrap();
    let files = Arc::new(files);
    let opened = RevisionStore::open_with(files.clone(), folder.path(), &IDENTITY, false);
    let committed = match opened {
        Ok((mut store, _)) => {
            let committed = commit(&mut store, RevisionKind::Step, 2);
            if let Err(refused) = &committed {
                assert!(error != EINTR, "{refused}");
                let is_full = matches!(refused, CheckpointError::Full { .. });
                let is_io = matches!(refused, CheckpointError::Io { .. });
                assert!(is_full || is_io, "{refused}");
                // The same store takes the next one.
                commit(&mut store, RevisionKind::Step, 3).unwrap();
            }
            committed.is_ok()
        }
        Err(_) => {
            assert!(error != EINTR);
            false
        }
    };
    let (store, report) = open(folder.path());
    assert!(report.invalid.is_empty(), "{:?}", report.invalid);
    check_loads(&store, 1, 1);
    for info in store.list() {
        check_loads(&store, info.number, info.created_unix_s - 1_700_000_000);
    }
    assert!(!committed || numbers(&store) == [1, 2]);
    files.calls() > 0
}

#[test]
fn whichever_file_call_fails_the_previous_revision_is_intact() {
    let counting = Arc::new(FaultyFiles::new(usize::MAX, 0));
    let folder = tempfile::tempdir().unwrap();
    commit(&mut open(folder.path()).0, RevisionKind::Published, 1).unwrap();
    let (mut store, _) = RevisionStore::open_with(counting.clone(), folder.path(), &IDENTITY, false).unwrap();
    commit(&mut store, RevisionKind::Step, 2).unwrap();
    assert!(counting.calls() > 20);
    for nth in 0..counting.calls() {
        for error in [ENOSPC, EIO, EINTR] {
            check_failing_call(FaultyFiles::new(nth, error), error);
        }
        check_failing_call(FaultyFiles::after_the_fact(nth, EIO), EIO);
    }
}

#[test]
fn data_is_synced_before_it_is_named_and_the_name_before_it_is_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let files = Arc::new(FaultyFiles::new(usize::MAX, 0));
    let (mut store, _) = RevisionStore::open_with(files.clone(), folder.path(), &IDENTITY, false).unwrap();
    let before = files.calls();
    commit(&mut store, RevisionKind::Step, 1).unwrap();
    let mut calls = files.call_names().split_off(before);
    calls.dedup();
    assert_eq!(calls, ["open", "write_at", "sync_data", "rename", "sync_folder"]);
}

#[test]
fn a_full_disk_is_told_apart_and_leaves_no_file_behind() {
    let folder = tempfile::tempdir().unwrap();
    // The first write of a commit to an empty folder: list and open come before it.
    let files = Arc::new(FaultyFiles::new(2, ENOSPC));
    let (mut store, _) = RevisionStore::open_with(files, folder.path(), &IDENTITY, false).unwrap();
    let refused = commit(&mut store, RevisionKind::Step, 1).unwrap_err();
    let CheckpointError::Full { needed_bytes, .. } = refused else { panic!("{refused}") };
    assert!(needed_bytes > 800);
    assert_eq!(SystemFiles.list(folder.path()).unwrap().len(), 0);
    let info = commit(&mut store, RevisionKind::Step, 1).unwrap();
    assert_eq!((info.number, info.bytes), (1, needed_bytes));
}

/// Puts `bytes` in the place of the second of two revisions.
fn check_damaged(folder: &Path, bytes: &[u8]) -> CheckpointError {
    fs::write(folder.join("00000002.rev"), bytes).unwrap();
    let (mut store, mut report) = open(folder);
    assert_eq!(report.newest.unwrap().number, 1);
    assert_eq!(report.invalid.len(), 1);
    assert_eq!(report.invalid[0].name, "00000002.rev");
    assert!(folder.join("00000002.rev").exists(), "left for its owner");
    check_loads(&store, 1, 1);
    let info = commit(&mut store, RevisionKind::Step, 3).unwrap();
    assert_eq!(info.number, 3, "no number is used twice");
    fs::remove_file(folder.join("00000003.rev")).unwrap();
    report.invalid.remove(0).reason
}

fn two_revisions() -> (tempfile::TempDir, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, _) = open(folder.path());
    commit(&mut store, RevisionKind::Published, 1).unwrap();
    commit(&mut store, RevisionKind::Step, 2).unwrap();
    let bytes = fs::read(folder.path().join("00000002.rev")).unwrap();
    (folder, bytes)
}

#[test]
fn every_truncation_is_seen_and_the_revision_before_it_serves() {
    let (folder, bytes) = two_revisions();
    for len in 0..bytes.len() {
        let reason = check_damaged(folder.path(), &bytes[..len]);
        assert!(matches!(reason, CheckpointError::Damaged { .. }));
    }
    let mut longer = bytes;
    longer.push(0);
    check_damaged(folder.path(), &longer);
}

#[test]
fn every_flipped_bit_is_seen_and_the_revision_before_it_serves() {
    let (folder, bytes) = two_revisions();
    for bit in (0..bytes.len() * 8).step_by(5) {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        check_damaged(folder.path(), &flipped);
    }
}

#[test]
fn zeros_where_data_should_be_are_seen() {
    // What a file system may leave of a file that was not synced.
    let (folder, bytes) = two_revisions();
    for from in (0..bytes.len()).step_by(64) {
        let mut holed = bytes.clone();
        let end = (from + 512).min(holed.len());
        if holed[from..end].iter().any(|&byte| byte != 0) {
            holed[from..end].fill(0);
            check_damaged(folder.path(), &holed);
        }
    }
}

#[test]
fn a_crafted_table_is_refused_before_anything_is_allocated() {
    let (folder, bytes) = two_revisions();
    let crafted = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = bytes.clone();
        edit(&mut bytes);
        let crc = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);
        let sections = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
        let front = (128 + 64 * sections.min(4) as usize).min(bytes.len());
        let table_crc = crc.checksum(&bytes[128..front]);
        bytes[112..116].copy_from_slice(&table_crc.to_le_bytes());
        let header_crc = crc.checksum(&bytes[..124]);
        bytes[124..128].copy_from_slice(&header_crc.to_le_bytes());
        let end = bytes.len() - 8;
        let end_crc = crc.checksum(&bytes[..front]);
        bytes[end..end + 4].copy_from_slice(&end_crc.to_le_bytes());
        check_damaged(folder.path(), &bytes).to_string()
    };
    let says = |edit: &dyn Fn(&mut Vec<u8>), what: &str| {
        let said = crafted(edit);
        assert!(said.contains(what), "{said}");
    };
    says(&|b| b[10] = 9, "kind");
    says(&|b| b[12] = 65, "number of sections");
    says(&|b| b[12] = 3, "does not follow");
    says(&|b| b[16] = 0, "number has no meaning");
    says(&|b| b[16] = 7, "holds revision 7");
    says(&|b| b[128] = b'A', "name has no meaning");
    says(&|b| b.copy_within(128..160, 192), "its name is taken");
    says(&|b| b[128 + 52] = 2, "encoding");
    says(&|b| b[192 + 40] = 255, "whole number of values");
    says(&|b| b[128 + 32] = 0, "does not follow");
    says(&|b| b[128 + 40..128 + 48].fill(0xFF), "does not follow");
    says(&|b| b[48] ^= 1, "base model");
    says(&|b| b[80] ^= 1, "tokenizer");
}

#[test]
fn a_newer_format_stops_the_opening() {
    let (folder, mut bytes) = two_revisions();
    bytes[8] = 2;
    let crc = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI).checksum(&bytes[..124]);
    bytes[124..128].copy_from_slice(&crc.to_le_bytes());
    fs::write(folder.path().join("00000002.rev"), bytes).unwrap();
    let refused = RevisionStore::open(folder.path(), &IDENTITY).unwrap_err();
    assert!(matches!(refused, CheckpointError::NewerFormat { found: 2, supported: 1, .. }));
}

#[test]
fn commits_that_never_finished_are_removed_by_a_writer_only() {
    let (folder, bytes) = two_revisions();
    let left = folder.path().join("00000003.rev.tmp");
    fs::write(&left, &bytes[..100]).unwrap();
    fs::write(folder.path().join("notes.txt"), "mine").unwrap();
    let (mut reading, report) = RevisionStore::open_read(folder.path(), &IDENTITY).unwrap();
    assert!(report.removed.is_empty() && left.exists());
    assert!(matches!(commit(&mut reading, RevisionKind::Step, 3).unwrap_err(), CheckpointError::ReadOnly { .. }));
    let (_, report) = open(folder.path());
    assert_eq!(report.removed, ["00000003.rev.tmp"]);
    assert!(!left.exists() && folder.path().join("notes.txt").exists());
}

#[test]
fn a_rollback_makes_an_old_state_the_newest_and_keeps_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, _) = open(folder.path());
    for seed in 1..=3 {
        commit(&mut store, RevisionKind::Published, seed).unwrap();
    }
    let info = store.rollback(1, 1_700_000_001).unwrap();
    assert_eq!((info.number, info.parent), (4, Some(1)));
    assert_eq!(info.kind, RevisionKind::Published);
    let (store, report) = open(folder.path());
    assert_eq!(report.newest.unwrap().number, 4);
    check_loads(&store, 4, 1);
    check_loads(&store, 3, 3);
}

#[test]
fn pruning_keeps_the_newest_of_each_kind() {
    use RevisionKind::{Published, Step};
    let folder = tempfile::tempdir().unwrap();
    let (mut store, _) = open(folder.path());
    let kinds = [Published, Step, Step, Published, Step, Step, Step, Published];
    for (at, kind) in kinds.into_iter().enumerate() {
        commit(&mut store, kind, at as u64).unwrap();
    }
    let keep = Keep { steps: 2, published: 2, ..Keep::DEFAULT };
    let removed = store.prune(keep).unwrap();
    assert_eq!(removed, [1, 5, 3, 2]);
    assert_eq!(numbers(&store), [4, 6, 7, 8]);
    assert_eq!(numbers(&open(folder.path()).0), [4, 6, 7, 8]);
    let none = Keep { steps: 0, published: 0, ..Keep::DEFAULT };
    store.prune(none).unwrap();
    assert_eq!(numbers(&store), [8], "the newest always stays");
}

#[test]
fn a_quota_takes_the_oldest_steps_first_and_the_newest_never() {
    use RevisionKind::{Published, Step};
    let kept = |files: u64| {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = open(folder.path());
        for kind in [Published, Step, Published, Step, Step] {
            commit(&mut store, kind, 1).unwrap();
        }
        let bytes = store.list()[0].bytes;
        assert_eq!(store.bytes(), 5 * bytes);
        store.prune(Keep { steps: 9, published: 9, bytes: files * bytes }).unwrap();
        assert_eq!(numbers(&open(folder.path()).0), numbers(&store));
        numbers(&store)
    };
    assert_eq!(kept(5), [1, 2, 3, 4, 5]);
    assert_eq!(kept(4), [1, 3, 4, 5]);
    assert_eq!(kept(3), [1, 3, 5]);
    assert_eq!(kept(2), [3, 5]);
    assert_eq!([kept(1), kept(0)], [[5], [5]]);
}

#[test]
fn what_was_written_lately_is_counted_by_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, _) = open(folder.path());
    assert_eq!(store.bytes_written_since(0), 0);
    for time in [10, 20, 30, 40] {
        let sections = [("fast", SectionData::F32(&[1.0; 4]))];
        let draft = Draft { kind: RevisionKind::Step, parent: None, created_unix_s: time, sections: &sections };
        store.commit(&draft).unwrap();
    }
    let bytes = store.list()[0].bytes;
    let written = |store: &RevisionStore| [0, 20, 25, 41].map(|since| store.bytes_written_since(since) / bytes);
    assert_eq!(written(&store), [4, 3, 2, 0]);
    store.remove(&[2, 3, 9]).unwrap();
    assert_eq!(written(&store), [4, 3, 3, 0], "those that are gone were written too");
}

#[test]
fn a_draft_that_breaks_a_rule_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, _) = open(folder.path());
    let nothing = SectionData::Bytes(&[]);
    let mut refuse = |sections: &[(&str, SectionData<'_>)]| {
        let refused = store.commit(&Draft { kind: RevisionKind::Step, parent: None, created_unix_s: 0, sections });
        assert!(matches!(refused, Err(CheckpointError::BadSection { .. })));
    };
    refuse(&[("", nothing)]);
    refuse(&[("Fast", nothing)]);
    refuse(&[("a_name_of_more_than_thirty_two_by", nothing)]);
    refuse(&[("a", nothing), ("a", nothing)]);
    let names: Vec<String> = (0..65).map(|at| format!("s{at}")).collect();
    let many: Vec<_> = names.iter().map(|name| (name.as_str(), nothing)).collect();
    refuse(&many);
    assert!(SystemFiles.list(folder.path()).unwrap().is_empty());
}

#[test]
fn the_bytes_of_a_revision_are_these() {
    // A golden file: if this test fails, the format changed and old revisions are unreadable.
    let folder = tempfile::tempdir().unwrap();
    let (mut store, _) = open(folder.path());
    let sections = [("state", SectionData::Bytes(b"hello")), ("fast", SectionData::F32(&[1.0, -2.5]))];
    store
        .commit(&Draft {
            kind: RevisionKind::Published,
            parent: None,
            created_unix_s: 1_700_000_000,
            sections: &sections,
        })
        .unwrap();
    let bytes = fs::read(folder.path().join("00000001.rev")).unwrap();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, include_str!("golden_v1.hex").replace('\n', ""));
}
