//! A conversation becomes the text that a chat model was trained to continue, by the template in its file.
//!
//! Templates are programs from an untrusted file. They run in minijinja, which gives them no files, no network and no
//! clock, and here with limits on the size of the source, on instructions, on recursion and on the size of the result.
//! What they can still do is build large strings on the way to a small result.

use std::fmt;
use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value, ValueKind, from_args};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, context};
use thiserror::Error as ThisError;

use crate::tokenizer::Tokenizer;
use crate::weights::Gguf;

const KEY: &str = "tokenizer.chat_template";
/// The longest known template has about 20 KiB.
const MAX_SOURCE_BYTES: usize = 128 << 10;
/// Far beyond any context, in characters.
const MAX_RESULT_BYTES: usize = 8 << 20;
/// Some 50 per message: ten thousand messages.
const FUEL: u64 = 1_000_000;
const MAX_RECURSION: usize = 64;
const NAME: &str = "chat_template";

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant` in all common templates.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn of anyone.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }

    /// A turn of the person.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// A turn of the model.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }

    /// What the model is told before the conversation.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }
}

/// A chat template cannot be used, or not for this conversation.
#[derive(Debug, ThisError)]
#[non_exhaustive]
pub enum TemplateError {
    /// The model file has no template. It may be no chat model: a plain-text fallback is up to the caller.
    #[error("the model file has no chat template")]
    Missing,
    /// The template is longer than any known one.
    #[error("chat template of {len_bytes} bytes, the limit is {limit_bytes}")]
    TooLarge {
        /// Its length.
        len_bytes: usize,
        /// The longest accepted.
        limit_bytes: usize,
    },
    /// The result is longer than any context.
    #[error("the chat template makes more than {limit_bytes} bytes")]
    ResultTooLarge {
        /// The longest accepted.
        limit_bytes: usize,
    },
    /// The template takes more instructions than any known one.
    #[error("the chat template does not end within {instructions} instructions")]
    OutOfFuel {
        /// The most accepted.
        instructions: u64,
    },
    /// The template itself refuses the conversation, for example its order of roles.
    #[error("the chat template refuses this conversation: {message}")]
    Refused {
        /// What the template says.
        message: String,
    },
    /// The template does not compile, or fails.
    #[error("chat template: {source}")]
    Template {
        /// Where and why.
        #[source]
        source: Error,
    },
}

/// A compiled template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Compiles the template of a model file. The tokenizer gives the text of the tokens that templates may name.
    ///
    /// # Errors
    /// [`TemplateError::Missing`] if the file has none; [`TemplateError::TooLarge`], [`TemplateError::Template`].
    pub fn from_gguf(gguf: &Gguf, tokenizer: &Tokenizer) -> Result<Self, TemplateError> {
        let source = gguf.metadata().str(KEY).ok_or(TemplateError::Missing)?;
        let text = |id: Option<u32>| id.map(|id| tokenizer.decode(&[id])).unwrap_or_default();
        Self::new(source, text(tokenizer.bos()), text(tokenizer.eos()))
    }

    /// Compiles a template; `bos` and `eos` are the texts of those tokens.
    ///
    /// # Errors
    /// [`TemplateError::TooLarge`], [`TemplateError::Template`].
    pub fn new(source: &str, bos: impl Into<String>, eos: impl Into<String>) -> Result<Self, TemplateError> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(TemplateError::TooLarge { len_bytes: source.len(), limit_bytes: MAX_SOURCE_BYTES });
        }
        let mut environment = Environment::new();
        // As Hugging Face's own renderer is set.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(template_error)?;
        environment.set_syntax(syntax);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(MAX_RECURSION);
        environment.set_unknown_method_callback(python_method);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::from(ErrorKind::InvalidOperation).with_source(Refusal(message)))
        });
        environment.add_template_owned(NAME, source.to_owned()).map_err(template_error)?;
        Ok(Self { environment, bos: bos.into(), eos: eos.into() })
    }

    /// The text of a conversation; with `add_generation_prompt` it ends where the model's answer begins.
    ///
    /// Markers in it are to be read as special tokens, so this is for [`ParseSpecial::Yes`](crate::tokenizer::ParseSpecial).
    ///
    /// # Errors
    /// [`TemplateError::Refused`] carries the template's own words; the others are limits and faults of the template.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TemplateError> {
        let messages: Vec<Value> = messages
            .iter()
            .map(|message| context! { role => message.role.as_str(), content => message.content.as_str() })
            .collect();
        let template = self.environment.get_template(NAME).map_err(template_error)?;
        let mut result = Bounded::default();
        let rendered = template.render_captured_to(
            context! {
                messages,
                add_generation_prompt,
                bos_token => self.bos.as_str(),
                eos_token => self.eos.as_str(),
                tools => (),
                documents => (),
            },
            &mut result,
        );
        if result.overflowed {
            return Err(TemplateError::ResultTooLarge { limit_bytes: MAX_RESULT_BYTES });
        }
        rendered.map_err(template_error)?;
        // The engine writes whole strings.
        Ok(String::from_utf8(result.bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").finish_non_exhaustive()
    }
}

/// A buffer that stops taking bytes at the limit.
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
    overflowed: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_RESULT_BYTES {
            self.overflowed = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a template says when it calls `raise_exception`.
#[derive(Debug, ThisError)]
#[error("{0}")]
struct Refusal(String);

fn template_error(error: Error) -> TemplateError {
    if error.kind() == ErrorKind::OutOfFuel {
        return TemplateError::OutOfFuel { instructions: FUEL };
    }
    // The refusal is at the end of the causes when it was raised inside a macro.
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(at) = cause {
        if let Some(Refusal(message)) = at.downcast_ref() {
            return TemplateError::Refused { message: message.clone() };
        }
        cause = at.source();
    }
    TemplateError::Template { source: error }
}

/// The methods of Python's strings and dicts that templates in use call.
fn python_method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match (value.as_str(), value.kind()) {
        (Some(text), _) => string_method(text, method, args),
        (_, ValueKind::Map) => map_method(state, value, method, args),
        _ => Err(ErrorKind::UnknownMethod.into()),
    }
}

fn string_method(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    Ok(match method {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            let stripped = |c: char| chars.map_or_else(|| c.is_whitespace(), |chars| chars.contains(c));
            let text = if method == "rstrip" { text } else { text.trim_start_matches(stripped) };
            Value::from(if method == "lstrip" { text } else { text.trim_end_matches(stripped) })
        }
        "startswith" => Value::from(text.starts_with(from_args::<(&str,)>(args)?.0)),
        "endswith" => Value::from(text.ends_with(from_args::<(&str,)>(args)?.0)),
        "split" => split(text, args)?,
        "replace" => {
            let (from, to): (&str, &str) = from_args(args)?;
            Value::from(text.replace(from, to))
        }
        "upper" => Value::from(text.to_uppercase()),
        "lower" => Value::from(text.to_lowercase()),
        "capitalize" => Value::from(capitalize(text)),
        "title" => Value::from(text.split(' ').map(capitalize).collect::<Vec<_>>().join(" ")),
        _ => return Err(ErrorKind::UnknownMethod.into()),
    })
}

/// `split()` at runs of blanks, `split(separator)`, `split(separator, maxsplit)`.
fn split(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator, maxsplit, _): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
    let limit =
        maxsplit.and_then(|limit| usize::try_from(limit).ok()).map_or(usize::MAX, |limit| limit.saturating_add(1));
    Ok(match separator {
        Some("") => return Err(Error::new(ErrorKind::InvalidOperation, "empty separator")),
        Some(separator) => text.splitn(limit, separator).map(Value::from).collect(),
        None => text.split_whitespace().map(Value::from).collect(),
    })
}

fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map(|first| first.to_uppercase().chain(chars.flat_map(char::to_lowercase)).collect())
        .unwrap_or_default()
}

fn map_method(state: &mut State, map: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match method {
        "items" => state.apply_filter("items", std::slice::from_ref(map)),
        "keys" => Ok(map.try_iter()?.collect()),
        "values" => map.try_iter()?.map(|key| map.get_item(&key)).collect(),
        "get" => {
            let (key, default): (Value, Option<Value>) = from_args(args)?;
            let found = map.get_item(&key)?;
            Ok(if found.is_undefined() { default.unwrap_or_else(|| Value::from(())) } else { found })
        }
        _ => Err(ErrorKind::UnknownMethod.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + \
        '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

    fn render(source: &str, messages: &[Message]) -> Result<String, TemplateError> {
        ChatTemplate::new(source, "<s>", "</s>")?.render(messages, true)
    }

    #[test]
    fn a_conversation_is_written_turn_by_turn() {
        let messages = [Message::user("Hi"), Message::assistant("Hello"), Message::user("Bye")];
        let expected = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n\
            <|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(render(CHATML, &messages).unwrap(), expected);
        let template = ChatTemplate::new(CHATML, "", "").unwrap();
        assert_eq!(template.render(&messages[..1], false).unwrap(), "<|im_start|>user\nHi<|im_end|>\n");
    }

    #[test]
    fn tokens_and_blocks_are_written_as_hugging_face_does() {
        let source = "{{ bos_token }}\n  {% for message in messages %}\n[{{ message.content | trim }}]\n  {% endfor %}\n{% if tools is none %}\nno tools{% endif %}{{ eos_token }}\n";
        assert_eq!(render(source, &[Message::user(" a ")]).unwrap(), "<s>\n[a]\nno tools</s>");
    }

    #[test]
    fn methods_of_python_strings_and_dicts_work() {
        for (expression, expected) in [
            ("' a '.strip()", "a"),
            ("'xxaxx'.lstrip('x')", "axx"),
            ("'a \n'.rstrip()", "a"),
            ("'</think>x'.split('</think>')[-1]", "x"),
            ("'a  b'.split() | length", "2"),
            ("'a,b,c'.split(',', 1)[1]", "b,c"),
            ("'abc'.startswith('ab')", "True"),
            ("'abc'.endswith('ab')", "False"),
            ("'a-b'.replace('-', '+')", "a+b"),
            ("'aB'.upper() ~ 'aB'.lower() ~ 'aB'.capitalize()", "ABabAb"),
            ("messages[0].get('role') ~ messages[0].get('name', 'none')", "usernone"),
            ("messages[0].items() | length", "2"),
            ("messages[0].keys() | sort | join(',')", "content,role"),
        ] {
            let rendered = render(&format!("{{{{ {expression} }}}}"), &[Message::user("x")]).unwrap();
            assert_eq!(rendered, expected, "{expression}");
        }
    }

    #[test]
    fn a_refusal_carries_the_words_of_the_template() {
        let source = "{% macro check() %}{{ raise_exception('roles must alternate') }}{% endmacro %}{{ check() }}";
        match render(source, &[]) {
            Err(TemplateError::Refused { message }) => assert_eq!(message, "roles must alternate"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn hostile_templates_end_in_an_error() {
        let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
        assert!(matches!(render(endless, &[]), Err(TemplateError::OutOfFuel { .. })));
        let large = "{% for a in range(99) %}{{ 'x' * 100000 }}{% endfor %}";
        assert!(matches!(render(large, &[]), Err(TemplateError::ResultTooLarge { .. })));
        let recursive = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
        assert!(matches!(render(recursive, &[]), Err(TemplateError::Template { .. })));
        let nested = format!("{{{{ {}1{} }}}}", "(".repeat(50_000), ")".repeat(50_000));
        assert!(matches!(render(&nested, &[]), Err(TemplateError::Template { .. })));
        assert!(matches!(render(&"x".repeat(200_000), &[]), Err(TemplateError::TooLarge { .. })));
        for source in ["{% include '/etc/passwd' %}", "{{ open('x') }}", "{{ ''.__class__.mro() }}", "{% if %}"] {
            assert!(matches!(render(source, &[]), Err(TemplateError::Template { .. })), "{source}");
        }
    }

    /// The turns of a ChatML text.
    fn turns(prompt: &str) -> Vec<Message> {
        let turns = prompt.split("<|im_start|>").filter_map(|turn| turn.strip_suffix("<|im_end|>\n")?.split_once('\n'));
        turns.map(|(role, content)| Message::new(role, content)).collect()
    }

    /// MYNAH_SMOLLM2 names the model file, MYNAH_REFERENCE_DATA the folder of figures that others made from it.
    #[test]
    fn smollm2_prompts_are_those_of_llama_cpp_and_of_hugging_face() {
        use crate::tokenizer::ParseSpecial;
        use std::path::PathBuf;
        let folder = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let (Some(model), Some(data)) = (folder("MYNAH_SMOLLM2"), folder("MYNAH_REFERENCE_DATA")) else {
            eprintln!("skipped: MYNAH_SMOLLM2 or MYNAH_REFERENCE_DATA is not set");
            return;
        };
        let gguf = Gguf::open(&model).unwrap();
        let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
        let template = ChatTemplate::from_gguf(&gguf, &tokenizer).unwrap();
        let json = |path: &str| -> serde_json::Value {
            serde_json::from_str(&std::fs::read_to_string(data.join(path)).unwrap()).unwrap()
        };
        let encode = |messages: &[Message], prompt: bool| {
            tokenizer.encode(&template.render(messages, prompt).unwrap(), ParseSpecial::Yes)
        };

        let mut chats = 0;
        for case in json("llamacpp/greedy.json")["cases"].as_array().unwrap() {
            if case["kind"] == "chat" {
                let prompt = case["prompt"].as_str().unwrap();
                let ids: Vec<u32> = serde_json::from_value(case["prompt_ids"].clone()).unwrap();
                let messages = turns(prompt);
                assert_eq!(template.render(&messages, true).unwrap(), prompt);
                assert_eq!(encode(&messages, true), ids);
                if messages[0].content.contains("SmolLM") {
                    assert_eq!(encode(&messages[1..], true), ids, "this is what the system says by default");
                }
                chats += 1;
            }
        }
        assert!(chats > 0);

        let bytes = std::fs::read(data.join("smollm2/reference.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let read = |name: &str| -> (usize, Vec<i64>) {
            let tensor = tensors.tensor(name).unwrap();
            let values = tensor.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
            (tensor.shape()[1], values)
        };
        let ((cols, ids), (_, mask)) = (read("chat.input_ids"), read("chat.attention_mask"));
        for (row, chat) in json("smollm2/texts.json")["chats"].as_array().unwrap().iter().enumerate() {
            let messages = [Message::user(chat[0].as_str().unwrap()), Message::assistant(chat[1].as_str().unwrap())];
            let len = mask[row * cols..][..cols].iter().filter(|mask| **mask == 1).count();
            let expected: Vec<u32> = ids[row * cols..][..len].iter().map(|id| *id as u32).collect();
            assert_eq!(encode(&messages, false), expected);
        }
    }
}
