//! Sessions: open, talk, be taught, be watched and cancelled from anywhere.

use std::ffi::{c_char, c_void};
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use mynah_models::chat_template::Message;
use runtime::example::ExampleId;
use runtime::generate::{GenerateOptions, Generation, Sampling};
use runtime::session::Interaction;
use runtime::store::Forget;
use runtime::{Control, Session};

use crate::handle::Pod;
use crate::options::{Device, Options, PromptFormat};
use crate::status::{Failure, Status};
use crate::text::text;
use crate::{guard, handle};

/// A model with its adapters and its store.
///
/// It does one thing at a time, on the thread that calls: a call that comes while another one runs, or from a callback,
/// gives MYNAH_BUSY and does nothing. Only mynah_session_cancel, mynah_session_progress and mynah_last_error may come
/// at any time and from any thread.
#[derive(Debug)]
pub struct SessionHandle {
    session: Mutex<Session>,
    control: Control,
    prompt_format: PromptFormat,
    last_message: Mutex<String>,
}

impl SessionHandle {
    fn new(session: Session, prompt_format: PromptFormat) -> Self {
        let control = session.control();
        Self { session: Mutex::new(session), control, prompt_format, last_message: Mutex::default() }
    }

    /// The session, for one call.
    ///
    /// # Errors
    /// [`Status::BUSY`] while another call has it, [`Status::POISONED`] after one that panicked.
    pub(crate) fn turn(&self) -> Result<MutexGuard<'_, Session>, Failure> {
        self.session.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => Failure::new(Status::BUSY, "another call on this session is running"),
            TryLockError::Poisoned(_) => poisoned(),
        })
    }

    /// Keeps the message of a failure. Not that of a call that never had its turn: it is not the session's.
    pub(crate) fn remember(&self, outcome: Result<(), Failure>) -> Result<(), Failure> {
        if let Err(failure) = &outcome
            && failure.status != Status::BUSY
        {
            let mut last = self.last_message.lock().unwrap_or_else(PoisonError::into_inner);
            last.clone_from(&failure.message);
        }
        outcome
    }

    pub(crate) fn last_message(&self) -> String {
        self.last_message.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether prompts go through the chat template.
    fn is_chat(&self, session: &Session) -> bool {
        match self.prompt_format {
            PromptFormat::Auto => session.can_chat(),
            PromptFormat::Chat => true,
            PromptFormat::Raw => false,
        }
    }
}

fn poisoned() -> Failure {
    Failure::new(Status::POISONED, "a call on this session panicked before; it can only be closed")
}

/// Receives new text: whole characters, `text_len` bytes without a NUL at the end, valid during the call. Returns 0 to
/// go on, anything else to stop. It runs on the thread that called, must not throw or jump out, and may cancel, but not
/// use the session otherwise.
pub type TextCallback =
    Option<unsafe extern "C" fn(user_data: *mut c_void, text: *const c_char, text_len: usize) -> i32>;

/// How text is generated. Zero means the default in every field but the first.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct GenerateSettings {
    /// sizeof(mynah_generate_settings)
    pub struct_size: u32,
    /// New tokens at most. Default 256.
    pub max_new_tokens: u32,
    /// Divisor of the logits. Default: the likeliest token is taken.
    pub temperature: f32,
    /// How many of the likeliest tokens can be chosen. Default: all.
    pub top_k: u32,
    /// The likeliest tokens that have this probability together can be chosen. Default 1: all.
    pub top_p: f32,
    /// Tokens with less than this share of the likeliest one's probability cannot be chosen. Default: none.
    pub min_p: f32,
    /// Positive logits of recent tokens are divided by it, negative ones multiplied. Default 1: off.
    pub repetition_penalty: f32,
    /// How many of the newest tokens count as recent. Default 64.
    pub repetition_window: u32,
    /// Where the random draws start. Default 0.
    pub seed: u64,
}

