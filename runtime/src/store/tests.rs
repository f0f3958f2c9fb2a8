//! The folder as a whole: made once, bound to its model, whole after any failed call.

use crc::{CRC_32_ISCSI, Crc};

use super::*;
use crate::LockError;
use crate::checkpoint::{CheckpointError, Draft, RevisionKind, SectionData};
use crate::example::{Example, ExampleId};
use crate::files::faulty::{EINTR, EIO, ENOSPC, FaultyFiles};
use std::fs;

const IDENTITY: Identity = Identity { base_digest: [0xB5; 32], tokenizer_digest: [0x70; 32] };
const OPTIONS: StoreOptions =
    StoreOptions { replay_capacity_bytes: 4 << 20, keep: Keep::DEFAULT, key: None, eviction: None };

fn open(path: &Path) -> (Store, StoreReport) {
    Store::create_or_open(path, &IDENTITY, &OPTIONS, 1_700_000_000).unwrap()
}

fn example(seed: u32) -> Example {
    Example::new(&[1, seed], &[seed; 20], 2, "math", 0).unwrap()
}

fn commit(store: &mut Store, value: f32) -> Result<(), CheckpointError> {
    let draft = Draft {
        kind: RevisionKind::Step,
        parent: None,
        created_unix_s: 0,
        sections: &[("fast", SectionData::F32(&[value; 10]))],
    };
    store.revisions.commit(&draft).map(drop)
}

#[test]
fn a_store_is_made_once_and_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/b");
    let (mut store, report) = open(&path);
    assert!(report.is_new);
    store.replay.append(&[example(1), example(2)]).unwrap();
    commit(&mut store, 1.0).unwrap();
    drop(store);
    let (store, report) = open(&path);
    assert!(!report.is_new);
    assert_eq!((report.replay.records, store.created_unix_s()), (2, 1_700_000_000));
    assert_eq!(report.revisions.newest.unwrap().number, 1);
    let stat = store.stat();
    assert_eq!((stat.records, stat.tokens, stat.revisions), (2, 46, 1));
    assert_eq!(stat.tasks[0].task, "math");
    drop(store);
    let (mut reading, _) = Store::open_read(&path, None).unwrap();
    assert_eq!((reading.stat(), *reading.identity()), (stat, IDENTITY));
    assert!(reading.verify().unwrap().is_ok());
    assert!(reading.replay.append(&[example(3)]).is_err());
    assert!(matches!(commit(&mut reading, 2.0).unwrap_err(), CheckpointError::ReadOnly { .. }));
    let (mut changing, _) = Store::open(&path, &OPTIONS, 0).unwrap();
    changing.replay.remove(ExampleId(1)).unwrap();
}

#[test]
fn a_folder_becomes_a_store_by_its_last_write() {
    let folder = tempfile::tempdir().unwrap();
    let files = Arc::new(FaultyFiles::new(usize::MAX, 0));
    let meta = Meta { identity: IDENTITY, created_unix_s: 0 };
    let path = folder.path();
    replace_file(files.as_ref(), path, META_NAME, &meta.encode()).unwrap();
    assert_eq!(files.call_names(), ["open", "write_at", "sync_data", "rename", "sync_folder"]);
    // All of it but the last write: the store is made as if nothing had been there.
    fs::rename(path.join(META_NAME), path.join("store.meta.tmp")).unwrap();
    fs::create_dir(path.join("revisions")).unwrap();
    assert!(open(path).1.is_new);
    assert!(!open(path).1.is_new);
}

#[test]
fn another_model_is_refused_with_both_digests() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path());
    let mut other = IDENTITY;
    other.base_digest[0] = 0xAA;
    let refused = Store::create_or_open(folder.path(), &other, &OPTIONS, 0).unwrap_err();
    assert!(matches!(refused, StoreError::OtherBase { .. }));
    let said = refused.to_string();
    assert!(said.contains(&"b5".repeat(32)), "{said}");
    assert!(said.contains(&format!("aa{}", "b5".repeat(31))), "{said}");
    let mut other = IDENTITY;
    other.tokenizer_digest[0] = 0xAA;
    let refused = Store::create_or_open(folder.path(), &other, &OPTIONS, 0).unwrap_err();
    assert!(matches!(refused, StoreError::OtherTokenizer { .. }));
}

