//! What learning has come to, as sections of a revision, and back.
//!
//! `checkpoint/FORMAT.md` says which sections there are and describes `state` byte by byte: fields stand in the order of the
//! types below and of [`History`], [`Run`] and what is in them; another order is another version. A revision is hostile until
//! all of it was checked.

use mynah_models::adapter::{Adapter, AdapterError, AdapterLayout, LoraConfig};
use mynah_models::config::ModelConfig;
use mynah_models::projection::Projection;
use serde::{Deserialize, Serialize};

use crate::learn::{AdamW, History, LearnerState, Lineage, ProbeScore, Run};
use crate::replay::{Memory, MemoryV1};

pub(crate) const STATE: &str = "state";
pub(crate) const FAST: &str = "fast";
pub(crate) const SLOW: &str = "slow";
pub(crate) const MOMENT1: &str = "moment1";
pub(crate) const MOMENT2: &str = "moment2";
pub(crate) const PROBES: &str = "probes";

/// What a revision of a store holds.
#[derive(Debug)]
pub(crate) struct Saved {
    pub(crate) state: LearnerState,
    pub(crate) history: History,
}

/// A revision whose checksums are right does not hold a learning state of this model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SavedError {
    /// A section does not decode.
    #[error("section `{section}` cannot be decoded")]
    Decode {
        /// The section.
        section: &'static str,
        /// What is wrong with it.
        #[source]
        source: postcard::Error,
    },
    /// Bytes follow the end of a section's content.
    #[error("section `{section}` has {bytes} bytes too many")]
    Trailing {
        /// The section.
        section: &'static str,
        /// How many.
        bytes: usize,
    },
    /// A newer version of this library wrote it.
    #[error(
        "section `{section}` has version {found}, a newer one than this program reads; use the program that made it"
    )]
    Newer {
        /// The section.
        section: &'static str,
        /// The version it carries.
        found: u32,
    },
    /// A projection that does not exist.
    #[error("section `state` names projection {number} of {}", Projection::ALL.len())]
    Projection {
        /// Its number.
        number: u8,
    },
    /// The adapters do not fit the model.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The moments do not fit the adapters.
    #[error("section `{section}` has {found} values, expected {expected} or none")]
    Moments {
        /// The section.
        section: &'static str,
        /// Its values.
        found: usize,
        /// Values of an adapter.
        expected: usize,
    },
    /// What it says of its run, its examples or its memory contradicts itself.
    #[error("section `state` contradicts itself: {what}")]
    Contradiction {
        /// Where.
        what: &'static str,
    },
}

/// First number of a `state` section of version 1, which is read and never written.
const STATE_V1: u32 = 0;
/// First number of a `state` section of version 2.
const STATE_V2: u32 = 1;
/// First number of a `probes` section of version 1.
const PROBES_V1: u32 = 0;

/// The `state` section of version 1, behind its first number.
#[derive(Debug, Deserialize)]
struct StateV1 {
    lora: LoraV1,
    optimizer_steps: u64,
    history: HistoryV1,
}

/// [`History`] when scores were not kept and only reservoirs were known.
#[derive(Debug, Deserialize)]
struct HistoryV1 {
    steps: u64,
    run: Option<Run>,
    lineage: Lineage,
    fresh: Lineage,
    memory: MemoryV1,
}

impl TryFrom<HistoryV1> for History {
    type Error = SavedError;

    fn try_from(old: HistoryV1) -> Result<Self, SavedError> {
        let contradiction = |what| SavedError::Contradiction { what };
        // Before a range that was never learned is spelled out.
        let learned = old.run.as_ref().map_or(0, |run| run.ids.len() as u64);
        if !old.fresh.is_sound() || old.fresh.len() > learned {
            return Err(contradiction("more examples learned than the run has"));
        }
        let fresh = old.fresh.ids().map(|id| (id, 0.0)).collect();
        let memory = Memory::try_from(old.memory).map_err(|_| contradiction("the memory"))?;
        Ok(Self { steps: old.steps, run: old.run, lineage: old.lineage, fresh, memory, probes: Vec::new() })
    }
}

