//! A session is put together: model, device, store, and how it learns.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mynah_models::adapter::{Adapter, LoraConfig};
use mynah_models::chat_template::{ChatTemplate, TemplateError};
use mynah_models::tokenizer::Tokenizer;
use mynah_models::weights::Gguf;
use mynah_models::{Model, Precision};

use super::control::Control;
use super::error::SessionError;
use super::ledger::Ledger;
use super::threads::Threads;
use super::wording::Wording;
use super::{Learner, Session};
use crate::checkpoint::Keep;
use crate::device::{self, DeviceChoice};
use crate::learn::methods::ContinualMethod;
use crate::learn::{AdamW, DEFAULT_MEMORY_BYTES, History, LearnerState, Method, TrainerConfig};
use crate::replay::{Eviction, Policy};
use crate::store::saved::Saved;
use crate::store::{StoreKey, StoreOptions};

/// How many examples a new store can replay.
const MEMORY_EXAMPLES: u32 = 500;
/// What commits may write in a day.
const DAILY_WEAR_BYTES: u64 = 1 << 30;

/// The model of a session: a file, or one that was opened before.
#[derive(Debug, Clone)]
pub enum ModelSource {
    /// A GGUF file.
    Path(PathBuf),
    /// A model file in memory or mapped.
    Gguf(Arc<Gguf>),
}

impl From<&Path> for ModelSource {
    fn from(path: &Path) -> Self {
        Self::Path(path.to_owned())
    }
}

impl From<PathBuf> for ModelSource {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

impl From<&str> for ModelSource {
    fn from(path: &str) -> Self {
        Self::Path(path.into())
    }
}

impl From<Arc<Gguf>> for ModelSource {
    fn from(gguf: Arc<Gguf>) -> Self {
        Self::Gguf(gguf)
    }
}

/// Settings of a [`Session`] that is not open yet.
#[derive(Debug, Clone)]
pub struct SessionBuilder {
    pub(super) model: ModelSource,
    pub(super) device: DeviceChoice,
    pub(super) precision: Precision,
    pub(super) store: Option<PathBuf>,
    pub(super) is_read_only: bool,
    pub(super) threads: usize,
    pub(super) seed: u64,
    pub(super) lora: Option<LoraConfig>,
    pub(super) method: Method,
    pub(super) trainer: TrainerConfig,
    pub(super) context_tokens: usize,
    pub(super) end_token: Option<u32>,
    pub(super) memory_policy: Option<Policy>,
    pub(super) memory_examples: Option<u32>,
    pub(super) commit_every_steps: Option<u64>,
    pub(super) daily_wear_bytes: u64,
    pub(super) store_options: StoreOptions,
    pub(super) memory_bytes: u64,
    pub(super) is_scoring: bool,
}

impl SessionBuilder {
    pub(super) fn new(model: ModelSource) -> Self {
        Self {
            model,
            device: DeviceChoice::default(),
            precision: Precision::Fast,
            store: None,
            is_read_only: false,
            threads: 0,
            seed: 0,
            lora: None,
            method: Method::default(),
            trainer: TrainerConfig::default(),
            context_tokens: 2048,
            end_token: None,
            memory_policy: None,
            memory_examples: None,
            commit_every_steps: None,
            daily_wear_bytes: DAILY_WEAR_BYTES,
            store_options: StoreOptions::default(),
            memory_bytes: DEFAULT_MEMORY_BYTES,
            is_scoring: false,
        }
    }

    /// Where to compute. Default: the CPU. A GPU that is not there means the CPU and a [`Session::notice`].
    pub fn device(mut self, device: DeviceChoice) -> Self {
        self.device = device;
        self
    }

    /// How exactly to compute on the CPU. Default: [`Precision::Fast`].
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// The folder that keeps what is taught and learned; made if it is not there. Default: none, nothing is kept.
    pub fn store(mut self, folder: impl Into<PathBuf>) -> Self {
        self.store = Some(folder.into());
        self
    }

    /// Only looks at the store, which must be there: another process may be writing to it. What would change it fails.
    pub fn read_only(mut self) -> Self {
        self.is_read_only = true;
        self
    }

    /// Threads to compute on. Default, and 0: one per core, shared with other sessions.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Where the randomness of adapters and learning starts. Default 0. Sampling has its own.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The adapters' form. Default: the store's, or rank 8, alpha 16 on all seven projections.
    pub fn lora(mut self, lora: LoraConfig) -> Self {
        self.lora = Some(lora);
        self
    }