#[test]
fn one_writer_at_a_time_and_readers_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, _) = open(folder.path());
    for refused in
        [Store::create_or_open(folder.path(), &IDENTITY, &OPTIONS, 0), Store::open(folder.path(), &OPTIONS, 0)]
    {
        let Err(StoreError::Locked(LockError::InUse { holder, .. })) = refused else { panic!("{refused:?}") };
        assert_eq!(holder, Some(std::process::id()));
    }
    store.replay.append(&[example(1)]).unwrap();
    let (mut reading, _) = Store::open_read(folder.path(), None).unwrap();
    assert_eq!(reading.replay.read(ExampleId(1)).unwrap(), example(1));
    store.replay.append(&[example(2)]).unwrap();
    assert_eq!(reading.replay.len(), 1);
}

#[test]
fn what_is_no_store_is_refused_with_a_cure() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let said = |refused: Result<(Store, StoreReport), StoreError>| {
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains(&path.display().to_string()), "{refused}");
        refused
    };
    assert!(said(Store::open_read(&path.join("no"), None)).contains("no such folder"));
    assert!(said(Store::open(path, &OPTIONS, 0)).contains("no `store.meta`"));
    fs::write(path.join("photo.jpg"), "mine").unwrap();
    let refused = said(Store::create_or_open(path, &IDENTITY, &OPTIONS, 0));
    assert!(refused.contains("empty folder"));
    assert_eq!(fs::read_dir(path).unwrap().count(), 1, "nothing was left there");
    // A file where the folder should be.
    let file = path.join("photo.jpg");
    said(Store::create_or_open(&file, &IDENTITY, &OPTIONS, 0));
    said(Store::create_or_open(&file.join("x"), &IDENTITY, &OPTIONS, 0));
}

#[test]
fn damaged_and_newer_meta_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path());
    let path = folder.path().join(META_NAME);
    let bytes = fs::read(&path).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &flipped).unwrap();
        let refused = Store::open_read(folder.path(), None).unwrap_err();
        assert!(matches!(refused, StoreError::Damaged { .. }));
    }
    for len in 0..bytes.len() {
        fs::write(&path, &bytes[..len]).unwrap();
        let refused = Store::open_read(folder.path(), None).unwrap_err();
        assert!(matches!(refused, StoreError::Damaged { .. }));
    }
    let mut newer = bytes.clone();
    newer[8] = 2;
    let crc = Crc::<u32>::new(&CRC_32_ISCSI).checksum(&newer[..124]);
    newer[124..].copy_from_slice(&crc.to_le_bytes());
    fs::write(&path, &newer).unwrap();
    let refused = Store::open_read(folder.path(), None).unwrap_err();
    assert!(matches!(refused, StoreError::NewerFormat { found: 2, .. }));
}

#[test]
fn verify_names_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, _) = open(folder.path());
    store.replay.append(&[example(1)]).unwrap();
    store.replay.append(&[example(2)]).unwrap();
    commit(&mut store, 1.0).unwrap();
    commit(&mut store, 2.0).unwrap();
    assert!(store.verify().unwrap().problems().is_empty());
    let damage = |name: &str, at: usize| {
        let path = folder.path().join(name);
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    damage("revisions/00000002.rev", 200);
    damage("replay/log", 130);
    let (mut reading, report) = Store::open_read(folder.path(), None).unwrap();
    assert_eq!(report.revisions.newest.unwrap().number, 1);
    let found = reading.verify().unwrap();
    assert!(!found.is_ok());
    let problems = found.problems();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].contains("flipped bit"), "{problems:?}");
    assert!(problems[1].contains("00000002.rev"), "{problems:?}");
    assert_eq!(reading.replay.len(), 2, "the flipped bit cost nothing");
}