/// The `state` section of version 2, behind its first number.
#[derive(Debug, Serialize, Deserialize)]
struct StateV2 {
    lora: LoraV1,
    optimizer_steps: u64,
    history: History,
}

#[derive(Debug, Serialize, Deserialize)]
struct LoraV1 {
    rank: u32,
    alpha: f32,
    use_rslora: bool,
    /// Places in [`Projection::ALL`], ascending.
    target_modules: Vec<u8>,
}

impl LoraV1 {
    fn of(config: &LoraConfig) -> Self {
        let is_target = |place: &u8| config.target_modules.contains(&Projection::ALL[usize::from(*place)]);
        Self {
            rank: config.rank as u32,
            alpha: config.alpha,
            use_rslora: config.use_rslora,
            target_modules: (0..Projection::ALL.len() as u8).filter(is_target).collect(),
        }
    }

    fn config(&self) -> Result<LoraConfig, SavedError> {
        let projection = |number: &u8| {
            let found = Projection::ALL.get(usize::from(*number)).copied();
            found.ok_or(SavedError::Projection { number: *number })
        };
        Ok(LoraConfig {
            rank: self.rank as usize,
            alpha: self.alpha,
            use_rslora: self.use_rslora,
            target_modules: self.target_modules.iter().map(projection).collect::<Result<_, _>>()?,
        })
    }
}

/// The `state` section; the others are the values themselves.
///
/// # Errors
/// [`SavedError::Decode`] if it cannot be encoded, for want of memory.
pub(crate) fn encode(state: &LearnerState, history: &History) -> Result<Vec<u8>, SavedError> {
    let section = StateV2 {
        lora: LoraV1::of(state.fast.config()),
        optimizer_steps: state.optimizer.steps(),
        history: history.clone(),
    };
    postcard::to_allocvec(&(STATE_V2, section)).map_err(|source| SavedError::Decode { section: STATE, source })
}

/// The `probes` section.
///
/// # Errors
/// [`SavedError::Decode`] if it cannot be written down.
pub(crate) fn encode_probes(probes: &[ProbeScore]) -> Result<Vec<u8>, SavedError> {
    postcard::to_allocvec(&(PROBES_V1, probes)).map_err(|source| SavedError::Decode { section: PROBES, source })
}

/// What a `probes` section holds.
///
/// # Errors
/// [`SavedError`] says what is wrong with it.
pub(crate) fn decode_probes(section: &[u8]) -> Result<Vec<ProbeScore>, SavedError> {
    match version(PROBES, section)? {
        (PROBES_V1, content) => whole(PROBES, content),
        (newer, _) => Err(SavedError::Newer { section: PROBES, found: newer.saturating_add(1) }),
    }
}

/// The sections of a revision as they were read.
#[derive(Debug, Default)]
pub(crate) struct Sections<'a> {
    pub(crate) state: &'a [u8],
    /// None in a revision from before there were probes.
    pub(crate) probes: Option<&'a [u8]>,
    pub(crate) fast: Vec<f32>,
    pub(crate) slow: Vec<f32>,
    pub(crate) moment1: Vec<f32>,
    pub(crate) moment2: Vec<f32>,
}

/// What the sections hold, checked against the model and against each other.
///
/// # Errors
/// [`SavedError`] says which section is wrong and how.
pub(crate) fn decode(sections: Sections<'_>, model: &ModelConfig) -> Result<Saved, SavedError> {
    let StateV2 { lora, optimizer_steps, mut history } = decode_state(sections.state)?;
    history.check().map_err(|what| SavedError::Contradiction { what })?;
    history.probes = sections.probes.map(decode_probes).transpose()?.unwrap_or_default();
    let layout = AdapterLayout::new(model, &lora.config()?)?;
    let fast = Adapter::from_values(&layout, sections.fast)?;
    let slow = Adapter::from_values(&layout, sections.slow)?;
    for (section, moments) in [(MOMENT1, &sections.moment1), (MOMENT2, &sections.moment2)] {
        let expected = if sections.moment1.is_empty() { 0 } else { layout.len() };
        if moments.len() != expected {
            return Err(SavedError::Moments { section, found: moments.len(), expected: layout.len() });
        }
    }
    let optimizer = AdamW::from_parts(sections.moment1, sections.moment2, optimizer_steps);
    Ok(Saved { state: LearnerState { fast, slow, optimizer }, history })
}