// SAFETY: repr(C), eight fields of 4 bytes and one of 8, numbers only.
unsafe impl Pod for GenerateSettings {
    const FIRST_SIZE_BYTES: usize = 40;
}

impl GenerateSettings {
    fn options(&self) -> GenerateOptions {
        fn or<T: PartialEq + Default>(value: T, default: T) -> T {
            if value == T::default() { default } else { value }
        }
        let default = GenerateOptions::default();
        let sampling = Sampling {
            temperature: self.temperature,
            top_k: self.top_k as usize,
            top_p: or(self.top_p, default.sampling.top_p),
            min_p: self.min_p,
            repetition_penalty: or(self.repetition_penalty, default.sampling.repetition_penalty),
            repetition_window: or(self.repetition_window as usize, default.sampling.repetition_window),
            seed: self.seed,
        };
        GenerateOptions {
            max_new_tokens: or(self.max_new_tokens as usize, default.max_new_tokens),
            sampling,
            ..default
        }
    }
}

/// Why generating ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum StopReason {
    /// It never began: the call failed.
    None = 0,
    /// The model ended its answer.
    EndOfGeneration = 1,
    /// There are as many new tokens as asked for.
    MaxNewTokens = 2,
    /// One of the strings that end a text came up.
    StopString = 3,
    /// Someone cancelled, or the callback stopped it.
    Cancelled = 4,
    /// The context has no room for another token.
    ContextFull = 5,
    /// For a reason that this interface has no number for.
    Other = 100,
}

impl From<runtime::generate::StopReason> for StopReason {
    fn from(reason: runtime::generate::StopReason) -> Self {
        use runtime::generate::StopReason as Reason;
        match reason {
            Reason::EndOfGeneration => Self::EndOfGeneration,
            Reason::MaxNewTokens => Self::MaxNewTokens,
            Reason::StopString => Self::StopString,
            Reason::Cancelled => Self::Cancelled,
            Reason::ContextFull => Self::ContextFull,
            _ => Self::Other,
        }
    }
}

/// What was generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct GenerateReport {
    /// sizeof(mynah_generate_report)
    pub struct_size: u32,
    /// Why it ended.
    pub stop_reason: StopReason,
    /// Tokens of the new text.
    pub new_tokens: u64,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// How many of those had been computed before.
    pub reused_tokens: u64,
    /// Microseconds until the prompt was computed.
    pub prefill_us: u64,
    /// Microseconds from there to the end, the callbacks included.
    pub decode_us: u64,
}

// SAFETY: repr(C), two fields of 4 bytes and five of 8; 0 is a StopReason.
unsafe impl Pod for GenerateReport {
    const FIRST_SIZE_BYTES: usize = 48;
}

impl From<&Generation> for GenerateReport {
    fn from(generation: &Generation) -> Self {
        Self {
            struct_size: 0,
            stop_reason: generation.stop_reason.into(),
            new_tokens: generation.ids.len() as u64,
            prompt_tokens: generation.prompt_tokens as u64,
            reused_tokens: generation.reused_tokens as u64,
            prefill_us: microseconds(generation.prefill_time),
            decode_us: microseconds(generation.decode_time),
        }
    }
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// What a session has and has learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct SessionState {
    /// sizeof(mynah_session_state)
    pub struct_size: u32,
    /// Where it computes, which is the CPU where a GPU was asked for and there is none.
    pub device: Device,
    /// Number of the newest revision; 0 before the first, or without a store.
    pub revision: u64,
    /// Examples that are stored.
    pub examples: u64,
    /// Tokens of those.
    pub tokens: u64,
    /// Examples that steps have trained on.
    pub learned: u64,
    /// Examples that can be replayed.
    pub remembered: u64,
    /// Steps of all runs.
    pub steps: u64,
    /// Number of the newest run, from 1; 0 before the first.
    pub run: u64,
    /// Steps that the newest run has behind it.
    pub run_steps_done: u64,
    /// Steps that it has in all; with as many behind it, it is finished.
    pub run_steps_total: u64,
    /// Bytes of examples and revisions in the store.
    pub bytes: u64,
}