    /// How forgetting is fought. Default: I-LoRA.
    pub fn method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }

    /// Learning rate, clipping, micro-batches. Default: [`TrainerConfig::default`].
    pub fn trainer(mut self, trainer: TrainerConfig) -> Self {
        self.trainer = trainer;
        self
    }

    /// Tokens of prompt and answer that [`Session::generate`] can hold, at most what the model was made for.
    /// Default 2048.
    pub fn context_tokens(mut self, tokens: usize) -> Self {
        self.context_tokens = tokens;
        self
    }

    /// The token that ends an answer, taught and generated. Default: the vocabulary's end-of-text or end-of-turn token.
    ///
    /// For models that were never trained on theirs: they cannot tell it from other unused tokens, and can never learn to
    /// stop. The tinyllamas are such models, with the begin-of-text token between texts.
    pub fn end_token(mut self, id: u32) -> Self {
        self.end_token = Some(id);
        self
    }

    /// Which examples stay to be replayed when there are more. Default: the store's policy, or [`Policy::default`]:
    /// tasks share the room, none has less than ten.
    ///
    /// A store that was opened under another policy chooses again among what it learned; how surprising that was is not
    /// known any more.
    pub fn memory_policy(mut self, policy: Policy) -> Self {
        self.memory_policy = Some(policy);
        self
    }

    /// How many examples can be replayed. Default: as many as in the store before, or 500.
    pub fn memory_examples(mut self, examples: u32) -> Self {
        self.memory_examples = Some(examples);
        self
    }

    /// Steps between two commits: what a kill may cost. Default: as few as [`SessionBuilder::daily_wear_bytes`] allows, and
    /// one where it allows that: then a kill costs the step in hand.
    pub fn commit_every_steps(mut self, steps: u64) -> Self {
        self.commit_every_steps = Some(steps.max(1));
        self
    }

    /// What commits may write in a day, from which the steps between two of them follow. Default one gibibyte. Once it is
    /// spent, only the end of a call of [`Session::learn`] is committed.
    ///
    /// A commit of a 135-million-parameter model at rank 8 writes 39 MB in the middle of a run, so that a run of 26 steps
    /// commits each of them. Flash of 64 GB that bears each block being written 1,000 times lasts 170 years at that rate.
    pub fn daily_wear_bytes(mut self, bytes: u64) -> Self {
        self.daily_wear_bytes = bytes;
        self
    }

    /// Seals what is taught with `key`, and opens a sealed store. Default: no key, nothing is encrypted.
    pub fn store_key(mut self, key: StoreKey) -> Self {
        self.store_options.key = Some(key);
        self
    }

    /// Which revisions are kept to go back to. Default: [`Keep::DEFAULT`].
    pub fn keep_revisions(mut self, keep: Keep) -> Self {
        self.store_options.keep = keep;
        self
    }

    /// Bytes that the passes of a step may take beside model, adapters and moments; what does not fit is computed again, with
    /// the same results to the bit. [`budget::estimate`](crate::budget::estimate) tells what is needed. Default 512 MiB.
    pub fn memory_budget(mut self, bytes: u64) -> Self {
        self.memory_bytes = bytes;
        self
    }

    /// What the log of examples may grow to in bytes. Default: one gibibyte, millions of interactions.
    pub fn replay_capacity(mut self, bytes: u32) -> Self {
        self.store_options.replay_capacity_bytes = bytes;
        self
    }

    /// Which examples make room for new ones once that is full. Default: none, and storing more is an error.
    pub fn evict(mut self, eviction: Eviction) -> Self {
        self.store_options.eviction = Some(eviction);
        self
    }

    /// Stores with each example how little the model expected it, in nats per answer token: what
    /// [`Eviction::LowestScore`] gives up first is then what was known anyway. Takes a forward pass. Default: no.
    pub fn score_examples(mut self, is_scoring: bool) -> Self {
        self.is_scoring = is_scoring;
        self
    }

