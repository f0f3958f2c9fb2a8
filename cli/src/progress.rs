//! How far long work has come, on standard error: a bar on a terminal, a short line elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// One piece of long work.
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Work counted in bytes.
    pub(crate) fn bytes(label: &str, total_bytes: u64) -> Self {
        Self::start(label, total_bytes, "{prefix} [{bar:30}] {bytes}/{total_bytes} {msg}")
    }

    /// Work counted in things: steps, questions, chunks.
    pub(crate) fn counted(label: &str, total: u64) -> Self {
        Self::start(label, total, "{prefix} [{bar:30}] {pos}/{len} {elapsed} {msg}")
    }

    fn start(label: &str, total: u64, template: &str) -> Self {
        let bar = ProgressBar::new(total).with_prefix(label.to_owned());
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        if std::io::stderr().is_terminal() {
            bar.enable_steady_tick(Duration::from_millis(100));
        } else {
            eprintln!("{label} ...");
        }
        Self { bar }
    }

    /// How much is done by now.
    pub(crate) fn set(&self, done: u64) {
        self.bar.set_position(done);
    }

    /// How much there is to do, once that is known or known better.
    pub(crate) fn set_total(&self, total: u64) {
        self.bar.set_length(total);
    }

    /// What is seen at the end of the bar, such as the loss of the last step.
    pub(crate) fn message(&self, text: String) {
        self.bar.set_message(text);
    }

    /// Takes the bar away.
    pub(crate) fn clear(self) {
        self.bar.finish_and_clear();
    }
}

/// One line for people about what is going on.
pub(crate) fn note(text: &str) {
    eprintln!("{text}");
}
