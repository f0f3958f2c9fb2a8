//! Where examples and revisions are kept: in a store, or only in memory.

use std::collections::BTreeMap;
use std::path::Path;

use mynah_models::Model;
use mynah_models::tokenizer::Tokenizer;

use super::now_unix_s;
use crate::checkpoint::{Draft, Identity, Revision, RevisionKind, SectionData};
use crate::example::{ContentKey, Example, ExampleId};
use crate::learn::{History, LearnerState, Lineage};
use crate::store::saved::{
    FAST, MOMENT1, MOMENT2, PROBES, SLOW, STATE, Saved, SavedError, Sections, decode, encode, encode_probes,
};
use crate::store::{BackTo, Forget, Receipt, Store, StoreError, StoreOptions};

/// Header, table and `state` section of a revision, about.
const REVISION_OVERHEAD_BYTES: u64 = 4096;

/// Examples or revisions cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What learning has come to cannot be written down.
    #[error(transparent)]
    Encode(SavedError),
    /// The session has no store, and so neither this example nor any revision.
    #[error("there is no {what} {number}: the session has no store")]
    NoStore {
        /// `example` or `revision`.
        what: &'static str,
        /// Its number.
        number: u64,
    },
}

/// Examples and revisions of one session.
#[derive(Debug)]
pub(crate) enum Ledger {
    /// Kept as long as the session lives; ids count from 1, and none of one that was forgotten is given again. Revisions are
    /// not kept: the session has the newest state.
    Memory { examples: BTreeMap<ExampleId, Example>, next_id: u64 },
    /// Kept in a folder.
    Store(Box<Store>),
}

impl Ledger {
    pub(crate) fn in_memory() -> Self {
        Self::Memory { examples: BTreeMap::new(), next_id: 1 }
    }

    /// Opens the store in `folder`, and what its newest revision holds.
    ///
    /// # Errors
    /// [`LedgerError::Store`] if it cannot be opened or is another model's.
    pub(crate) fn open(
        folder: &Path,
        is_read_only: bool,
        options: &StoreOptions,
        model: &Model,
        tokenizer: &Tokenizer,
    ) -> Result<(Self, Option<Saved>), LedgerError> {
        let identity = Identity { base_digest: model.digest(), tokenizer_digest: tokenizer.digest() };
        let (store, _) = if is_read_only {
            let opened = Store::open_read(folder, options.key.as_ref())?;
            check_identity(&opened.0, &identity)?;
            opened
        } else {
            Store::create_or_open(folder, &identity, options, now_unix_s())?
        };
        let ledger = Self::Store(Box::new(store));
        let saved = ledger.newest_saved(model)?;
        Ok((ledger, saved))
    }

    /// What the newest revision holds; none where there is none.
    ///
    /// # Errors
    /// [`LedgerError::Store`].
    pub(crate) fn newest_saved(&self, model: &Model) -> Result<Option<Saved>, LedgerError> {
        let Some(store) = self.store() else { return Ok(None) };
        store.revisions.newest().map(|info| load(store, info.number, model)).transpose()
    }

    /// Stores examples, each with its score in nats; NaN for one that has none.
    pub(crate) fn append(&mut self, examples: &[(&Example, f32)]) -> Result<Vec<ExampleId>, LedgerError> {
        match self {
            Self::Memory { examples: kept, next_id } => {
                let ids: Vec<ExampleId> = (*next_id..).map(ExampleId).take(examples.len()).collect();
                *next_id += examples.len() as u64;
                kept.extend(ids.iter().copied().zip(examples.iter().map(|(example, _)| (*example).clone())));
                Ok(ids)
            }
            Self::Store(store) => Ok(store.replay.append_scored(examples).map_err(StoreError::from)?),
        }
    }

    /// The example with this content that was stored first.
    pub(crate) fn find(&mut self, key: ContentKey) -> Result<Option<ExampleId>, LedgerError> {
        match self {
            Self::Memory { examples, .. } => {
                Ok(examples.iter().find(|(_, example)| example.key() == key).map(|(id, _)| *id))
            }
            Self::Store(store) => Ok(store.replay.contains(key).map_err(StoreError::from)?),
        }
    }

