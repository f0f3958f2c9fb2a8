//! Ctrl-C: the first one asks the work in hand to stop cleanly, the second one ends the program.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// The exit code of a program that an interrupt ended, as shells count it.
const INTERRUPTED: i32 = 130;

static ASKED: AtomicBool = AtomicBool::new(false);
static STOP: Mutex<Option<Box<dyn Fn() + Send>>> = Mutex::new(None);

/// Takes over Ctrl-C for the rest of the program's life.
pub(crate) fn install() {
    let handler = || {
        if ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(INTERRUPTED);
        }
        eprintln!("\nstopping cleanly; Ctrl-C once more ends at once");
        if let Some(stop) = STOP.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            stop();
        }
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        log::warn!("Ctrl-C will not stop cleanly: {error}");
    }
}

/// What the first Ctrl-C does beside setting [`asked`]: usually it cancels a session's control.
pub(crate) fn on_interrupt(stop: impl Fn() + Send + 'static) {
    *STOP.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(stop));
}

/// Whether Ctrl-C was pressed since the start, or since the last [`reset`].
pub(crate) fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}

/// Takes the request back once it was served, where the program goes on (the chat prompt).
pub(crate) fn reset() {
    ASKED.store(false, Ordering::SeqCst);
}
