//! Learning that is interrupted and taken up again, through a store on disk.

use std::fs;
use std::path::{Path, PathBuf};

use mynah::learn::{Examples, Method, OptimizerConfig, TrainerConfig};
use mynah::replay::Policy;
use mynah::session::{EvalTask, Interaction, LearnRequest};
use mynah::{Budget, Learner, Session, SessionBuilder, StoppedBy};
use mynah_models::adapter::LoraConfig;
use mynah_tests::stories;

const STEPS: u64 = 6;

fn builder(store: &Path) -> SessionBuilder {
    let optimizer = OptimizerConfig { learning_rate: 3e-3, ..OptimizerConfig::default() };
    let trainer = TrainerConfig { optimizer, ..TrainerConfig::default() };
    let session = Session::builder(stories::gguf()).end_token(stories::END_TOKEN).trainer(trainer);
    session.lora(LoraConfig { rank: 2, ..LoraConfig::default() }).seed(8).store(store)
}

fn open(store: &Path) -> Session {
    builder(store).open().unwrap()
}

fn facts(task: &str) -> Vec<Interaction> {
    let facts = [("ball", "red"), ("hat", "blue"), ("box", "green"), ("cat", "red"), ("car", "blue")];
    facts.iter().map(|(thing, colour)| Interaction::raw(task, format!("The {task} {thing} is"), *colour)).collect()
}

fn request(task: &str) -> LearnRequest {
    let examples = Examples::NotYetLearned(Some(task.to_owned()));
    LearnRequest { examples, steps: Some(STEPS), batch_rows: 2, ..LearnRequest::default() }
}

/// The bits of both adapters.
fn bits(session: &Session) -> [Vec<u32>; 2] {
    [Learner::Fast, Learner::Slow]
        .map(|learner| session.adapter(learner).values().iter().map(|v| v.to_bits()).collect())
}

/// Learns two tasks without a stop.
fn uninterrupted(method: Method) -> [Vec<u32>; 2] {
    let folder = tempfile::tempdir().unwrap();
    let mut session = builder(folder.path()).method(method).open().unwrap();
    for task in ["first", "second"] {
        session.observe_batch(&facts(task)).unwrap();
        let report = session.learn(&request(task), Budget::unlimited()).unwrap();
        assert_eq!(report.stopped_by, StoppedBy::Finished);
    }
    bits(&session)
}

/// Files in the store's folder of revisions.
fn revisions(store: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(store.join("revisions")).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn stopped_after_every_step_and_reopened_is_as_never_stopped() {
    for method in Method::ALL {
        let folder = tempfile::tempdir().unwrap();
        for task in ["first", "second"] {
            for step in 1..=STEPS {
                let mut session = builder(folder.path()).method(method).open().unwrap();
                session.observe_batch(&facts(task)).unwrap();
                let report = session.learn(&request(task), Budget::steps(1)).unwrap();
                assert_eq!((report.steps, report.steps_done), (1, step), "{method:?}, {task}");
            }
        }
        assert_eq!(bits(&open(folder.path())), uninterrupted(method), "{method:?}");
    }
}

#[test]
fn every_memory_policy_replays_the_same_after_a_stop() {
    let surprise = Policy::Surprise { random_percent: 50 };
    for policy in [Policy::Reservoir, Policy::BalancedReservoir { floor: 1 }, Policy::Ring, surprise] {
        let learned = |slice: Budget| {
            let folder = tempfile::tempdir().unwrap();
            for task in ["first", "second", "third"] {
                loop {
                    let builder = builder(folder.path()).memory_policy(policy).memory_examples(4);
                    let mut session = builder.open().unwrap();
                    session.observe_batch(&facts(task)).unwrap();
                    let report = session.learn(&request(task), slice).unwrap();
                    assert!(session.status().remembered <= 4);
                    if report.steps_done == report.steps_total {
                        break;
                    }
                }
            }
            bits(&open(folder.path()))
        };
        assert!(learned(Budget::steps(1)) == learned(Budget::unlimited()), "{policy:?}");
    }
}

#[test]
fn a_cancel_in_any_step_costs_that_step_only() {
    let expected = uninterrupted(Method::default());
    let folder = tempfile::tempdir().unwrap();
    for task in ["first", "second"] {
        for step in 0..STEPS {
            let mut session = open(folder.path());
            session.observe_batch(&facts(task)).unwrap();
            session.control().cancel();
            let none = session.learn(&request(task), Budget::unlimited()).unwrap();
            assert_eq!((none.steps, none.stopped_by, none.steps_done), (0, StoppedBy::Cancelled, step));
            session.learn(&request(task), Budget::steps(1)).unwrap();
        }
    }
    assert_eq!(bits(&open(folder.path())), expected);
}

#[test]
fn a_revision_that_never_came_or_is_damaged_costs_its_steps_only() {
    let expected = uninterrupted(Method::default());
    for (damage, learn_steps) in [(false, 2), (true, 2), (false, 5), (true, 1)] {
        let folder = tempfile::tempdir().unwrap();
        for task in ["first", "second"] {
            let mut session = open(folder.path());
            session.observe_batch(&facts(task)).unwrap();
            session.learn(&request(task), Budget::steps(learn_steps)).unwrap();
            session.learn(&request(task), Budget::steps(1)).unwrap();
            drop(session);
            let newest = revisions(folder.path()).pop().unwrap();
            if damage {
                let mut bytes = fs::read(&newest).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 4;
                fs::write(&newest, bytes).unwrap();
            } else {
                fs::rename(&newest, newest.with_extension("rev.tmp")).unwrap();
            }
            let mut session = open(folder.path());
            let report = session.learn(&request(task), Budget::unlimited()).unwrap();
            assert_eq!((report.steps, report.steps_done), (STEPS - learn_steps, STEPS), "{damage}, {task}");
        }
        assert_eq!(bits(&open(folder.path())), expected);
    }
}

#[test]
fn commits_may_be_rarer_than_steps() {
    let folder = tempfile::tempdir().unwrap();
    let mut session = builder(folder.path()).commit_every_steps(4).open().unwrap();
    for task in ["first", "second"] {
        session.observe_batch(&facts(task)).unwrap();
        let report = session.learn(&request(task), Budget::unlimited()).unwrap();
        assert_eq!(report.revision, Some(if task == "first" { 2 } else { 4 }), "after steps 4 and 6");
        assert!(report.bytes_written > 0);
    }
    drop(session);
    assert_eq!(bits(&open(folder.path())), uninterrupted(Method::default()));
}

#[test]
fn bytes_are_a_budget_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut session = open(folder.path());
    session.observe_batch(&facts("first")).unwrap();
    let one = session.learn(&request("first"), Budget::steps(1)).unwrap();
    let limit = 5 * one.bytes_written / 2;
    let budget = Budget { bytes: Some(limit), ..Budget::unlimited() };
    let report = session.learn(&request("first"), budget).unwrap();
    assert_eq!((report.steps, report.stopped_by), (2, StoppedBy::Bytes));
    assert!(report.bytes_written <= limit);
}

