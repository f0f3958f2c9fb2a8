//! What is forgotten is in no file, nothing else is lost, and a call that fails at any point is made good at the next open.

use std::collections::{BTreeSet, HashSet};
use std::fs;

use mynah_models::adapter::{Adapter, LoraConfig};
use mynah_models::projection::Projection;

use super::saved::tests::model;
use super::saved::{FAST, encode};
use super::*;
use crate::checkpoint::{Draft, RevisionKind, SectionData};
use crate::example::{Example, ExampleId};
use crate::files::faulty::{EINTR, EIO, ENOSPC, FaultyFiles};
use crate::learn::{Examples, History, LearnerState, Lineage, Method, RunSettings, TrainerConfig};
use crate::replay::Policy;

const IDENTITY: Identity = Identity { base_digest: [0xB5; 32], tokenizer_digest: [0x70; 32] };
const OPTIONS: StoreOptions =
    StoreOptions { replay_capacity_bytes: 1 << 20, keep: Keep::DEFAULT, key: None, eviction: None };
/// Bytes that do not repeat by chance in files of this size.
const WINDOW_BYTES: usize = 8;

fn open(path: &Path) -> Store {
    Store::create_or_open(path, &IDENTITY, &OPTIONS, 5).unwrap().0
}

fn example(id: u32, task: &str) -> Example {
    let answer: Vec<u32> = (0..20).map(|at| 1000 + (id * 7919 + at * 104_729) % 40_000).collect();
    Example::new(&[1, id], &answer, 2, task, u64::from(100 * id)).unwrap()
}

/// The `state` of learners that have trained on `ids`.
fn state(ids: &[u64]) -> Vec<u8> {
    let lora = LoraConfig { rank: 1, target_modules: vec![Projection::Q], ..LoraConfig::default() };
    let learners = LearnerState::new(Adapter::init(&model(), &lora, 1).unwrap());
    let mut history = History::new(Policy::Reservoir, 9);
    let (method, trainer) = (Method::default(), TrainerConfig::default());
    let settings = RunSettings { examples: Examples::NotYetLearned(None), method, trainer, batch_rows: 1, seed: 0 };
    let ids: Vec<ExampleId> = ids.iter().copied().map(ExampleId).collect();
    history.begin(settings, ids.clone(), ids.len() as u64, |_| None);
    history.step_done(&ids, &vec![1.0; ids.len()]);
    encode(&learners, &history).unwrap()
}

fn commit(store: &mut Store, kind: RevisionKind, learned: &[u64]) -> u64 {
    let state = state(learned);
    let sections = [(saved::STATE, SectionData::Bytes(&state)), (FAST, SectionData::F32(&[1.0; 4]))];
    store.revisions.commit(&Draft { kind, parent: None, created_unix_s: 0, sections: &sections }).unwrap().number
}

/// Every file below `folder`, by its place in it.
fn files_below(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    found
}

fn windows(files: &[(PathBuf, Vec<u8>)]) -> BTreeSet<&[u8]> {
    files.iter().flat_map(|(_, bytes)| bytes.windows(WINDOW_BYTES)).collect()
}

/// A store that was taught six examples, three and four of the task `mum`, and the bytes that came into its files with
/// these two: none of them may be left.
///
/// Revisions 1, 2 and 3 have learned from `[1, 2]`, `[1, 2, 3]` and `[1, 2, 3, 5]`.
fn taught(path: &Path) -> Vec<Vec<u8>> {
    let mut store = open(path);
    store.replay.append(&[example(1, "dog"), example(2, "dog")]).unwrap();
    drop(store);
    let before = files_below(path);
    let mut store = open(path);
    store.replay.append(&[example(3, "mum"), example(4, "mum")]).unwrap();
    drop(store);
    let after = files_below(path);
    let known = windows(&before);
    // A byte before padding comes again by chance.
    let is_content = |bytes: &&&[u8]| bytes.iter().filter(|byte| ![0, 0xFF].contains(*byte)).count() > WINDOW_BYTES / 2;
    let secret: Vec<Vec<u8>> =
        windows(&after).difference(&known).filter(is_content).map(|bytes| bytes.to_vec()).collect();
    assert!(secret.len() > 40, "{}", secret.len());
    let mut store = open(path);
    store.replay.append(&[example(5, "dog"), example(6, "dog")]).unwrap();
    commit(&mut store, RevisionKind::Published, &[1, 2]);
    commit(&mut store, RevisionKind::Step, &[1, 2, 3]);
    commit(&mut store, RevisionKind::Published, &[1, 2, 3, 5]);
    secret
}

fn mum() -> Forget {
    Forget::Task("mum".to_owned())
}

fn ids(ids: &Lineage) -> Vec<u64> {
    ids.ids().map(|id| id.0).collect()
}

fn numbers(store: &Store) -> Vec<u64> {
    store.revisions.list().iter().map(|info| info.number).collect()
}

