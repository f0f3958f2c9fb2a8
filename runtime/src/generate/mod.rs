//! A prompt becomes text: prefill in chunks, then decode token by token until a rule stops it.
//!
//! The tokens already in the cache are kept as far as they agree with the next prompt, so that a turn of a chat computes
//! only what is new. Knows nothing of learning: whoever serves another adapter forgets the cache
//! ([`Conversation::forget`]).

pub mod sampler;
pub mod stream;

use std::time::{Duration, Instant};

use mynah_models::{ComputeError, Stop};

pub use sampler::{Sampler, Sampling, SamplingError};
pub use stream::TextStream;

/// Prompt tokens computed at once. Bounds the memory of activations and the time until a cancel is seen.
const PREFILL_CHUNK_TOKENS: usize = 128;

/// What to generate and when to stop.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    /// New tokens at most. Default 256.
    pub max_new_tokens: usize,
    /// How tokens are chosen. Default: the likeliest.
    pub sampling: Sampling,
    /// Strings that end the text, themselves left out. Default none.
    pub stop: Vec<String>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self { max_new_tokens: 256, sampling: Sampling::default(), stop: Vec::new() }
    }
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// The model said so, with an end-of-generation token: the last of the ids, not part of the text.
    EndOfGeneration,
    /// [`GenerateOptions::max_new_tokens`] are there.
    MaxNewTokens,
    /// One of [`GenerateOptions::stop`] came up.
    StopString,
    /// Someone cancelled, or the callback returned false.
    Cancelled,
    /// The context has no room for another token. Nothing is shifted out or forgotten: start with a shorter prompt.
    ContextFull,
}

impl StopReason {
    /// The name used in reports: `end_of_generation`, `max_new_tokens`, `stop_string`, `cancelled`, `context_full`.
    pub fn name(self) -> &'static str {
        match self {
            Self::EndOfGeneration => "end_of_generation",
            Self::MaxNewTokens => "max_new_tokens",
            Self::StopString => "stop_string",
            Self::Cancelled => "cancelled",
            Self::ContextFull => "context_full",
        }
    }
}

/// What was generated.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Generation {
    /// The new tokens, those of a stop string and an end-of-generation token included.
    pub ids: Vec<u32>,
    /// All text that was delivered.
    pub text: String,
    /// Why it ended.
    pub stop_reason: StopReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// How many of them were in the cache already.
    pub reused_tokens: usize,
    /// Time of the prefill.
    pub prefill_time: Duration,
    /// Time from there to the end, the callbacks included.
    pub decode_time: Duration,
}

/// Why nothing was generated, or not to the end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// The prompt has no token.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// The prompt does not fit.
    #[error("the prompt has {prompt_tokens} tokens, the context holds {context_tokens}")]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Tokens that the context can hold.
        context_tokens: usize,
    },
    /// A sampling setting is out of range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The device failed.
    #[error(transparent)]
    Compute(#[from] ComputeError),
}

/// A model with its cache, seen as a row of tokens that grows at the end.
pub trait Context {
    /// Tokens it can hold.
    fn capacity(&self) -> usize;

    /// Keeps the first `len` tokens.
    fn truncate(&mut self, len: usize);

    /// Appends tokens, at least one, and gives the logits that follow the last of them, one per token id.
    ///
    /// # Errors
    /// [`ComputeError::Cancelled`] when `stop` asks for it; then, and after any other error, the tokens from before the
    /// call are still there and a `truncate` to their number makes the context usable again.
    fn append(&mut self, ids: &[u32], stop: &Stop) -> Result<Vec<f32>, ComputeError>;
}

/// What generation asks of a tokenizer.
pub trait Vocabulary {
    /// The bytes that a token stands for; empty for special tokens.
    fn bytes(&self, id: u32) -> Vec<u8>;

    /// Whether the token ends a turn or a text.
    fn is_end_of_generation(&self, id: u32) -> bool;
}

/// A [`Context`] and the tokens that are in it.
#[derive(Debug)]
pub struct Conversation<C> {
    context: C,
    ids: Vec<u32>,
}

impl<C: Context> Conversation<C> {
    /// An empty conversation over an empty context.
    pub fn new(context: C) -> Self {
        Self { context, ids: Vec::new() }
    }

