//! Text from the model with the served adapter.

use std::cell::Cell;
use std::sync::Arc;

use mynah_models::chat_template::Message;
use mynah_models::{ComputeError, DeviceAdapter, KvCache, Model, Stop};

use super::control::Phase;
use super::error::SessionError;
use super::recovery::device_failure;
use super::threads::Threads;
use super::wording::Wording;
use super::{Learner, Session};
use crate::generate::{Context, Conversation, GenerateOptions, Generation, Vocabulary};

/// A model with one adapter and the cache of one conversation.
#[derive(Debug)]
pub(crate) struct ModelContext {
    model: Arc<Model>,
    adapter: Option<DeviceAdapter>,
    cache: KvCache,
    threads: Arc<Threads>,
}

impl Context for ModelContext {
    fn capacity(&self) -> usize {
        self.cache.capacity()
    }

    fn truncate(&mut self, len: usize) {
        self.cache.truncate(len);
    }

    fn append(&mut self, ids: &[u32], stop: &Stop) -> Result<Vec<f32>, ComputeError> {
        let Self { model, adapter, cache, threads } = self;
        threads.run(|| model.decode(cache, ids, adapter.as_ref(), stop))
    }
}

impl Vocabulary for Wording {
    fn bytes(&self, id: u32) -> Vec<u8> {
        if self.tokenizer.is_special(id) { Vec::new() } else { self.tokenizer.token_bytes(id) }
    }

    fn is_end_of_generation(&self, id: u32) -> bool {
        self.ends_answer(id)
    }
}

/// The conversation in hand, and what it is computed with.
#[derive(Debug)]
pub(crate) struct Serving {
    conversation: Conversation<ModelContext>,
    /// Which state of which learner the adapter on the device is.
    adapter_of: (u64, Learner),
}

impl Session {
    /// Continues a plain text, without a chat template; text in it never reads as a control token.
    ///
    /// Every new whole piece of text goes to `on_text`, on this thread, until that returns false. The tokens that
    /// `prompt` shares with the last call's prompt and answer are not computed again, unless the adapter has changed.
    ///
    /// # Errors
    /// [`SessionError::Generate`]: an empty prompt, one longer than the context, a setting out of range, a failed device.
    pub fn generate(
        &mut self,
        prompt: &str,
        options: &GenerateOptions,
        on_text: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Generation, SessionError> {
        let ids = self.wording.raw_prompt(prompt);
        self.generate_ids(&ids, options, on_text)
    }

    /// Answers the last message of a conversation, through the model's chat template; else as [`Session::generate`].
    ///
    /// # Errors
    /// As [`Session::generate`]; [`SessionError::Wording`] if the model has no template or it refuses the messages.
    pub fn chat(
        &mut self,
        messages: &[Message],
        options: &GenerateOptions,
        on_text: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Generation, SessionError> {
        let ids = self.wording.chat_prompt(messages)?;
        self.generate_ids(&ids, options, on_text)
    }

    /// Continues token ids; else as [`Session::generate`].
    ///
    /// # Errors
    /// As [`Session::generate`].
    pub fn generate_ids(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        on_text: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Generation, SessionError> {
        let busy = self.control.begin(Phase::Generating, options.max_new_tokens as u64);
        let has_spoken = Cell::new(false);
        let mut heard = |text: &str| {
            has_spoken.set(true);
            on_text(text)
        };
        let generated = self.repeated_elsewhere(|session| {
            let generated = session.generate_once(prompt, options, &mut heard);
            match &generated {
                // What was delivered cannot be taken back: the next call finds another device, this one has its error.
                Err(error) if has_spoken.get() && device_failure(error).is_some() => {
                    session.replace_device(error)?;
                    Ok(generated)
                }
                _ => generated.map(Ok),
            }
        });
        drop(busy);
        generated?
    }

    fn generate_once(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        on_text: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Generation, SessionError> {
        let mut serving = self.serving()?;
        let mut pieces = 0;
        let control = self.control.clone();
        let mut counted = |text: &str| {
            pieces += 1;
            control.set_done(pieces);
            on_text(text)
        };
        let stop = self.control.stop();
        let generated = serving.conversation.generate(prompt, options, &self.wording, stop, &mut counted);
        self.serving = Some(serving);
        Ok(generated?)
    }

    /// The conversation in hand, with the adapter that is to be served now; an emptied one if that is another.
    fn serving(&mut self) -> Result<Serving, SessionError> {
        let adapter_of = (self.state_version, self.served);
        let mut serving = match self.serving.take() {
            Some(serving) if serving.adapter_of == adapter_of => return Ok(serving),
            Some(serving) => serving,
            None => Serving { conversation: Conversation::new(self.context()), adapter_of },
        };
        serving.conversation.forget();
        serving.conversation.context_mut().adapter = self.adapter_on_device(self.served)?;
        serving.adapter_of = adapter_of;
        Ok(serving)
    }

    fn context(&self) -> ModelContext {
        let (model, threads) = (Arc::clone(&self.model), Arc::clone(&self.threads));
        ModelContext { cache: model.new_cache(self.context_tokens), adapter: None, model, threads }
    }

    /// A learner's adapter for passes without gradients; none if it changes nothing, as before the first step.
    pub(crate) fn adapter_on_device(&self, learner: Learner) -> Result<Option<DeviceAdapter>, ComputeError> {
        let adapter = self.adapter(learner);
        let all_b_zero =
            adapter.layout().pairs().iter().all(|pair| adapter.values()[pair.b.clone()].iter().all(|b| *b == 0.0));
        if all_b_zero { Ok(None) } else { self.model.upload(adapter).map(Some) }
    }
}