    /// The task of an example, if it is there.
    pub(crate) fn task(&self, id: ExampleId) -> Option<&str> {
        match self {
            Self::Memory { examples, .. } => Some(examples.get(&id)?.task()),
            Self::Store(store) => Some(store.replay.info(id)?.task),
        }
    }

    pub(crate) fn read(&mut self, id: ExampleId) -> Result<Example, LedgerError> {
        match self {
            Self::Memory { examples, .. } => {
                let found = examples.get(&id).cloned();
                found.ok_or(LedgerError::NoStore { what: "example", number: id.0 })
            }
            Self::Store(store) => Ok(store.replay.read(id).map_err(StoreError::from)?),
        }
    }

    /// Counts one more replay of each of these, where that can be kept.
    pub(crate) fn count_replays(&mut self, ids: &[ExampleId]) {
        if let Self::Store(store) = self {
            store.replay.count_replays(ids);
        }
    }

    /// Every example's id and task, oldest first.
    pub(crate) fn ids_and_tasks(&self) -> impl Iterator<Item = (ExampleId, &str)> {
        self.described().map(|(id, task, _)| (id, task))
    }

    /// Every example's id, task and number of tokens, oldest first.
    pub(crate) fn described(&self) -> Box<dyn Iterator<Item = (ExampleId, &str, u32)> + '_> {
        match self {
            Self::Memory { examples, .. } => {
                Box::new(examples.iter().map(|(id, example)| (*id, example.task(), example.tokens().len() as u32)))
            }
            Self::Store(store) => Box::new(store.replay.iter().map(|info| (info.id, info.task, info.tokens))),
        }
    }

    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Memory { examples, .. } => examples.len() as u64,
            Self::Store(store) => store.replay.len() as u64,
        }
    }

    pub(crate) fn tokens(&self) -> u64 {
        match self {
            Self::Memory { examples, .. } => examples.values().map(|example| example.tokens().len() as u64).sum(),
            Self::Store(store) => store.replay.tokens(),
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::Memory { .. } => 0,
            Self::Store(store) => store.replay.bytes() + store.revisions.bytes(),
        }
    }

    /// The store, where there is one.
    pub(crate) fn store(&self) -> Option<&Store> {
        match self {
            Self::Memory { .. } => None,
            Self::Store(store) => Some(store),
        }
    }

    /// Number of the newest revision.
    pub(crate) fn revision(&self) -> Option<u64> {
        self.store()?.revisions.newest().map(|info| info.number)
    }

    /// Bytes that commits have written since then.
    pub(crate) fn bytes_written_since(&self, time_unix_s: u64) -> u64 {
        self.store().map_or(0, |store| store.revisions.bytes_written_since(time_unix_s))
    }

    /// What the next commit of this state will write, about.
    pub(crate) fn commit_bytes(&self, state: &LearnerState) -> u64 {
        let values = 2 * state.fast.values().len() + 2 * state.optimizer.first().len();
        self.store().map_or(0, |_| 4 * values as u64 + REVISION_OVERHEAD_BYTES)
    }

    /// Commits a revision; gives the bytes written. On return it survives a crash. Older revisions go, but for
    /// those that are kept.
    ///
    /// # Errors
    /// [`LedgerError::Store`]; earlier revisions are as they were.
    pub(crate) fn commit(
        &mut self,
        state: &LearnerState,
        history: &History,
        kind: RevisionKind,
    ) -> Result<u64, LedgerError> {
        let Self::Store(store) = self else { return Ok(0) };
        let encoded = encode(state, history).map_err(LedgerError::Encode)?;
        let probes = encode_probes(&history.probes).map_err(LedgerError::Encode)?;
        let sections = [
            (STATE, SectionData::Bytes(&encoded)),
            (FAST, SectionData::F32(state.fast.values())),
            (SLOW, SectionData::F32(state.slow.values())),
            (MOMENT1, SectionData::F32(state.optimizer.first())),
            (MOMENT2, SectionData::F32(state.optimizer.second())),
            (PROBES, SectionData::Bytes(&probes)),
        ];
        let parent = store.revisions.newest().map(|info| info.number);
        let draft = Draft { kind, parent, created_unix_s: now_unix_s(), sections: &sections };
        let committed = store.revisions.commit(&draft).map_err(StoreError::from)?;
        store.prune();
        if kind == RevisionKind::Published {
            store.settle_receipts(&history.lineage, now_unix_s())?;
        }
        Ok(committed.bytes)
    }

    /// Forgets examples, durably where there is a store. `learned` is what the session's adapters were trained on.
    ///
    /// # Errors
    /// [`LedgerError::Store`]; [`LedgerError::NoStore`] for an example that is not there.
    pub(crate) fn forget(
        &mut self,
        request: &Forget,
        learned: &Lineage,
        now_unix_s: u64,
    ) -> Result<Receipt, LedgerError> {
        match self {
            Self::Store(store) => Ok(store.forget(request, now_unix_s)?),
            Self::Memory { examples, .. } => forget_in_memory(examples, request, learned, now_unix_s),
        }
    }

    /// Makes an earlier revision the newest again, as a copy; gives what it holds.
    ///
    /// # Errors
    /// [`LedgerError::Store`] if it is not there, damaged or not of this model; nothing is changed then.
    pub(crate) fn rollback(&mut self, number: u64, model: &Model) -> Result<Saved, LedgerError> {
        let Self::Store(store) = self else { return Err(LedgerError::NoStore { what: "revision", number }) };
        let saved = load(store, number, model)?;
        store.rollback(number, now_unix_s())?;
        Ok(saved)
    }
}

