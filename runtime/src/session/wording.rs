//! What people write becomes token ids, and an interaction an example: through the chat template or as plain text.
//!
//! What a person wrote never becomes a control token, whatever it contains. Knows no model.

use mynah_models::chat_template::{ChatTemplate, Message, TemplateError};
use mynah_models::tokenizer::{ParseSpecial, Tokenizer};

use crate::example::{Example, ExampleError};
use crate::learn::Row;

/// How prompt and answer of an interaction stand in the text that the model sees.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PromptFormat {
    /// As a question and its answer in the model's chat template.
    Chat,
    /// As prompt, `join`, answer and the end-of-text token, without a template.
    Raw {
        /// What stands between the two; in most suites one space.
        join: String,
    },
}

impl PromptFormat {
    /// Prompt and answer with one space between.
    pub fn raw() -> Self {
        Self::Raw { join: " ".to_owned() }
    }
}

/// What a model should have answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interaction {
    /// What was asked.
    pub prompt: String,
    /// The right answer.
    pub answer: String,
    /// How the two become one text.
    pub format: PromptFormat,
    /// What it belongs to: 1 to 64 bytes, no control characters.
    pub task: String,
}

impl Interaction {
    /// Task of what is taught in passing.
    pub const DEFAULT_TASK: &'static str = "chat";

    /// A question and its answer in the chat template, of the task [`Interaction::DEFAULT_TASK`].
    pub fn chat(prompt: impl Into<String>, answer: impl Into<String>) -> Self {
        let task = Self::DEFAULT_TASK.to_owned();
        Self { prompt: prompt.into(), answer: answer.into(), format: PromptFormat::Chat, task }
    }

    /// A prompt and its answer with one space between, of a task.
    pub fn raw(task: impl Into<String>, prompt: impl Into<String>, answer: impl Into<String>) -> Self {
        Self { prompt: prompt.into(), answer: answer.into(), format: PromptFormat::raw(), task: task.into() }
    }
}

/// Why a text has no token ids, or an interaction is no example.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WordingError {
    /// The template cannot be used; [`TemplateError::Missing`] where the model file has none.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The vocabulary has no token that ends an answer, so a model could never learn to stop.
    #[error("the vocabulary has neither an end-of-text nor an end-of-turn token")]
    NoEndToken,
    /// Prompt and answer make no example.
    #[error(transparent)]
    Example(#[from] ExampleError),
}

/// A tokenizer and a chat template of one model.
#[derive(Debug)]
pub(crate) struct Wording {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template: Option<ChatTemplate>,
    /// What ends an answer, where it is not what the vocabulary says.
    pub(crate) end_token: Option<u32>,
}

/// Prompt and answer as ids, the end token last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Worded {
    pub(crate) tokens: Vec<u32>,
    pub(crate) prompt_len: usize,
}

impl Worded {
    /// As a row of a batch.
    pub(crate) fn row(&self) -> Row<'_> {
        Row { tokens: &self.tokens, prompt_len: self.prompt_len }
    }
}

impl Wording {
    /// Ids of a plain text as a prompt, with the token in front that the model expects there.
    pub(crate) fn raw_prompt(&self, text: &str) -> Vec<u32> {
        let ids = self.tokenizer.encode(text, ParseSpecial::No);
        if self.tokenizer.adds_bos() { self.behind_bos(ids) } else { ids }
    }

    /// Ids of a conversation, up to where the model's next answer begins.
    ///
    /// # Errors
    /// [`TemplateError::Missing`] without a template; what the template makes of these messages.
    pub(crate) fn chat_prompt(&self, messages: &[Message]) -> Result<Vec<u32>, TemplateError> {
        self.conversation(messages, true)
    }

    /// Whether generation stops at this token.
    pub(crate) fn ends_answer(&self, id: u32) -> bool {
        self.end_token == Some(id) || self.tokenizer.is_end_of_generation(id)
    }

    /// Ids of an interaction.
    ///
    /// # Errors
    /// [`WordingError`]; the limits of an [`Example`] are not looked at.
    pub(crate) fn word(&self, interaction: &Interaction) -> Result<Worded, WordingError> {
        match &interaction.format {
            PromptFormat::Raw { join } => self.raw(&interaction.prompt, join, &interaction.answer),
            PromptFormat::Chat => self.chat(&interaction.prompt, &interaction.answer),
        }
    }

    /// The example that an interaction at `time_unix_s` makes.
    ///
    /// # Errors
    /// [`WordingError`], among them an empty prompt or answer, and too many tokens.
    pub(crate) fn example(&self, interaction: &Interaction, time_unix_s: u64) -> Result<Example, WordingError> {
        // Before the template can put words around it.
        if interaction.answer.is_empty() {
            return Err(ExampleError::EmptyAnswer.into());
        }
        if interaction.prompt.is_empty() {
            return Err(ExampleError::EmptyPrompt.into());
        }
        let Worded { tokens, prompt_len } = self.word(interaction)?;
        Ok(Example::from_tokens(tokens, prompt_len, &interaction.task, time_unix_s)?)
    }