// SAFETY: repr(C), two fields of 4 bytes and ten of 8; 0 is a Device.
unsafe impl Pod for SessionState {
    const FIRST_SIZE_BYTES: usize = 88;
}

impl SessionState {
    fn of(session: &Session) -> Self {
        let status = session.status();
        let run = status.run.as_ref();
        Self {
            struct_size: 0,
            device: if session.model().device().is_gpu() { Device::Gpu } else { Device::Cpu },
            revision: status.revision.unwrap_or(0),
            examples: status.examples,
            tokens: status.tokens,
            learned: status.learned,
            remembered: status.remembered,
            steps: status.steps,
            run: run.map_or(0, |run| run.number),
            run_steps_done: run.map_or(0, |run| run.steps_done),
            run_steps_total: run.map_or(0, |run| run.steps_total),
            bytes: status.bytes,
        }
    }
}

/// What a session is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Phase {
    /// Nothing.
    Idle = 0,
    /// Generating; counted in pieces of new text.
    Generating = 1,
    /// Storing examples; counted in examples.
    Observing = 2,
    /// Learning; counted in steps of the run.
    Learning = 3,
    /// Being scored; counted in examples or windows.
    Evaluating = 4,
    /// Something that this interface has no number for.
    Other = 100,
}

impl From<runtime::session::Phase> for Phase {
    fn from(phase: runtime::session::Phase) -> Self {
        use runtime::session::Phase as Runtime;
        match phase {
            Runtime::Idle => Self::Idle,
            Runtime::Generating => Self::Generating,
            Runtime::Observing => Self::Observing,
            Runtime::Learning => Self::Learning,
            Runtime::Evaluating => Self::Evaluating,
            _ => Self::Other,
        }
    }
}

/// How far the call in hand is. The numbers may be of neighbouring moments.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct Progress {
    /// sizeof(mynah_progress)
    pub struct_size: u32,
    /// What is being done.
    pub phase: Phase,
    /// How many of `total` are done.
    pub done: u64,
    /// How many there are; 0 where that is not known.
    pub total: u64,
    /// Loss of the newest step, NaN before the first.
    pub loss: f64,
}

// SAFETY: repr(C), two fields of 4 bytes and three of 8; 0 is a Phase.
unsafe impl Pod for Progress {
    const FIRST_SIZE_BYTES: usize = 32;
}

/// Loads the model, opens the store and takes up where it was left. The options can be freed afterwards.
///
/// # Safety
/// `options` is NULL or live. `out_session` is NULL or points to a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mynah_session_open(options: *const Options, out_session: *mut *mut SessionHandle) -> Status {
    // SAFETY: the caller promises NULL or a pointer that can be written.
    unsafe { handle::set(out_session, ptr::null_mut()) };
    guard::entry(|| {
        // SAFETY: the caller promises NULL or live options.
        let options = unsafe { handle::borrow(options, "options") }?;
        if out_session.is_null() {
            return Err(Failure::null("out_session"));
        }
        let session = options.builder()?.open()?;
        // SAFETY: not NULL, so it can be written.
        unsafe { handle::set(out_session, handle::give(SessionHandle::new(session, options.prompt_format))) };
        Ok(())
    })
}

/// Closes a session; NULL does nothing. While a call runs it gives MYNAH_BUSY, and the session stays open: cancel
/// first, and close when the call has returned.
///
/// # Safety
/// `session` is NULL or open. After MYNAH_OK no thread uses it again, and none begins to while this call runs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mynah_session_close(session: *mut SessionHandle) -> Status {
    guard::entry(|| {
        if session.is_null() {
            return Ok(());
        }
        // SAFETY: the caller promises that it is open.
        let turn = unsafe { handle::borrow(session, "session") }?.turn().map(drop);
        match turn {
            Err(failure) if failure.status == Status::BUSY => Err(failure),
            _ => {
                // SAFETY: no call has it, and the caller promises that none will.
                drop(unsafe { handle::take(session) });
                Ok(())
            }
        }
    })
}