fn forget_in_memory(
    examples: &mut BTreeMap<ExampleId, Example>,
    request: &Forget,
    learned: &Lineage,
    now_unix_s: u64,
) -> Result<Receipt, LedgerError> {
    let stored = |keeps: &dyn Fn(&Example) -> bool| {
        examples.iter().filter(|(_, example)| keeps(example)).map(|(id, _)| *id).collect()
    };
    let ids: Vec<ExampleId> = match request {
        Forget::Ids(ids) => match ids.iter().find(|id| !examples.contains_key(id)) {
            Some(id) => return Err(LedgerError::NoStore { what: "example", number: id.0 }),
            None => ids.clone(),
        },
        Forget::Task(task) => stored(&|example| example.task() == task),
        Forget::Before(time_unix_s) => stored(&|example| example.time_unix_s() < *time_unix_s),
    };
    if ids.is_empty() {
        return Err(StoreError::NothingToForget { request: request.clone() }.into());
    }
    let mut records = Lineage::default();
    for id in ids {
        records.insert(id);
        examples.remove(&id);
    }
    let is_learned = learned.intersects(&records);
    let mut queued = Lineage::default();
    examples.keys().filter(|id| is_learned && learned.contains(**id)).for_each(|id| queued.insert(*id));
    Ok(Receipt {
        number: 0,
        request: request.clone(),
        requested_unix_s: now_unix_s,
        records,
        dropped_revisions: Vec::new(),
        back_to: if is_learned { BackTo::NothingLearned } else { BackTo::Unchanged },
        removed_unix_s: Some(now_unix_s),
        erased_unix_s: Some(now_unix_s),
        rolled_back_unix_s: Some(now_unix_s),
        relearned_unix_s: queued.is_empty().then_some(now_unix_s),
        queued,
    })
}

fn check_identity(store: &Store, expected: &Identity) -> Result<(), StoreError> {
    let (path, found) = (store.path().to_owned(), store.identity());
    if found.base_digest != expected.base_digest {
        return Err(StoreError::OtherBase { path, expected: expected.base_digest, found: found.base_digest });
    }
    if found.tokenizer_digest != expected.tokenizer_digest {
        let (expected, found) = (expected.tokenizer_digest, found.tokenizer_digest);
        return Err(StoreError::OtherTokenizer { path, expected, found });
    }
    Ok(())
}

fn load(store: &Store, revision: u64, model: &Model) -> Result<Saved, LedgerError> {
    let mut found = store.revisions.load(revision).map_err(StoreError::from)?;
    let mut values = |name| Revision::take_f32s(&mut found, name).map_err(StoreError::from);
    let [fast, slow, moment1, moment2] = [values(FAST)?, values(SLOW)?, values(MOMENT1)?, values(MOMENT2)?];
    let state = found.bytes(STATE).map_err(StoreError::from)?;
    let probes = found.bytes(PROBES).ok();
    let sections = Sections { state, probes, fast, slow, moment1, moment2 };
    decode(sections, model.config()).map_err(|source| StoreError::Saved { revision, source }.into())
}
