//! Failures become status numbers, and messages that can be asked for.

use std::any::Any;
use std::cell::RefCell;
use std::error::Error;
use std::ffi::c_char;

use runtime::SessionError;

use crate::session::SessionHandle;
use crate::{handle, text};

/// How a call ended. Numbers are grouped, never change their meaning and are never used again; unknown ones are
/// failures.
/// cbindgen:rename-all=prefix:MYNAH_
#[allow(non_camel_case_types, clippy::upper_case_acronyms, reason = "they are C constants")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Status {
    /// It did what it says.
    OK = 0,

    // 1 to 19: the call itself is wrong.
    /// A pointer is NULL that must not be, a struct_size is wrong, or a number is none of those that are allowed.
    INVALID_ARGUMENT = 1,
    /// A text is not UTF-8.
    INVALID_UTF8 = 2,
    /// A setting of generating or learning is out of range.
    SETTING = 3,

    // 20 to 39: the session is not free to do it.
    /// Another call on this session is running, perhaps the one that this callback belongs to.
    BUSY = 20,
    /// A call on this session panicked before. It can only be closed.
    POISONED = 21,
    /// This call panicked. The session can only be closed; what was stored before is kept.
    PANIC = 22,
    /// Someone cancelled, and the call has no result to give.
    CANCELLED = 23,

    // 40 to 59: files.
    /// The model file cannot be used.
    LOAD = 40,
    /// The model's vocabulary cannot be used.
    TOKENIZER = 41,
    /// The store cannot be opened, read or written.
    STORE = 42,
    /// An adapter cannot be made, read or written.
    ADAPTER = 43,
    /// The store's adapters have another form.
    OTHER_LORA = 44,

    // 60 to 79: what is asked of the model.
    /// A text or an interaction cannot be put into tokens: empty, too long, or refused by the chat template.
    WORDING = 60,
    /// Text could not be generated: an empty prompt, or one longer than the context.
    GENERATE = 61,
    /// A step of learning failed.
    LEARN = 62,
    /// No example is waiting to be learned.
    NOTHING_TO_LEARN = 63,
    /// A text is too short to be scored.
    TEXT_TOO_SHORT = 64,

    // 80 to 99: the machine.
    /// The device failed.
    DEVICE = 80,
    /// The system gives no more threads.
    THREADS = 81,

    /// A failure that this interface has no number for; the message says what it is.
    OTHER = 100,
}

impl Status {
    /// The number of a [`SessionError::kind`].
    fn of_kind(kind: &str) -> Self {
        match kind {
            "load" => Self::LOAD,
            "tokenizer" => Self::TOKENIZER,
            "wording" => Self::WORDING,
            "adapter" => Self::ADAPTER,
            "store" => Self::STORE,
            "generate" => Self::GENERATE,
            "learn" => Self::LEARN,
            "device" => Self::DEVICE,
            "cancelled" => Self::CANCELLED,
            "setting" => Self::SETTING,
            "nothing_to_learn" => Self::NOTHING_TO_LEARN,
            "text_too_short" => Self::TEXT_TOO_SHORT,
            "other_lora" => Self::OTHER_LORA,
            "threads" => Self::THREADS,
            _ => Self::OTHER,
        }
    }
}

/// Why a call has no result: a number for programs, a message for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) status: Status,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(status: Status, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    pub(crate) fn null(name: &str) -> Self {
        Self::new(Status::INVALID_ARGUMENT, format!("`{name}` is NULL"))
    }

    /// What a panic carried.
    pub(crate) fn panic(payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<&str>().copied().map(str::to_owned);
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        Self::new(Status::PANIC, format!("internal error: {}", text.unwrap_or_else(|| "no message".to_owned())))
    }
}

impl From<SessionError> for Failure {
    fn from(error: SessionError) -> Self {
        Self::new(Status::of_kind(error.kind()), with_causes(&error))
    }
}

/// An error's message and those of its causes, each after a colon, if they say anything new.
fn with_causes(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !message.ends_with(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        cause = error.source();
    }
    message
}

thread_local! {
    /// Message of the newest failed call on this thread.
    static LAST_MESSAGE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps a message for `mynah_last_error` with NULL on this thread.
pub(crate) fn remember_on_thread(message: &str) {
    LAST_MESSAGE.with_borrow_mut(|last| {
        last.clear();
        last.push_str(message);
    });
}

/// The message of the newest failure: with a session, of that session's calls on any thread; with NULL, of any call on
/// this thread. MYNAH_BUSY is kept on the thread only. Success does not clear it; before the first failure it is empty.
///
/// Returns the message's length in bytes without the terminating NUL. At most `buffer_len - 1` bytes of it are copied,
/// whole characters only, and a NUL is put after them. With NULL for `buffer` or 0 for `buffer_len` nothing is copied.
/// May be called from any thread while another call runs.
///
/// # Safety
/// `session` is NULL or open. `buffer` is NULL or has room for `buffer_len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mynah_last_error(
    session: *const SessionHandle,
    buffer: *mut c_char,
    buffer_len: usize,
) -> usize {
    // SAFETY: the caller promises that `session` is NULL or open.
    let message = match unsafe { handle::borrow(session, "session") } {
        Ok(session) => session.last_message(),
        Err(_) => LAST_MESSAGE.with_borrow(String::clone),
    };
    // SAFETY: the caller promises that `buffer` is NULL or has room for `buffer_len` bytes.
    unsafe { text::copy_out(&message, buffer, buffer_len) }
}

#[cfg(test)]
mod tests {
    use std::ptr;

    use super::*;

    #[derive(Debug)]
    struct Outer(std::io::Error);

    impl std::fmt::Display for Outer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("cannot read the file")
        }
    }

    impl Error for Outer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn a_message_names_the_causes() {
        assert_eq!(with_causes(&Outer(std::io::Error::other("no disk"))), "cannot read the file: no disk");
    }

    #[test]
    fn an_unknown_kind_is_a_failure_all_the_same() {
        assert_eq!(Status::of_kind("nothing_to_learn"), Status::NOTHING_TO_LEARN);
        assert_eq!(Status::of_kind("of a later version"), Status::OTHER);
    }

    #[test]
    fn a_thread_keeps_its_own_message() {
        remember_on_thread("grün");
        let read = |len: usize| {
            let mut buffer = [0x7f_u8; 8];
            // SAFETY: no session is given, and the buffer has at least `len` bytes.
            let needed = unsafe { mynah_last_error(ptr::null(), buffer.as_mut_ptr().cast(), len) };
            (needed, buffer)
        };
        assert_eq!(read(8), (5, *b"gr\xc3\xbcn\0\x7f\x7f"));
        assert_eq!(read(4), (5, *b"gr\0\x7f\x7f\x7f\x7f\x7f"));
        assert_eq!(read(0), (5, [0x7f; 8]));
        let elsewhere = std::thread::spawn(|| LAST_MESSAGE.with_borrow(String::len)).join();
        assert_eq!(elsewhere.ok(), Some(0));
    }
}