#[test]
fn a_wiped_store_is_gone_whatever_failed_on_the_way_and_others_files_stay() {
    for nth in 0.. {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let (mut store, _) = open(&path);
        store.replay.append(&[example(1)]).unwrap();
        commit(&mut store, 1.0).unwrap();
        let refused = Store::wipe(&path).unwrap_err();
        assert!(matches!(refused, StoreError::Locked(_)), "{refused}");
        drop(store);
        fs::write(path.join("revisions/00000002.rev"), "damaged").unwrap();
        let files = FaultyFiles::new(nth, EIO);
        let wiped = Store::wipe_with(&files, &path);
        if wiped.is_err() && path.join(META_NAME).exists() {
            Store::wipe(&path).unwrap();
        }
        assert!(!path.join(META_NAME).exists());
        let is_complete = files.calls() <= nth;
        assert!(!is_complete || !path.exists());
        if is_complete {
            break;
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    drop(open(&path));
    fs::write(path.join("mine"), "mine").unwrap();
    Store::wipe(&path).unwrap();
    let left: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["mine"]);
    assert!(matches!(Store::wipe(&path), Err(StoreError::NotAStore { .. })));
}

#[test]
fn short_reads_and_writes_are_carried_on() {
    let folder = tempfile::tempdir().unwrap();
    let files = Arc::new(FaultyFiles::short(13));
    let again = || {
        let files = files.clone();
        Store::create_or_open_with(files, folder.path(), &IDENTITY, &OPTIONS, 0).unwrap()
    };
    let (mut store, _) = again();
    store.replay.append(&[example(1), example(2)]).unwrap();
    commit(&mut store, 1.0).unwrap();
    drop(store);
    let (mut store, _) = again();
    assert_eq!(store.replay.read(ExampleId(2)).unwrap(), example(2));
    let revision = store.revisions.load(1).unwrap();
    assert_eq!(revision.f32s("fast").unwrap(), [1.0; 10]);
    assert!(store.verify().unwrap().is_ok());
}

#[test]
fn whichever_file_call_fails_the_store_opens_again_with_everything_acknowledged() {
    for error in [ENOSPC, EIO, EINTR] {
        for nth in 0.. {
            let folder = tempfile::tempdir().unwrap();
            let files = Arc::new(FaultyFiles::new(nth, error));
            let made = Store::create_or_open_with(files.clone(), folder.path(), &IDENTITY, &OPTIONS, 0);
            let (mut records, mut revisions) = (0, 0);
            match made {
                Ok((mut store, _)) => {
                    records += usize::from(store.replay.append(&[example(1)]).is_ok());
                    revisions += usize::from(commit(&mut store, 1.0).is_ok());
                }
                Err(refused) => assert!(error != EINTR, "{refused}"),
            }
            assert!(error != EINTR || records + revisions == 2);
            let (mut store, _) = open(folder.path());
            assert!(store.replay.len() >= records);
            assert!(store.revisions.list().len() >= revisions);
            assert!(store.verify().unwrap().is_ok());
            if files.calls() <= nth {
                break;
            }
        }
    }
}

#[test]
fn a_sealed_store_opens_with_its_key_only_and_shows_nothing_without() {
    let folder = tempfile::tempdir().unwrap();
    let sealed = |key: [u8; 32]| StoreOptions { key: Some(StoreKey::new(key)), ..OPTIONS };
    let taught = example(7);
    let (mut store, _) = Store::create_or_open(folder.path(), &IDENTITY, &sealed([1; 32]), 5).unwrap();
    store.replay.append(std::slice::from_ref(&taught)).unwrap();
    drop(store);
    let refused = |key: Option<&StoreKey>| Store::open_read(folder.path(), key).map(drop).unwrap_err();
    assert!(matches!(refused(None), StoreError::Replay(ReplayError::KeyRequired)), "{:?}", refused(None));
    let wrong = refused(Some(&StoreKey::new([2; 32])));
    assert!(matches!(wrong, StoreError::Replay(ReplayError::WrongKey)), "{wrong:?}");
    let (mut store, _) = Store::open(folder.path(), &sealed([1; 32]), 6).unwrap();
    let id = store.replay.iter().next().unwrap().id;
    assert_eq!(store.replay.read(id).unwrap(), taught);
    assert_eq!(format!("{:?}", sealed([9; 32]).key), "Some(StoreKey(..))");
}