fn assert_gone(path: &Path, secret: &[Vec<u8>]) {
    let secret: HashSet<&[u8]> = secret.iter().map(|bytes| &bytes[..]).collect();
    let files = files_below(path);
    let windows = files.iter().flat_map(|(_, bytes)| bytes.windows(WINDOW_BYTES));
    let left: Vec<&[u8]> = windows.filter(|bytes| secret.contains(bytes)).collect();
    assert!(left.is_empty(), "of {} pieces of what was to be forgotten, these are left: {left:x?}", secret.len());
}

/// All that is to hold once the task `mum` is forgotten.
fn assert_forgotten(path: &Path, secret: &[Vec<u8>]) {
    let mut store = open(path);
    let [receipt] = store.receipts() else { panic!("{:?}", store.receipts()) };
    assert!(receipt.is_forgotten() && !receipt.is_complete());
    assert_eq!((receipt.number, ids(&receipt.records), ids(&receipt.queued)), (1, vec![3, 4], vec![5]));
    assert_eq!((&receipt.dropped_revisions[..], receipt.back_to), (&[2, 3][..], BackTo::Revision(1)));
    assert_eq!(numbers(&store), [1]);
    let left: Vec<u64> = store.replay.iter().map(|info| info.id.0).collect();
    assert_eq!(left, [1, 2, 5, 6]);
    for id in left {
        assert_eq!(store.replay.read(ExampleId(id)).unwrap(), example(id as u32, "dog"));
    }
    assert!(store.verify().unwrap().is_ok());
    drop(store);
    assert_gone(path, secret);
}

#[test]
fn records_their_bytes_and_what_learned_from_them_are_gone() {
    let folder = tempfile::tempdir().unwrap();
    let secret = taught(folder.path());
    let mut store = open(folder.path());
    let receipt = store.forget(&mum(), 77).unwrap();
    assert_eq!((receipt.requested_unix_s, receipt.erased_unix_s), (77, Some(77)));
    drop(store);
    assert_forgotten(folder.path(), &secret);
    let mut store = open(folder.path());
    store.settle_receipts(&lineage_of(&[1, 2]), 88).unwrap();
    assert!(!store.receipts()[0].is_complete(), "5 is not learned again yet");
    store.settle_receipts(&lineage_of(&[1, 2, 5]), 99).unwrap();
    assert_eq!(store.receipts()[0].relearned_unix_s, Some(99));
    drop(store);
    let mut store = open(folder.path());
    assert!(store.receipts()[0].is_complete());
    assert_eq!(commit(&mut store, RevisionKind::Step, &[1]), 4, "numbers of what was dropped are not given again");
}

fn lineage_of(ids: &[u64]) -> Lineage {
    let mut lineage = Lineage::default();
    ids.iter().for_each(|id| lineage.insert(ExampleId(*id)));
    lineage
}

#[test]
fn where_every_revision_learned_from_it_nothing_is_learned_any_more() {
    let folder = tempfile::tempdir().unwrap();
    taught(folder.path());
    let mut store = open(folder.path());
    let receipt = store.forget(&Forget::Ids(vec![ExampleId(2)]), 7).unwrap();
    assert_eq!((receipt.back_to, ids(&receipt.queued)), (BackTo::NothingLearned, vec![1, 3, 5]));
    assert_eq!((numbers(&store), store.stat().newest_revision), (vec![], None));
    // What is queued may be forgotten too; then nobody waits for it.
    store.forget(&Forget::Before(501), 8).unwrap();
    assert_eq!(store.replay.iter().map(|info| info.id.0).collect::<Vec<_>>(), [6]);
    store.settle_receipts(&Lineage::default(), 9).unwrap();
    assert!(store.receipts().iter().all(Receipt::is_complete));
    drop(store);
    assert_eq!(commit(&mut open(folder.path()), RevisionKind::Step, &[6]), 4);
}

#[test]
fn what_nobody_learned_from_costs_no_revision() {
    let folder = tempfile::tempdir().unwrap();
    taught(folder.path());
    let mut store = open(folder.path());
    let receipt = store.forget(&Forget::Ids(vec![ExampleId(6), ExampleId(4)]), 7).unwrap();
    assert_eq!((receipt.back_to, receipt.is_complete()), (BackTo::Unchanged, true));
    assert_eq!(numbers(&store), [1, 2, 3]);
}

