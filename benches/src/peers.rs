//! The programs that we are measured beside: a Python environment of their own, made on request from the package index.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, bail};
use mynah_models::weights::Gguf;

/// Everything that the scripts in `peers/` import.
const PACKAGES: [&str; 6] = ["torch", "transformers", "peft", "gguf", "numpy", "llama-cpp-python"];

/// The modules that must import, and what they come in.
const MODULES: [(&str, &str); 4] =
    [("torch", "torch"), ("transformers", "transformers"), ("peft", "peft"), ("llama_cpp", "llama-cpp-python")];

/// The folder that holds the peers' Python packages and their copies of the model.
#[derive(Debug, Clone)]
pub struct Environment {
    folder: PathBuf,
}

impl Environment {
    /// The environment in `folder`, or where this machine keeps it.
    ///
    /// # Errors
    /// If the system names no folder for caches.
    pub fn at(folder: Option<PathBuf>) -> anyhow::Result<Self> {
        let folder = match folder {
            Some(folder) => folder,
            None => directories::ProjectDirs::from("", "", "mynah")
                .context("the system names no folder for caches; give --env")?
                .cache_dir()
                .join("peers"),
        };
        // A relative name would be taken for that of a model on a hub.
        Ok(Self { folder: std::path::absolute(folder)? })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The model as transformers reads it, in f32.
    pub fn hf_folder(&self) -> PathBuf {
        self.folder.join("model/hf")
    }

    /// The model requantized for llama.cpp, as `Q4_0`.
    pub fn gguf(&self, tensor_type: &str) -> PathBuf {
        self.folder.join(format!("model/{tensor_type}.gguf"))
    }

    /// A command that runs one of the scripts in `peers/`.
    pub fn script(&self, name: &str) -> Command {
        let mut command = Command::new(self.python());
        command.arg(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/peers")).join(name));
        // Nothing is fetched while it is timed.
        command.env("HF_HUB_OFFLINE", "1").env("TOKENIZERS_PARALLELISM", "false");
        command
    }

    /// Installs what is not there and converts the model `file`.
    ///
    /// # Errors
    /// The first step that failed, and what it needs.
    pub fn set_up(&self, python: &Path, file: &Path, note: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        if !self.python().is_file() {
            note(&format!("python environment in {}", self.folder.display()));
            let made = run(Command::new(python).args(["-m", "venv"]).arg(&self.folder));
            made.with_context(|| format!("{} -m venv failed; Debian has it in python3-venv", python.display()))?;
        }
        if !self.missing_modules().is_empty() {
            note(&format!("installing {} (6 GB, llama.cpp is compiled)", PACKAGES.join(" ")));
            let mut pip = Command::new(self.python());
            pip.args(["-m", "pip", "install", "--quiet"]).args(PACKAGES);
            run(&mut pip).context("pip failed; llama-cpp-python needs a C++ compiler, and pip a package index")?;
        }
        if self.converted_from()? != Some(digest(file)?) {
            note("converting the model for the peers");
            run(self.script("convert.py").arg(file).arg(self.folder.join("model")))?;
            std::fs::write(self.digest_file(), digest(file)?)?;
        }
        match self.missing(file)?.as_slice() {
            [] => Ok(()),
            missing => bail!("still missing: {}", missing.join("; ")),
        }
    }

    /// What a race with the model `file` lacks, in words; empty if nothing.
    ///
    /// # Errors
    /// If the model cannot be read.
    pub fn missing(&self, file: &Path) -> anyhow::Result<Vec<String>> {
        if !self.python().is_file() {
            return Ok(vec![format!("no Python environment in {}", self.folder.display())]);
        }
        let mut missing = self.missing_modules();
        if self.converted_from()? != Some(digest(file)?) {
            missing.push(format!("the peers' copies of {} in {}", file.display(), self.folder.display()));
        }
        Ok(missing)
    }

    fn missing_modules(&self) -> Vec<String> {
        let imports = |module: &str| {
            let mut command = Command::new(self.python());
            command.args(["-c", &format!("import {module}")]).stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        let missing = MODULES.iter().filter(|(module, _)| !imports(module));
        missing.map(|(module, package)| format!("Python module {module} (package {package})")).collect()
    }

    fn python(&self) -> PathBuf {
        self.folder.join("bin/python")
    }

    fn digest_file(&self) -> PathBuf {
        self.folder.join("model/source.sha256")
    }

    /// Digest of the model that the copies were made from.
    fn converted_from(&self) -> anyhow::Result<Option<String>> {
        match std::fs::read_to_string(self.digest_file()) {
            Ok(digest) => Ok(Some(digest)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", self.digest_file().display())),
        }
    }
}

fn digest(file: &Path) -> anyhow::Result<String> {
    let gguf: Arc<Gguf> = Gguf::open(file)?;
    Ok(gguf.digest().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Runs a command whose output is for a person.
fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.stdout(Stdio::null()).status();
    let status = status.with_context(|| format!("cannot run {}", command.get_program().display()))?;
    match status.success() {
        true => Ok(()),
        false => bail!("{} ended with {status}", command.get_program().display()),
    }
}