#[test]
fn what_was_taught_is_there_after_a_restart_and_is_not_stored_twice() {
    let folder = tempfile::tempdir().unwrap();
    let ids = open(folder.path()).observe_batch(&facts("first")[..3]).unwrap();
    let mut session = open(folder.path());
    assert_eq!(session.status().examples, 3);
    let again = session.observe_batch(&facts("first")).unwrap();
    assert_eq!((again.len(), &again[..3], session.status().examples), (5, &ids[..], 5));
}

#[test]
fn a_taught_answer_is_known_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut session = open(folder.path());
    session.observe_batch(&facts("first")).unwrap();
    session.learn(&LearnRequest { steps: Some(80), ..request("first") }, Budget::unlimited()).unwrap();
    drop(session);
    let task = EvalTask { name: "first".to_owned(), items: facts("first") };
    let report = open(folder.path()).eval(&[task], Learner::Slow).unwrap();
    assert_eq!(report.mean(), 1.0);
}

#[test]
fn another_request_gives_up_the_run_in_hand() {
    let folder = tempfile::tempdir().unwrap();
    let mut session = open(folder.path());
    session.observe_batch(&facts("first")).unwrap();
    session.learn(&request("first"), Budget::steps(1)).unwrap();
    let longer = LearnRequest { steps: Some(STEPS + 1), ..request("first") };
    let report = session.learn(&longer, Budget::unlimited()).unwrap();
    let run = session.status().run.unwrap();
    // The first step trained on two of the five.
    assert_eq!((report.steps, run.number, run.examples, session.status().remembered), (STEPS + 1, 2, 3, 2));
}

#[test]
fn a_run_asked_for_again_is_finished_unless_it_is_to_be_done_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut session = open(folder.path());
    let ids = session.observe_batch(&facts("first")).unwrap();
    let these = LearnRequest { examples: Examples::These(ids), ..request("") };
    session.learn(&these, Budget::unlimited()).unwrap();
    let done = bits(&session);
    drop(session);
    let mut session = open(folder.path());
    let nothing = session.learn(&these, Budget::unlimited()).unwrap();
    assert_eq!((nothing.steps, nothing.steps_done, nothing.stopped_by), (0, STEPS, StoppedBy::Finished));
    assert_eq!(bits(&session), done);
    let once_more = session.learn(&LearnRequest { again: true, ..these.clone() }, Budget::steps(2)).unwrap();
    assert_eq!((once_more.steps, session.status().run.unwrap().number), (2, 2));
    let rest = session.learn(&these, Budget::unlimited()).unwrap();
    assert_eq!(rest.steps, STEPS - 2, "the run in hand goes on");
    // What waits to be learned makes a run of its own.
    session.observe_batch(&facts("second")).unwrap();
    session.learn(&request("second"), Budget::unlimited()).unwrap();
    assert_eq!(session.learn(&request("second"), Budget::unlimited()).unwrap().steps, 0);
    session.observe(&facts("second")[0]).unwrap();
    assert_eq!(session.learn(&request("second"), Budget::unlimited()).unwrap().steps, STEPS);
}

