//! What C cannot show: a panic inside a call.

use std::mem::size_of;

use super::*;
use crate::learn::{LearnBudget, LearnReport};
use crate::status::mynah_last_error;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../cli/assets/stories260K.gguf");

fn open() -> *mut SessionHandle {
    let session = Session::builder(MODEL).open().unwrap();
    handle::give(SessionHandle::new(session, PromptFormat::Auto))
}

fn message(session: *const SessionHandle) -> String {
    let mut buffer = [0_u8; 200];
    // SAFETY: the session is open, and the buffer has its length.
    let len = unsafe { mynah_last_error(session, buffer.as_mut_ptr().cast(), buffer.len()) };
    String::from_utf8(buffer[..len].to_vec()).unwrap()
}

#[test]
fn after_a_panic_a_session_can_only_be_closed() {
    let session = open();
    let mut progress = Progress { struct_size: 32, phase: Phase::Other, done: 1, total: 1, loss: 1.0 };
    let mut id = 5;
    // SAFETY: the session is open until it is closed, and every text has its length.
    unsafe {
        assert_eq!(guard::alone(session, |_, _| panic!("a bug")), Status::PANIC);
        assert_eq!(message(session), "internal error: a bug");
        let observed = mynah_session_observe(
            session,
            b"a".as_ptr().cast(),
            1,
            b"b".as_ptr().cast(),
            1,
            ptr::null(),
            0,
            &raw mut id,
        );
        assert_eq!((observed, id), (Status::POISONED, 0));
        assert_eq!(mynah_session_progress(session, &raw mut progress), Status::POISONED);
        assert_eq!(progress, Progress { struct_size: 32, phase: Phase::Idle, done: 0, total: 0, loss: 0.0 });
        assert!(message(session).contains("panicked before"));
        assert_eq!(mynah_session_cancel(session), Status::OK);
        assert_eq!(mynah_session_close(session), Status::OK);
    }
}

#[test]
fn a_busy_session_keeps_its_own_message() {
    let session = open();
    // SAFETY: the session is open until it is closed.
    unsafe {
        let nested = |_: &SessionHandle, _: &mut Session| {
            assert_eq!(mynah_session_close(session), Status::BUSY);
            assert_eq!(guard::alone(session, |_, _| Ok(())), Status::BUSY);
            assert!(message(ptr::null()).contains("is running"));
            assert_eq!(message(session), "");
            Ok(())
        };
        assert_eq!(guard::alone(session, nested), Status::OK);
        assert_eq!(mynah_session_close(session), Status::OK);
        assert_eq!(mynah_session_close(ptr::null_mut()), Status::OK);
    }
}

#[test]
fn zeros_are_the_defaults() {
    // SAFETY: NULL is allowed.
    let settings = unsafe { handle::read_pod(ptr::null::<GenerateSettings>(), "settings") }.unwrap();
    assert_eq!(settings.options(), GenerateOptions::default());
}

#[test]
fn layouts_are_those_of_version_1() {
    assert_eq!(size_of::<GenerateSettings>(), GenerateSettings::FIRST_SIZE_BYTES);
    assert_eq!(size_of::<GenerateReport>(), GenerateReport::FIRST_SIZE_BYTES);
    assert_eq!(size_of::<SessionState>(), SessionState::FIRST_SIZE_BYTES);
    assert_eq!(size_of::<Progress>(), Progress::FIRST_SIZE_BYTES);
    assert_eq!(size_of::<LearnBudget>(), LearnBudget::FIRST_SIZE_BYTES);
    assert_eq!(size_of::<LearnReport>(), LearnReport::FIRST_SIZE_BYTES);
}