    /// Loads the model, opens the store and takes up where its newest revision ends.
    ///
    /// # Errors
    /// [`SessionError::Load`] and [`SessionError::Tokenizer`] for the model file; [`SessionError::Store`] if the store is
    /// in use, damaged beyond its last good revision, or another model's; [`SessionError::OtherLora`] if its adapters have
    /// another form than [`SessionBuilder::lora`] asks for; [`SessionError::Setting`].
    pub fn open(self) -> Result<Session, SessionError> {
        self.method.check()?;
        self.trainer.check()?;
        let gguf = match &self.model {
            ModelSource::Path(path) => Gguf::open(path)?,
            ModelSource::Gguf(gguf) => Arc::clone(gguf),
        };
        let threads =
            Threads::new(self.threads).map_err(|source| SessionError::Threads { threads: self.threads, source })?;
        let opened = device::open(self.device, self.precision);
        let (wording, model) =
            threads.run(|| rayon::join(|| wording(&gguf, self.end_token), || Model::load(&gguf, &opened.device)));
        let (wording, model) = (wording?, model?);
        let (ledger, saved) = match &self.store {
            Some(folder) => Ledger::open(folder, self.is_read_only, &self.store_options, &model, &wording.tokenizer)?,
            None => (Ledger::in_memory(), None),
        };
        let (state, mut history) = self.start(&model, saved)?;
        let policy = self.memory_policy.unwrap_or(history.memory.policy());
        let capacity = self.memory_examples.unwrap_or(history.memory.capacity());
        // Forgotten by a process that had no model.
        history.drop_missing(|id| ledger.task(id).is_some());
        history.set_memory(policy, capacity, self.seed, ledger.ids_and_tasks());
        Ok(Session {
            context_tokens: self.context_tokens.clamp(1, model.config().max_position_embeddings),
            model: Arc::new(model),
            wording,
            threads: Arc::new(threads),
            ledger,
            state,
            state_version: 0,
            history,
            served: Learner::Slow,
            serving: None,
            control: Control::new(),
            gpus_lost: 0,
            notice: opened.notice,
            seed: self.seed,
            method: self.method,
            trainer: self.trainer,
            commit_every_steps: self.commit_every_steps,
            daily_wear_bytes: self.daily_wear_bytes,
            memory_bytes: self.memory_bytes,
            is_scoring: self.is_scoring,
        })
    }

    /// The learners of the newest revision, or fresh ones.
    fn start(&self, model: &Model, saved: Option<Saved>) -> Result<(LearnerState, History), SessionError> {
        let Some(Saved { state, history }) = saved else {
            let state = nothing_learned(model, &self.lora.clone().unwrap_or_default(), self.seed)?;
            let policy = self.memory_policy.unwrap_or_default();
            return Ok((state, History::new(policy, self.memory_examples.unwrap_or(MEMORY_EXAMPLES))));
        };
        let found = state.fast.config();
        match &self.lora {
            Some(asked) if !is_same_form(asked, found) => {
                Err(SessionError::OtherLora { found_rank: found.rank, asked_rank: asked.rank })
            }
            _ => Ok((state, history)),
        }
    }
}

/// Learners that do not change the model yet.
pub(super) fn nothing_learned(model: &Model, lora: &LoraConfig, seed: u64) -> Result<LearnerState, SessionError> {
    let mut state = LearnerState::new(Adapter::init(model.config(), lora, seed)?);
    state.optimizer = AdamW::new(0);
    Ok(state)
}

/// Whether two configurations make adapters of one layout and strength; the order of targets does not matter.
fn is_same_form(a: &LoraConfig, b: &LoraConfig) -> bool {
    let targets = |config: &LoraConfig| {
        let mut targets = config.target_modules.clone();
        targets.sort_by_key(|target| *target as usize);
        targets.dedup();
        targets
    };
    (a.rank, a.alpha, a.use_rslora) == (b.rank, b.alpha, b.use_rslora) && targets(a) == targets(b)
}

/// Tokenizer and template of a model file. A model without a template is no chat model, and else whole.
fn wording(gguf: &Gguf, end_token: Option<u32>) -> Result<Wording, SessionError> {
    let tokenizer = Tokenizer::from_gguf(gguf)?;
    let template = match ChatTemplate::from_gguf(gguf, &tokenizer) {
        Ok(template) => Some(template),
        Err(TemplateError::Missing) => None,
        Err(error) => {
            log::warn!("chat is not available: {error}");
            None
        }
    };
    Ok(Wording { tokenizer, template, end_token })
}