    /// Drops all tokens, as another adapter makes necessary.
    pub fn forget(&mut self) {
        self.context.truncate(0);
        self.ids.clear();
    }

    /// The context itself; whoever changes what it computes calls [`Conversation::forget`].
    pub fn context_mut(&mut self) -> &mut C {
        &mut self.context
    }

    /// The context as it is.
    pub fn context(&self) -> &C {
        &self.context
    }

    /// Continues `prompt`, handing every new whole piece of text to `on_text` until that returns false.
    ///
    /// A cancel through `stop` is no error: what was generated so far is the result.
    ///
    /// # Errors
    /// [`GenerateError`]; the conversation stays usable.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        vocabulary: &dyn Vocabulary,
        stop: &Stop,
        on_text: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Generation, GenerateError> {
        self.check_length(prompt)?;
        let mut sampler = Sampler::new(options.sampling.clone())?;
        let reused_tokens = self.keep_common_prefix(prompt);
        let started = Instant::now();
        let mut output = Output::new(options, vocabulary, on_text);
        let prefilled = if options.max_new_tokens == 0 { Ok(None) } else { self.prefill(prompt, stop).map(Some) };
        let prefill_time = started.elapsed();
        let stop_reason = match prefilled {
            Ok(None) => StopReason::MaxNewTokens,
            Ok(Some(logits)) => self.decode(logits, &mut sampler, &mut output, stop)?,
            Err(ComputeError::Cancelled) => StopReason::Cancelled,
            Err(error) => return Err(error.into()),
        };
        let (ids, text) = output.finish(stop_reason);
        let decode_time = started.elapsed() - prefill_time;
        let prompt_tokens = prompt.len();
        Ok(Generation { ids, text, stop_reason, prompt_tokens, reused_tokens, prefill_time, decode_time })
    }

    fn check_length(&self, prompt: &[u32]) -> Result<(), GenerateError> {
        let context_tokens = self.context.capacity();
        match prompt.len() {
            0 => Err(GenerateError::EmptyPrompt),
            prompt_tokens if prompt_tokens > context_tokens => {
                Err(GenerateError::PromptTooLong { prompt_tokens, context_tokens })
            }
            _ => Ok(()),
        }
    }

    /// Truncates to what the prompt shares with the tokens that are there; one token of it is always left to compute.
    fn keep_common_prefix(&mut self, prompt: &[u32]) -> usize {
        let common = self.ids.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let kept = common.min(prompt.len() - 1);
        self.truncate(kept);
        kept
    }

    fn truncate(&mut self, len: usize) {
        self.ids.truncate(len);
        self.context.truncate(len);
    }

    /// Computes what is missing of `prompt`; gives the logits after its last token.
    fn prefill(&mut self, prompt: &[u32], stop: &Stop) -> Result<Vec<f32>, ComputeError> {
        let mut logits = Vec::new();
        for chunk in prompt[self.ids.len()..].chunks(PREFILL_CHUNK_TOKENS) {
            logits = self.append(chunk, stop)?;
        }
        Ok(logits)
    }

    fn append(&mut self, ids: &[u32], stop: &Stop) -> Result<Vec<f32>, ComputeError> {
        match self.context.append(ids, stop) {
            Ok(logits) => {
                self.ids.extend_from_slice(ids);
                Ok(logits)
            }
            Err(error) => {
                self.context.truncate(self.ids.len());
                Err(error)
            }
        }
    }

    /// Chooses tokens, from the logits after the prompt on, until a rule stops it.
    fn decode(
        &mut self,
        mut logits: Vec<f32>,
        sampler: &mut Sampler,
        output: &mut Output<'_>,
        stop: &Stop,
    ) -> Result<StopReason, ComputeError> {
        loop {
            let id = sampler.sample(&mut logits, &self.ids);
            if let Some(reason) = output.take(id) {
                return Ok(reason);
            }
            if self.ids.len() == self.context.capacity() {
                return Ok(StopReason::ContextFull);
            }
            logits = match self.append(&[id], stop) {
                Err(ComputeError::Cancelled) => return Ok(StopReason::Cancelled),
                appended => appended?,
            };
        }
    }
}