#[test]
fn what_is_not_there_cannot_be_forgotten_and_leaves_no_receipt() {
    let folder = tempfile::tempdir().unwrap();
    taught(folder.path());
    let mut store = open(folder.path());
    let missing = store.forget(&Forget::Ids(vec![ExampleId(1), ExampleId(60)]), 7).unwrap_err();
    assert!(matches!(missing, StoreError::Replay(ReplayError::NotFound { id: ExampleId(60) })), "{missing}");
    for request in [Forget::Task("cat".to_owned()), Forget::Before(100), Forget::Ids(Vec::new())] {
        assert!(matches!(store.forget(&request, 7), Err(StoreError::NothingToForget { .. })));
    }
    assert!(store.receipts().is_empty() && store.replay.len() == 6);
    drop(store);
    let (mut reading, _) = Store::open_read(folder.path(), None).unwrap();
    assert!(matches!(reading.forget(&mum(), 7), Err(StoreError::ReadOnly { .. })));
}

#[test]
fn a_revision_that_cannot_be_read_is_not_taken_for_clean() {
    let folder = tempfile::tempdir().unwrap();
    let secret = taught(folder.path());
    // The newest is set aside when the store is opened, the oldest is found out only when it is read.
    for (name, at) in [("00000003.rev", 400), ("00000001.rev", 260)] {
        let path = folder.path().join("revisions").join(name);
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
    }
    let mut store = open(folder.path());
    assert_eq!(numbers(&store), [1, 2]);
    let receipt = store.forget(&mum(), 7).unwrap();
    assert_eq!((&receipt.dropped_revisions[..], receipt.back_to), (&[1, 2, 3][..], BackTo::NothingLearned));
    assert!(store.verify().unwrap().is_ok());
    drop(store);
    assert_eq!(fs::read_dir(folder.path().join("revisions")).unwrap().count(), 0);
    assert_gone(folder.path(), &secret);
}

#[test]
fn a_damaged_receipt_is_reported_and_its_number_not_given_again() {
    let folder = tempfile::tempdir().unwrap();
    taught(folder.path());
    open(folder.path()).forget(&mum(), 7).unwrap();
    let path = folder.path().join("receipts/00000001.receipt");
    let mut bytes = fs::read(&path).unwrap();
    bytes[20] ^= 1;
    fs::write(&path, bytes).unwrap();
    let mut store = open(folder.path());
    let found = store.verify().unwrap();
    assert!(!found.is_ok() && found.problems()[0].contains("00000001.receipt"), "{:?}", found.problems());
    assert_eq!(store.forget(&Forget::Ids(vec![ExampleId(6)]), 8).unwrap().number, 2);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// Forgets with `first`, of which one call fails, and again with `second`, as if a kill had come there; then opens as usual.
/// Whether a call of each failed.
fn fail_and_finish(template: &Path, secret: &[Vec<u8>], first: FaultyFiles, second: Option<FaultyFiles>) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    copy(template, path);
    let (first, error) = (Arc::new(first), "an interrupted call is made again");
    let is_interrupt = first.error() == EINTR;
    let is_done = match Store::open_with(first.clone(), path, &OPTIONS, 5) {
        Ok((mut store, _)) => {
            store.forget(&mum(), 6).map_err(|found| assert!(!is_interrupt, "{error}: {found}")).is_ok()
        }
        Err(found) => {
            assert!(!is_interrupt, "{error}: {found}");
            false
        }
    };
    if let Some(second) = second {
        drop(Store::open_with(Arc::new(second), path, &OPTIONS, 7));
    }
    let store = open(path);
    if store.receipts().is_empty() {
        assert!(!is_done, "a receipt that was handed out is kept");
        assert_eq!((store.replay.len(), numbers(&store)), (6, vec![1, 2, 3]), "nothing was begun");
    } else {
        drop(store);
        assert_forgotten(path, secret);
    }
    first.has_failed()
}

fn fail_once(failing: impl Fn(usize) -> FaultyFiles) {
    let template = tempfile::tempdir().unwrap();
    let secret = taught(template.path());
    let mut nth = 0;
    while fail_and_finish(template.path(), &secret, failing(nth), None) {
        nth += 1;
    }
    assert!(nth > 40, "{nth} calls");
}

#[test]
fn whichever_file_call_fails_forgetting_is_finished_at_the_next_open() {
    fail_once(|nth| FaultyFiles::new(nth, EIO));
}

#[test]
#[ignore = "takes minutes"]
fn whichever_way_a_file_call_fails_forgetting_is_finished_at_the_next_open() {
    fail_once(|nth| FaultyFiles::new(nth, ENOSPC));
    fail_once(|nth| FaultyFiles::new(nth, EINTR));
    fail_once(|nth| FaultyFiles::after_the_fact(nth, EIO));
}

#[test]
#[ignore = "takes minutes"]
fn forgetting_is_finished_after_any_two_failures() {
    let template = tempfile::tempdir().unwrap();
    let secret = taught(template.path());
    let (mut nth, mut is_failing) = (0, true);
    while is_failing {
        for second in 0..80 {
            let failing = || FaultyFiles::new(nth, EIO);
            is_failing = fail_and_finish(template.path(), &secret, failing(), Some(FaultyFiles::new(second, EIO)));
        }
        nth += 1;
    }
}
