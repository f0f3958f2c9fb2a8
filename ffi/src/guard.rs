//! The panic border: what unwinds ends here, as a status and a message.

use std::panic::{AssertUnwindSafe, catch_unwind};

use runtime::Session;

use crate::handle;
use crate::session::SessionHandle;
use crate::status::{Failure, Status, remember_on_thread};

/// Does the work of a call without a session; a failure's message is kept on this thread.
pub(crate) fn entry(work: impl FnOnce() -> Result<(), Failure>) -> Status {
    match caught(work) {
        Ok(()) => Status::OK,
        Err(failure) => {
            remember_on_thread(&failure.message);
            failure.status
        }
    }
}

/// Does the work of a call that needs no turn with the session: it may run beside another one.
///
/// # Safety
/// `session` is NULL or open.
pub(crate) unsafe fn beside(
    session: *const SessionHandle,
    work: impl FnOnce(&SessionHandle) -> Result<(), Failure>,
) -> Status {
    entry(|| {
        // SAFETY: the caller promises that `session` is NULL or open.
        let handle = unsafe { handle::borrow(session, "session") }?;
        handle.remember(caught(|| work(handle)))
    })
}

/// Does the work of a call that has the session for itself. A panic in it leaves the session poisoned.
///
/// # Safety
/// `session` is NULL or open.
pub(crate) unsafe fn alone(
    session: *const SessionHandle,
    work: impl FnOnce(&SessionHandle, &mut Session) -> Result<(), Failure>,
) -> Status {
    let in_turn = |handle: &SessionHandle| {
        let mut session = handle.turn()?;
        work(handle, &mut session)
    };
    // SAFETY: the caller promises that `session` is NULL or open.
    unsafe { beside(session, in_turn) }
}

fn caught(work: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    // What a panic leaves half done is the session's, and its lock is poisoned then.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| Err(Failure::panic(&*payload)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_status_with_its_message() {
        assert_eq!(entry(|| panic!("slot {} is empty", 3)), Status::PANIC);
        let failure = caught(|| panic!("slot {} is empty", 3)).unwrap_err();
        assert_eq!(failure.message, "internal error: slot 3 is empty");
        assert_eq!(entry(|| Ok(())), Status::OK);
    }
}