/// New tokens on their way to the caller.
struct Output<'a> {
    vocabulary: &'a dyn Vocabulary,
    on_text: &'a mut dyn FnMut(&str) -> bool,
    max_new_tokens: usize,
    stream: TextStream,
    ids: Vec<u32>,
    text: String,
}

impl<'a> Output<'a> {
    fn new(
        options: &GenerateOptions,
        vocabulary: &'a dyn Vocabulary,
        on_text: &'a mut dyn FnMut(&str) -> bool,
    ) -> Self {
        let stream = TextStream::new(&options.stop);
        let max_new_tokens = options.max_new_tokens;
        Self { vocabulary, on_text, max_new_tokens, stream, ids: Vec::new(), text: String::new() }
    }

    /// Takes one token; tells whether it was the last one, and why.
    fn take(&mut self, id: u32) -> Option<StopReason> {
        self.ids.push(id);
        if self.vocabulary.is_end_of_generation(id) {
            return Some(StopReason::EndOfGeneration);
        }
        let piece = self.stream.push(&self.vocabulary.bytes(id));
        let wanted = self.deliver(&piece);
        if self.stream.stopped() {
            Some(StopReason::StopString)
        } else if !wanted {
            Some(StopReason::Cancelled)
        } else if self.ids.len() >= self.max_new_tokens {
            Some(StopReason::MaxNewTokens)
        } else {
            None
        }
    }

    fn deliver(&mut self, piece: &str) -> bool {
        self.text.push_str(piece);
        piece.is_empty() || (self.on_text)(piece)
    }