#[test]
fn back_to_an_earlier_revision_and_on_from_there() {
    let folder = tempfile::tempdir().unwrap();
    let mut session = open(folder.path());
    session.observe_batch(&facts("first")).unwrap();
    let first = session.learn(&request("first"), Budget::unlimited()).unwrap().revision.unwrap();
    let before = bits(&session);
    session.observe_batch(&facts("second")).unwrap();
    session.learn(&request("second"), Budget::unlimited()).unwrap();
    assert_eq!(session.status().learned, 10);
    session.rollback(first).unwrap();
    assert_eq!((bits(&session), session.status().learned), (before.clone(), 5));
    drop(session);
    let mut session = open(folder.path());
    assert_eq!((bits(&session), session.status().learned, session.status().examples), (before, 5, 10));
    session.learn(&request("second"), Budget::unlimited()).unwrap();
    assert_eq!(bits(&session), uninterrupted(Method::default()));
    let missing = session.rollback(999).unwrap_err();
    assert_eq!(missing.kind(), "store");
}

#[test]
fn back_to_before_anything_was_learned() {
    let folder = tempfile::tempdir().unwrap();
    let mut session = open(folder.path());
    let before = bits(&session);
    session.observe_batch(&facts("first")).unwrap();
    session.learn(&request("first"), Budget::unlimited()).unwrap();
    let learned = bits(&session);
    session.rollback(0).unwrap();
    drop(session);
    let mut session = open(folder.path());
    let status = session.status();
    assert_eq!((bits(&session), status.learned, status.examples, status.steps), (before, 0, 5, 0));
    session.learn(&request("first"), Budget::unlimited()).unwrap();
    assert_eq!(bits(&session), learned, "and forward again");
}

#[test]
fn a_wear_budget_makes_commits_rarer_and_changes_nothing_else() {
    let bytes_written = |daily_wear_bytes: u64| {
        let folder = tempfile::tempdir().unwrap();
        let mut session = builder(folder.path()).daily_wear_bytes(daily_wear_bytes).open().unwrap();
        let mut written = 0;
        for task in ["first", "second"] {
            session.observe_batch(&facts(task)).unwrap();
            written += session.learn(&request(task), Budget::unlimited()).unwrap().bytes_written;
        }
        assert_eq!(bits(&session), uninterrupted(Method::default()));
        written
    };
    let (every_step, ends_only) = (bytes_written(u64::MAX), bytes_written(0));
    let third = bytes_written(every_step / 3);
    assert!(ends_only < third && third <= every_step / 3 + ends_only, "{ends_only}, {third} of {every_step}");
}

#[test]
fn one_session_writes_and_others_may_look() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = open(folder.path());
    writer.observe_batch(&facts("first")).unwrap();
    writer.learn(&request("first"), Budget::unlimited()).unwrap();
    let refused = builder(folder.path()).open().unwrap_err();
    assert!(refused.kind() == "store" && refused.to_string().contains("in use"), "{refused}");
    let mut reader = builder(folder.path()).read_only().open().unwrap();
    assert_eq!(bits(&reader), bits(&writer));
    assert_eq!(reader.observe_batch(&facts("second")).unwrap_err().kind(), "store");
    assert_eq!(writer.observe_batch(&facts("second")).unwrap().len(), 5);
}

#[test]
fn a_store_says_whose_it_is() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()));
    let mut other = fs::read(stories::file()).unwrap();
    let last = other.len() - 4;
    other[last] ^= 1;
    let other = mynah_models::weights::Gguf::from_bytes(other).unwrap();
    for read_only in [false, true] {
        let builder = Session::builder(other.clone()).store(folder.path());
        let builder = if read_only { builder.read_only() } else { builder };
        let refused = builder.open().unwrap_err();
        assert!(refused.to_string().contains("belongs to base model"), "{refused}");
    }
    let mut session = open(folder.path());
    session.observe_batch(&facts("first")).unwrap();
    session.learn(&request("first"), Budget::steps(1)).unwrap();
    drop(session);
    let refused = builder(folder.path()).lora(LoraConfig::default()).open().unwrap_err();
    assert_eq!(refused.kind(), "other_lora");
    let none = Session::builder(stories::gguf()).store(folder.path().join("none")).read_only().open().unwrap_err();
    assert!(none.to_string().contains("not a store"), "{none}");
}
