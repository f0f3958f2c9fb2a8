//! A session as the options of a verb describe it, and what is seen of its long work.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use mynah::session::Phase;
use mynah::{Learner, Session, SessionBuilder};
use mynah_models::weights::Gguf;
use mynah_models::{Model, Precision};

use crate::error::CliError;
use crate::interrupt;
use crate::model_cache::{self, ModelSource};
use crate::options::{DeviceChoice, Options};
use crate::progress::Progress;

/// `-m MODEL`.
#[derive(Debug, clap::Args)]
pub(crate) struct ModelArg {
    /// A GGUF file, or a name that `pull` knows
    #[arg(short, long, value_name = "MODEL")]
    pub(crate) model: String,
}

/// Which of the two learners answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LearnerChoice {
    /// The one that is served: it follows the fast one and keeps what is old
    Slow,
    /// The one that is trained
    Fast,
}

impl From<LearnerChoice> for Learner {
    fn from(choice: LearnerChoice) -> Self {
        match choice {
            LearnerChoice::Slow => Self::Slow,
            LearnerChoice::Fast => Self::Fast,
        }
    }
}

/// The model file that `-m` names.
pub(crate) fn gguf(model: &str) -> Result<Arc<Gguf>, CliError> {
    Ok(match model_cache::resolve(model)? {
        ModelSource::File(path) => Gguf::open(&path)?,
        ModelSource::Embedded(bytes) => Gguf::from_bytes(bytes)?,
    })
}

/// The model alone, on the device and in the precision that were asked for, else in `precision`. What there is to say about
/// the device, is logged.
pub(crate) fn model(model: &str, precision: Precision, options: &Options) -> Result<Model, CliError> {
    let precision = options.precision.map_or(precision, Precision::from);
    Ok(Model::load(&gguf(model)?, &mynah::device::open(device(options), precision).device)?)
}

fn device(options: &Options) -> mynah::DeviceChoice {
    match options.device {
        DeviceChoice::Cpu => mynah::DeviceChoice::Cpu,
        DeviceChoice::Gpu => mynah::DeviceChoice::Gpu,
    }
}

/// A builder with the model, the device, the precision and the seed set.
pub(crate) fn builder(model: &str, options: &Options) -> Result<SessionBuilder, CliError> {
    let builder = Session::builder(gguf(model)?);
    let builder = match options.precision {
        Some(precision) => builder.precision(precision.into()),
        None => builder,
    };
    let builder = match options.store_key()? {
        Some(key) => builder.store_key(key),
        None => builder,
    };
    Ok(builder.device(device(options)).seed(options.seed))
}

/// Opens the session and lets Ctrl-C cancel what it does. What the session has to say about its device, it logs.
pub(crate) fn open(builder: SessionBuilder) -> Result<Session, CliError> {
    let session = builder.open()?;
    let control = session.control();
    interrupt::on_interrupt(move || control.cancel());
    Ok(session)
}

/// Opens the bare model, or with what was learned in a store: where there is none, the path is wrong. Unless the options name a
/// precision, it is `precision`.
pub(crate) fn open_to_read(
    model: &str,
    store: Option<&Path>,
    precision: Precision,
    options: &Options,
) -> Result<Session, CliError> {
    let precision = options.precision.map_or(precision, Precision::from);
    let builder = builder(model, options)?.precision(precision);
    match store {
        Some(folder) if folder.is_dir() => open(builder.store(folder)),
        Some(folder) => Err(CliError::NoStore { path: folder.to_owned() }),
        None => open(builder),
    }
}

/// Does `work` with the session and shows meanwhile how far it is.
pub(crate) fn watched<T>(session: &mut Session, label: &str, work: impl FnOnce(&mut Session) -> T) -> T {
    let control = session.control();
    let (working, finished) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let bar = Progress::counted(label, 0);
            // Nothing is ever sent: the channel closes when the work is done, or has panicked.
            while finished.recv_timeout(Duration::from_millis(100)) == Err(RecvTimeoutError::Timeout) {
                let progress = control.progress();
                bar.set_total(progress.total);
                bar.set(progress.done);
                if progress.loss.is_finite() && progress.phase == Phase::Learning {
                    bar.message(format!("loss {:.3}", progress.loss));
                }
            }
            bar.clear();
        });
        let result = work(session);
        drop(working);
        result
    })
}