    /// Delivers what was held back, if anyone still listens; gives ids and text.
    fn finish(mut self, reason: StopReason) -> (Vec<u32>, String) {
        let stream = std::mem::replace(&mut self.stream, TextStream::new::<&str>(&[]));
        if reason != StopReason::Cancelled {
            self.deliver(&stream.finish());
        }
        (self.ids, self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts on from its last token; knows what was computed.
    struct Counting {
        ids: Vec<u32>,
        capacity: usize,
        appended: Vec<usize>,
        fail_at: Option<usize>,
    }

    const WORDS: [&str; 10] = ["", "a", "b", "c", "d", "e", "f", "g", "h", "i"];
    const END: u32 = 9;

    impl Context for Counting {
        fn capacity(&self) -> usize {
            self.capacity
        }

        fn truncate(&mut self, len: usize) {
            self.ids.truncate(len);
        }

        fn append(&mut self, ids: &[u32], _: &Stop) -> Result<Vec<f32>, ComputeError> {
            self.ids.extend_from_slice(ids);
            if self.fail_at.is_some_and(|len| self.ids.len() >= len) {
                return Err(ComputeError::Cancelled);
            }
            assert!(self.ids.len() <= self.capacity);
            self.appended.push(ids.len());
            let mut logits = vec![0.0; WORDS.len()];
            logits[(ids[ids.len() - 1] as usize + 1) % WORDS.len()] = 1.0;
            Ok(logits)
        }
    }

    struct Letters;

    impl Vocabulary for Letters {
        fn bytes(&self, id: u32) -> Vec<u8> {
            WORDS[id as usize].into()
        }

        fn is_end_of_generation(&self, id: u32) -> bool {
            id == END
        }
    }

    fn conversation(capacity: usize) -> Conversation<Counting> {
        Conversation::new(Counting { ids: Vec::new(), capacity, appended: Vec::new(), fail_at: None })
    }

    fn run(
        conversation: &mut Conversation<Counting>,
        prompt: &[u32],
        change: impl FnOnce(&mut GenerateOptions),
    ) -> Generation {
        let mut options = GenerateOptions::default();
        change(&mut options);
        let mut heard = String::new();
        let mut listen = |piece: &str| {
            heard.push_str(piece);
            true
        };
        let generation = conversation.generate(prompt, &options, &Letters, &Stop::default(), &mut listen).unwrap();
        assert_eq!(heard, generation.text);
        assert_eq!(conversation.ids, conversation.context.ids, "what is believed to be in the cache is there");
        generation
    }

    #[test]
    fn each_rule_stops_it() {
        let check = |change: fn(&mut GenerateOptions), capacity, ids: &[u32], text, reason| {
            let generation = run(&mut conversation(capacity), &[1, 2], change);
            assert_eq!((&generation.ids[..], generation.text.as_str(), generation.stop_reason), (ids, text, reason));
        };
        check(|_| (), 100, &[3, 4, 5, 6, 7, 8, 9], "cdefgh", StopReason::EndOfGeneration);
        check(|o| o.max_new_tokens = 2, 100, &[3, 4], "cd", StopReason::MaxNewTokens);
        check(|o| o.max_new_tokens = 0, 100, &[], "", StopReason::MaxNewTokens);
        check(|o| o.stop = vec!["ef".into()], 100, &[3, 4, 5, 6], "cd", StopReason::StopString);
        check(|o| o.stop = vec!["hx".into()], 100, &[3, 4, 5, 6, 7, 8, 9], "cdefgh", StopReason::EndOfGeneration);
        check(|_| (), 4, &[3, 4, 5], "cde", StopReason::ContextFull);
        check(|_| (), 2, &[3], "c", StopReason::ContextFull);
    }

    #[test]
    fn a_callback_that_returns_false_is_not_called_again() {
        let mut calls = 0;
        let mut refuse = |_: &str| {
            calls += 1;
            false
        };
        let options = GenerateOptions { stop: vec!["dx".into()], ..Default::default() };
        let stop = Stop::default();
        let generation = conversation(100).generate(&[1, 2], &options, &Letters, &stop, &mut refuse).unwrap();
        assert_eq!((generation.stop_reason, generation.text.as_str(), calls), (StopReason::Cancelled, "c", 1));
    }

    #[test]
    fn a_turn_computes_only_what_is_new() {
        let mut conversation = conversation(100);
        let first = run(&mut conversation, &[1, 1, 1, 2], |o| o.max_new_tokens = 2);
        assert_eq!((first.reused_tokens, first.ids), (0, vec![3, 4]));
        // In the cache: 1 1 1 2 3; the 4 was chosen but not computed.
        let second = run(&mut conversation, &[1, 1, 1, 2, 3, 4, 7], |o| o.max_new_tokens = 1);
        assert_eq!((second.reused_tokens, second.prompt_tokens), (5, 7));
        let other = run(&mut conversation, &[1, 1, 5], |o| o.max_new_tokens = 1);
        assert_eq!(other.reused_tokens, 2);
        let same = run(&mut conversation, &[1, 1, 5], |o| o.max_new_tokens = 1);
        assert_eq!((same.reused_tokens, same.ids), (2, vec![6]), "the last token is computed again for its logits");
        conversation.forget();
        assert_eq!(run(&mut conversation, &[1, 1, 5], |o| o.max_new_tokens = 1).reused_tokens, 0);
    }

    #[test]
    fn a_long_prompt_is_computed_in_chunks() {
        let mut conversation = conversation(1000);
        run(&mut conversation, &[1; 300], |o| o.max_new_tokens = 1);
        assert_eq!(conversation.context.appended, [128, 128, 44]);
    }

    #[test]
    fn a_cancel_in_any_append_keeps_what_was_there() {
        for fail_at in 1..8 {
            let mut conversation = conversation(100);
            conversation.context.fail_at = Some(fail_at);
            let generation = run(&mut conversation, &[1, 2], |o| o.max_new_tokens = 5);
            let expected = if fail_at < 3 { 0 } else { (fail_at - 2).min(5) };
            assert_eq!(generation.ids.len(), expected, "failing at {fail_at}");
            conversation.context.fail_at = None;
            assert_eq!(run(&mut conversation, &[1, 2], |o| o.max_new_tokens = 2).text, "cd");
        }
    }

    #[test]
    fn a_prompt_that_does_not_fit_says_both_lengths() {
        let fail = |prompt: &[u32]| {
            let options = GenerateOptions::default();
            conversation(3).generate(prompt, &options, &Letters, &Stop::default(), &mut |_| true).unwrap_err()
        };
        assert!(matches!(fail(&[1; 4]), GenerateError::PromptTooLong { prompt_tokens: 4, context_tokens: 3 }));
        assert!(matches!(fail(&[]), GenerateError::EmptyPrompt));
    }
}