/// Every example that a step up to this `state` has trained on.
///
/// # Errors
/// [`SavedError`] if that cannot be told.
pub(crate) fn lineage(state: &[u8]) -> Result<Lineage, SavedError> {
    let StateV2 { history, .. } = decode_state(state)?;
    history.check().map_err(|what| SavedError::Contradiction { what })?;
    Ok(history.lineage)
}

/// A `state` section of any version, as one of the newest.
fn decode_state(section: &[u8]) -> Result<StateV2, SavedError> {
    match version(STATE, section)? {
        (STATE_V1, content) => {
            let StateV1 { lora, optimizer_steps, history } = whole(STATE, content)?;
            Ok(StateV2 { lora, optimizer_steps, history: history.try_into()? })
        }
        (STATE_V2, content) => whole(STATE, content),
        (newer, _) => Err(SavedError::Newer { section: STATE, found: newer.saturating_add(1) }),
    }
}

/// The first number of a section, and what is behind it.
fn version<'a>(section: &'static str, bytes: &'a [u8]) -> Result<(u32, &'a [u8]), SavedError> {
    postcard::take_from_bytes(bytes).map_err(|source| SavedError::Decode { section, source })
}

/// What fills `bytes` to their end.
fn whole<'a, T: Deserialize<'a>>(section: &'static str, bytes: &'a [u8]) -> Result<T, SavedError> {
    let (found, rest) = postcard::take_from_bytes(bytes).map_err(|source| SavedError::Decode { section, source })?;
    if rest.is_empty() { Ok(found) } else { Err(SavedError::Trailing { section, bytes: rest.len() }) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::example::ExampleId;
    use crate::learn::{Examples, Method, RunSettings, TrainerConfig};
    use crate::replay::Policy;

    pub(in crate::store) fn model() -> ModelConfig {
        ModelConfig {
            model_type: "llama".to_owned(),
            vocab_size: 8,
            hidden_size: 4,
            intermediate_size: 6,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            head_dim: 2,
            rms_norm_eps: 1e-5,
            rope_theta: 1e4,
            rope_scaling: mynah_models::config::RopeScaling::None,
            rope_pairing: mynah_models::config::RopePairing::Halves,
            max_position_embeddings: 16,
            tie_word_embeddings: true,
            qkv_bias: false,
            qk_norm: false,
        }
    }

    fn saved() -> Saved {
        let target_modules = vec![Projection::Down, Projection::Q];
        let lora = LoraConfig { rank: 2, alpha: 3.0, use_rslora: true, target_modules };
        let mut state = LearnerState::new(Adapter::init(&model(), &lora, 1).unwrap());
        state.slow.values_mut()[3] = 7.0;
        let mut history = History::new(Policy::BalancedReservoir { floor: 2 }, 3);
        let settings = |task: &str| RunSettings {
            examples: Examples::NotYetLearned(Some(task.to_owned())),
            method: Method::default(),
            trainer: TrainerConfig::default(),
            batch_rows: 2,
            seed: 9,
        };
        let ids: Vec<ExampleId> = (1..=6).map(ExampleId).collect();
        history.begin(settings("a"), ids.clone(), 2, |_| Some("a"));
        history.step_done(&ids, &[0.5, 1.0, 1.5, 2.0, 2.5, 3.0]);
        history.begin(settings("b"), ids[2..4].to_vec(), 2, |_| Some("a"));
        history.step_done(&ids[2..4], &[0.1, 0.2]);
        Saved { state, history }
    }

    fn sections<'a>(saved: &Saved, state: &'a [u8]) -> Sections<'a> {
        Sections {
            state,
            probes: None,
            fast: saved.state.fast.values().to_vec(),
            slow: saved.state.slow.values().to_vec(),
            moment1: saved.state.optimizer.first().to_vec(),
            moment2: saved.state.optimizer.second().to_vec(),
        }
    }

    #[test]
    fn what_is_saved_comes_back() {
        let saved = saved();
        let state = encode(&saved.state, &saved.history).unwrap();
        let back = decode(sections(&saved, &state), &model()).unwrap();
        assert_eq!(back.history, saved.history);
        assert_eq!((back.state.fast, back.state.slow), (saved.state.fast, saved.state.slow));
        assert_eq!(back.state.optimizer, saved.state.optimizer);
    }

    #[test]
    fn a_section_that_does_not_fit_is_named() {
        let saved = saved();
        let state = encode(&saved.state, &saved.history).unwrap();
        let refused = |change: &dyn Fn(&mut Sections<'_>)| {
            let mut sections = sections(&saved, &state);
            change(&mut sections);
            decode(sections, &model()).unwrap_err().to_string()
        };
        assert!(refused(&|s| s.state = &s.state[..9]).contains("`state`"));
        assert!(refused(&|s| s.moment2.truncate(1)).contains("`moment2`"));
        assert!(refused(&|s| s.moment1.clear()).contains("`moment2`"));
        assert!(refused(&|s| s.fast.truncate(1)).contains("values"));
        let longer = [&state[..], &[0]].concat();
        assert!(decode(sections(&saved, &longer), &model()).unwrap_err().to_string().contains("1 bytes too many"));
    }

    #[test]
    fn probes_come_back_or_say_what_is_wrong_with_them() {
        let score = |nll_before| ProbeScore { task: "a".to_owned(), examples: 3, nll: 0.5, nll_before };
        let probes = vec![score(None), score(Some(0.25))];
        let section = encode_probes(&probes).unwrap();
        assert_eq!(decode_probes(&section).unwrap(), probes);
        for length in 0..section.len() {
            let error = decode_probes(&section[..length]).unwrap_err().to_string();
            assert!(error.contains("`probes`"), "{error}");
        }
        assert!(matches!(decode_probes(&[1]), Err(SavedError::Newer { section: PROBES, found: 2 })));
        let longer = [&section[..], &[0]].concat();
        assert!(matches!(decode_probes(&longer), Err(SavedError::Trailing { section: PROBES, bytes: 1 })));
    }

    /// A `state` that the first version wrote: six examples of `cat` in six steps, then six of `dog` in six.
    #[test]
    fn a_state_of_version_1_is_read() {
        let hex: String = include_str!("golden_state_v1.hex").split_whitespace().collect();
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        let section: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        let StateV2 { lora, optimizer_steps, history } = decode_state(&section).unwrap();
        assert_eq!((lora.rank, lora.alpha, lora.target_modules.len(), optimizer_steps), (8, 16.0, 7, 0));
        history.check().unwrap();
        assert_eq!((history.steps, history.lineage.ranges(), history.memory.seen()), (12, &[(1, 12)][..], 6));
        let run = history.run.unwrap();
        assert_eq!((run.number, run.steps_done, run.steps_total, run.settings.batch_rows), (2, 6, 6, 4));
        assert_eq!(history.fresh.keys().map(|id| id.0).collect::<Vec<_>>(), [7, 8, 9, 10, 11, 12]);
        assert_eq!(history.memory.ids().map(|id| id.0).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
        assert_eq!(history.memory.tasks().collect::<Vec<_>>(), [("cat", 6)]);
    }

    #[test]
    fn no_changed_byte_of_the_state_makes_it_panic() {
        let saved = saved();
        let state = encode(&saved.state, &saved.history).unwrap();
        for at in 0..state.len() {
            for byte in [0, 1, 0x7f, 0x80, 0xff, state[at] ^ 1, state[at] ^ 0x10] {
                let mut changed = state.clone();
                changed[at] = byte;
                let Ok(Saved { mut history, .. }) = decode(sections(&saved, &changed), &model()) else { continue };
                // What was let in can be used.
                if let Some(run) = &history.run {
                    run.ids_of_step(run.steps_done);
                    run.draw(&history.memory, 2, |_| false);
                    let settings = run.settings.clone();
                    history.begin(settings, vec![ExampleId(1)], 3, |_| Some("c"));
                }
            }
        }
    }
}