/// Answers a prompt. Every new piece of text goes to `callback`, with `user_data` passed through.
///
/// `settings` may be NULL for the defaults, `out_report` may be NULL. A cancelled call gives MYNAH_OK, and
/// MYNAH_STOP_REASON_CANCELLED in the report.
///
/// # Safety
/// `session` is NULL or open. `prompt` has `prompt_len` bytes. `settings` and `out_report` are NULL or have the bytes
/// that their struct_size says. `callback` can be called with `user_data`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mynah_session_generate(
    session: *mut SessionHandle,
    prompt: *const c_char,
    prompt_len: usize,
    settings: *const GenerateSettings,
    callback: TextCallback,
    user_data: *mut c_void,
    out_report: *mut GenerateReport,
) -> Status {
    // SAFETY: the caller promises NULL or the bytes that struct_size says.
    let cleared = unsafe { handle::clear_pod(out_report, "out_report") };
    let work = |handle: &SessionHandle, session: &mut Session| {
        cleared?;
        // SAFETY: the caller promises `prompt_len` bytes.
        let prompt = unsafe { text(prompt, prompt_len, "prompt") }?;
        // SAFETY: the caller promises NULL or the bytes that struct_size says.
        let options = unsafe { handle::read_pod(settings, "settings") }?.options();
        let callback = callback.ok_or_else(|| Failure::null("callback"))?;
        let mut on_text = |piece: &str| {
            // SAFETY: the caller promises that it can be called with `user_data`; text and length are one piece's.
            let answer = unsafe { callback(user_data, piece.as_ptr().cast(), piece.len()) };
            answer == 0
        };
        let generation = if handle.is_chat(session) {
            session.chat(&[Message::new("user", prompt)], &options, &mut on_text)?
        } else {
            session.generate(prompt, &options, &mut on_text)?
        };
        // SAFETY: as for `cleared`.
        unsafe { handle::set_pod(out_report, &GenerateReport::from(&generation), "out_report") }
    };
    // SAFETY: the caller promises NULL or an open session.
    unsafe { guard::alone(session, work) }
}

/// Stores what the model should have answered; it is learned by the next mynah_session_learn. Durable on return, where
/// the session has a store.
///
/// `task` says what it belongs to, 1 to 64 bytes; with length 0 it is "chat". `out_example_id` may be NULL; ids count
/// from 1.
///
/// # Safety
/// `session` is NULL or open. Each text has as many bytes as its length says. `out_example_id` is NULL or points to a
/// number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mynah_session_observe(
    session: *mut SessionHandle,
    prompt: *const c_char,
    prompt_len: usize,
    answer: *const c_char,
    answer_len: usize,
    task: *const c_char,
    task_len: usize,
    out_example_id: *mut u64,
) -> Status {
    // SAFETY: the caller promises NULL or a number that can be written.
    unsafe { handle::set(out_example_id, 0) };
    let work = |handle: &SessionHandle, session: &mut Session| {
        // SAFETY: the caller promises that each text has its length.
        let (prompt, answer, task) = unsafe {
            (text(prompt, prompt_len, "prompt")?, text(answer, answer_len, "answer")?, text(task, task_len, "task")?)
        };
        let task = if task.is_empty() { Interaction::DEFAULT_TASK } else { task };
        let interaction = if handle.is_chat(session) {
            Interaction { task: task.to_owned(), ..Interaction::chat(prompt, answer) }
        } else {
            Interaction::raw(task, prompt, answer)
        };
        let id = session.observe(&interaction)?;
        // SAFETY: as above.
        unsafe { handle::set(out_example_id, id.0) };
        Ok(())
    };
    // SAFETY: the caller promises NULL or an open session.
    unsafe { guard::alone(session, work) }
}