    fn raw(&self, prompt: &str, join: &str, answer: &str) -> Result<Worded, WordingError> {
        let end = self.end_token.or(self.tokenizer.eos()).or(self.tokenizer.eot()).ok_or(WordingError::NoEndToken)?;
        let prompt_ids = self.raw_prompt(prompt);
        let whole = self.raw_prompt(&format!("{prompt}{join}{answer}"));
        let (mut tokens, prompt_len) = if whole.starts_with(&prompt_ids) {
            (whole, prompt_ids.len())
        } else {
            self.separate(prompt_ids, &format!("{join}{answer}"), whole)
        };
        tokens.push(end);
        Ok(Worded { tokens, prompt_len })
    }

    /// Prompt and rest where a token reaches across the border of the two in the `whole` text.
    ///
    /// Generation starts from the prompt's own ids, so those followed by the rest's are what a model should learn, if they
    /// spell the text. In a vocabulary whose ids spell otherwise, with a space put in front of every text, the prompt ends
    /// where the two ways of writing part.
    fn separate(&self, prompt_ids: Vec<u32>, rest: &str, whole: Vec<u32>) -> (Vec<u32>, usize) {
        let mut tokens = prompt_ids.clone();
        tokens.extend(self.tokenizer.encode(rest, ParseSpecial::No));
        if self.tokenizer.decode_bytes(&tokens) == self.tokenizer.decode_bytes(&whole) {
            return (tokens, prompt_ids.len());
        }
        let common = whole.iter().zip(&prompt_ids).take_while(|(a, b)| a == b).count();
        (whole, common)
    }

    /// A question and its answer as the template writes them, up to the token that ends the answer.
    fn chat(&self, prompt: &str, answer: &str) -> Result<Worded, WordingError> {
        let question = Message::user(prompt);
        let mut tokens = self.chat_prompt(std::slice::from_ref(&question))?;
        let prompt_len = tokens.len();
        let whole = self.conversation(&[question, Message::assistant(answer)], false)?;
        let ends = |id: &u32| self.ends_answer(*id);
        let answered = whole.strip_prefix(&tokens[..]).and_then(|rest| Some(&rest[..=rest.iter().position(ends)?]));
        match answered {
            Some(answered) => tokens.extend_from_slice(answered),
            // A template that writes an answer it was given otherwise than one it asks for, or does not end it.
            None => {
                let end = self.end_token.or(self.tokenizer.eot()).or(self.tokenizer.eos());
                let end = end.ok_or(WordingError::NoEndToken)?;
                tokens.extend(self.tokenizer.encode(answer, ParseSpecial::No));
                tokens.push(end);
            }
        }
        Ok(Worded { tokens, prompt_len })
    }

    fn conversation(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Vec<u32>, TemplateError> {
        let template = self.template.as_ref().ok_or(TemplateError::Missing)?;
        let ids = if messages.iter().all(|message| self.is_plain(&message.content)) {
            self.tokenizer.encode(&template.render(messages, add_generation_prompt)?, ParseSpecial::Yes)
        } else {
            self.guarded_conversation(template, messages, add_generation_prompt)?
        };
        Ok(if self.tokenizer.adds_bos() { self.behind_bos(ids) } else { ids })
    }

    /// Whether no part of a text reads as a control token.
    fn is_plain(&self, text: &str) -> bool {
        self.tokenizer.encode(text, ParseSpecial::Yes) == self.tokenizer.encode(text, ParseSpecial::No)
    }

    /// A conversation whose messages spell control tokens: the template sees a mark for each message, and only what
    /// stands around the marks is read for control tokens.
    fn guarded_conversation(
        &self,
        template: &ChatTemplate,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>, TemplateError> {
        // Of the private use area: no template writes it, and it is followed by a number and itself.
        const MARK: char = '\u{f6d9}';
        let marked =
            |(index, message): (usize, &Message)| Message::new(message.role.clone(), format!("{MARK}{index}{MARK}"));
        let marked: Vec<Message> = messages.iter().enumerate().map(marked).collect();
        let mut ids = Vec::new();
        for (at, part) in template.render(&marked, add_generation_prompt)?.split(MARK).enumerate() {
            let message = part.parse().ok().and_then(|index: usize| messages.get(index)).filter(|_| at % 2 == 1);
            ids.extend(match message {
                Some(message) => self.tokenizer.encode(&message.content, ParseSpecial::No),
                None => self.tokenizer.encode(part, ParseSpecial::Yes),
            });
        }
        Ok(ids)
    }

    fn behind_bos(&self, mut ids: Vec<u32>) -> Vec<u32> {
        if let Some(bos) = self.tokenizer.bos().filter(|bos| ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        ids
    }
}