/// Forgets one example: erases it from the store, with every revision that learned from it. On return what is served is the
/// newest state that never saw it.
///
/// What those revisions had learned from other examples is learned again by the next mynah_session_learn; how many examples
/// that is goes to `out_queued`, which may be NULL.
///
/// # Safety
/// `session` is NULL or open. `out_queued` is NULL or points to a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mynah_session_forget(
    session: *mut SessionHandle,
    example_id: u64,
    out_queued: *mut u64,
) -> Status {
    // SAFETY: the caller promises NULL or a number that can be written.
    unsafe { handle::set(out_queued, 0) };
    let work = |_: &SessionHandle, session: &mut Session| {
        let receipt = session.forget(&Forget::Ids(vec![ExampleId(example_id)]))?;
        // SAFETY: as above.
        unsafe { handle::set(out_queued, receipt.queued.len()) };
        Ok(())
    };
    // SAFETY: the caller promises NULL or an open session.
    unsafe { guard::alone(session, work) }
}

/// Goes back to an earlier revision, as a new one; 0 is before anything was learned. Examples stay; what was learned since
/// counts as not yet learned.
///
/// # Safety
/// `session` is NULL or open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mynah_session_rollback(session: *mut SessionHandle, revision: u64) -> Status {
    let work = |_: &SessionHandle, session: &mut Session| Ok(session.rollback(revision)?);
    // SAFETY: the caller promises NULL or an open session.
    unsafe { guard::alone(session, work) }
}

/// Tells what a session has and has learned.
///
/// # Safety
/// `session` is NULL or open. `out_state` is NULL or has the bytes that its struct_size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mynah_session_status(session: *const SessionHandle, out_state: *mut SessionState) -> Status {
    // SAFETY: the caller promises NULL or the bytes that struct_size says.
    let cleared = unsafe { handle::clear_pod(out_state, "out_state") };
    let work = |_: &SessionHandle, session: &mut Session| {
        cleared?;
        if out_state.is_null() {
            return Err(Failure::null("out_state"));
        }
        // SAFETY: as for `cleared`.
        unsafe { handle::set_pod(out_state, &SessionState::of(session), "out_state") }
    };
    // SAFETY: the caller promises NULL or an open session.
    unsafe { guard::alone(session, work) }
}

/// Ends the call in hand within a fraction of a second, or the next one at once if there is none. Does not wait for it.
/// May be called from any thread and from a callback.
///
/// # Safety
/// `session` is NULL or open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mynah_session_cancel(session: *const SessionHandle) -> Status {
    let work = |handle: &SessionHandle| {
        handle.control.cancel();
        Ok(())
    };
    // SAFETY: the caller promises NULL or an open session.
    unsafe { guard::beside(session, work) }
}

/// Tells how far the call in hand is. Does not wait for it. May be called from any thread and from a callback.
///
/// # Safety
/// `session` is NULL or open. `out_progress` is NULL or has the bytes that its struct_size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mynah_session_progress(session: *const SessionHandle, out_progress: *mut Progress) -> Status {
    // SAFETY: the caller promises NULL or the bytes that struct_size says.
    let cleared = unsafe { handle::clear_pod(out_progress, "out_progress") };
    let work = |handle: &SessionHandle| {
        cleared?;
        if out_progress.is_null() {
            return Err(Failure::null("out_progress"));
        }
        if handle.session.is_poisoned() {
            return Err(poisoned());
        }
        let progress = handle.control.progress();
        let progress = Progress {
            struct_size: 0,
            phase: progress.phase.into(),
            done: progress.done,
            total: progress.total,
            loss: progress.loss,
        };
        // SAFETY: as for `cleared`.
        unsafe { handle::set_pod(out_progress, &progress, "out_progress") }
    };
    // SAFETY: the caller promises NULL or an open session.
    unsafe { guard::beside(session, work) }
}

#[cfg(test)]
mod tests;
