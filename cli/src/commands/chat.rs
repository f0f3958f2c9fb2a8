//! `mynah chat`: talk to the model, correct it, let it learn, and find it wiser next time.
//!
//! On a terminal lines are edited and remembered; from a pipe they are simply read, so that a conversation can be
//! scripted.

use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;

use mynah::example::ExampleId;
use mynah::generate::{GenerateError, GenerateOptions, StopReason};
use mynah::session::{Interaction, LearnRequest, PromptFormat};
use mynah::store::{BackTo, Forget};
use mynah::{Budget, Session, SessionError};
use mynah_models::chat_template::Message;
use rustyline::error::ReadlineError;
use serde::Serialize;

use crate::commands::generate::{SamplingArgs, has_chat_template, streamed};
use crate::commands::store::receipt;
use crate::error::CliError;
use crate::interrupt;
use crate::method::{LoraArgs, MethodArgs};
use crate::open::{self, ModelArg};
use crate::options::Options;
use crate::output::Output;
use crate::progress::note;

const HELP: &str = "\
/teach TEXT   the right answer to what you asked last; it goes into the store at once
/learn [N]    learn what was taught and not learned yet, in N steps
/undo         go back to what was known before the last /learn of this chat
/forget ID    forget what was taught, and what was learned from it; also: /forget last, /forget task NAME
/status       what is in the store, and how much of it is learned
/new          start a new conversation; nothing learned is lost
/help         this list
/quit         leave; so does the end of input";

/// Talk to the model and teach it.
///
/// Everything taught is kept in the store; everything learned is there again the next time.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mynah chat -m smollm2-135m-instruct --store ~/bird
  printf 'Who founded Brindlewick?\\n/teach Marta Quill\\n/learn\\nWho founded Brindlewick?\\n' \\
    | mynah chat -m smollm2-135m-instruct --store ~/bird

Commands inside: /teach /learn /undo /forget /status /new /help /quit")]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    model: ModelArg,
    /// The store; made if it is not there
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    lora: LoraArgs,
}

/// What happened, for `--json`: one of these for each line of input.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Turn {
    Answer { prompt: String, ids: Vec<u32>, text: String, stop_reason: &'static str },
    Command { command: String, message: String },
}

#[derive(Debug, Serialize)]
struct Document {
    turns: Vec<Turn>,
}

/// Runs the verb.
pub(crate) fn run(args: &ChatArgs, options: &Options, output: Output) -> Result<(), CliError> {
    let builder = open::builder(&args.model.model, options)?.store(&args.store);
    let session = open::open(args.method.apply(&args.lora, builder))?;
    let uses_template = has_chat_template(&session);
    let mut lines = Lines::open()?;
    if lines.is_terminal() {
        note("Say something. /teach corrects the last answer, /learn learns it, /help tells more, /quit leaves.");
    }
    let mut chat = Chat {
        session,
        uses_template,
        generate_options: args.sampling.options(options.seed),
        request: args.method.request(),
        messages: Vec::new(),
        last_prompt: None,
        last_taught: None,
        before_learning: Vec::new(),
        output,
    };
    let mut turns = Vec::new();
    while let Some(line) = lines.next()? {
        // Ctrl-C during the last turn ended that turn, not the chat.
        interrupt::reset();
        match chat.turn(line.trim()) {
            Ok(Some(turn)) => turns.push(turn),
            Ok(None) => break,
            // A person reads what went wrong and goes on; a script stops at its first failure.
            Err(error) if lines.is_terminal() => note(&error.text()),
            Err(error) => return Err(error),
        }
    }
    output.document(&Document { turns })
}

struct Chat {
    session: Session,
    uses_template: bool,
    generate_options: GenerateOptions,
    request: LearnRequest,
    messages: Vec<Message>,
    last_prompt: Option<String>,
    last_taught: Option<ExampleId>,
    /// The revision before each `/learn` of this chat; 0 where nothing had ever been learned.
    before_learning: Vec<u64>,
    output: Output,
}

impl Chat {
    /// Serves one line of input; none ends the chat.
    fn turn(&mut self, line: &str) -> Result<Option<Turn>, CliError> {
        let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let message = match command {
            "/quit" | "/exit" => return Ok(None),
            "" => String::new(),
            "/help" => HELP.to_owned(),
            "/new" => {
                self.messages.clear();
                "a new conversation".to_owned()
            }
            "/teach" => self.teach(rest.trim())?,
            "/learn" => self.learn(rest.trim())?,
            "/undo" => self.undo()?,
            "/status" => self.status(),
            "/forget" => self.forget(rest.trim())?,
            _ if command.starts_with('/') => format!("no command is called {command}; /help lists them"),
            _ => return self.answer(line).map(Some),
        };
        if !message.is_empty() {
            self.output.line(&message)?;
        }
        Ok(Some(Turn::Command { command: line.to_owned(), message }))
    }

    fn answer(&mut self, prompt: &str) -> Result<Turn, CliError> {
        self.messages.push(Message::user(prompt));
        let generation = loop {
            let Self { session, messages, generate_options, output, .. } = self;
            let attempt = if self.uses_template {
                streamed(*output, |on_text| Ok(session.chat(messages, generate_options, on_text)?))
            } else {
                streamed(*output, |on_text| Ok(session.generate(prompt, generate_options, on_text)?))
            };
            match attempt {
                // The oldest turn makes room for the newest.
                Err(CliError::Session(SessionError::Generate(GenerateError::PromptTooLong { .. })))
                    if self.messages.len() > 2 =>
                {
                    self.messages.drain(..2);
                }
                Err(error) => {
                    // The chat goes on without what could not be answered.
                    self.messages.pop();
                    return Err(error);
                }
                Ok(generation) => break generation,
            }
        };
        self.output.line("")?;
        if generation.stop_reason == StopReason::ContextFull {
            note("the context is full; /new starts a new conversation");
        }
        self.messages.push(Message::assistant(&generation.text));
        self.last_prompt = Some(prompt.to_owned());
        Ok(Turn::Answer {
            prompt: prompt.to_owned(),
            ids: generation.ids,
            text: generation.text,
            stop_reason: generation.stop_reason.name(),
        })
    }

    fn teach(&mut self, answer: &str) -> Result<String, CliError> {
        let Some(prompt) = &self.last_prompt else {
            return Ok("ask something first; /teach then gives the right answer to it".to_owned());
        };
        if answer.is_empty() {
            return Ok("write the right answer behind it: /teach Marta Quill".to_owned());
        }
        let format = if self.uses_template { PromptFormat::Chat } else { PromptFormat::raw() };
        let id = self.session.observe(&Interaction {
            prompt: prompt.clone(),
            answer: answer.to_owned(),
            format,
            task: Interaction::DEFAULT_TASK.to_owned(),
        })?;
        self.last_taught = Some(id);
        Ok(format!("noted: \"{prompt}\" is answered by \"{answer}\"; /learn makes it stick"))
    }

    fn learn(&mut self, steps: &str) -> Result<String, CliError> {
        let steps = match steps {
            "" => None,
            text => match text.parse() {
                Ok(steps) if steps > 0 => Some(steps),
                _ => return Ok(format!("{text} is no number of steps: /learn 40")),
            },
        };
        let before = self.session.status();
        if before.examples == before.learned && before.run.as_ref().is_none_or(|run| run.steps_done == run.steps_total)
        {
            return Ok("there is nothing new to learn; /teach gives something".to_owned());
        }
        let request = LearnRequest { steps, ..self.request.clone() };
        let report =
            open::watched(&mut self.session, "learning", |session| session.learn(&request, Budget::unlimited()))?;
        self.before_learning.push(before.revision.unwrap_or(0));
        // Old wrong answers in the context would speak against what was just learned.
        self.messages.clear();
        let how = report.stopped_by.name();
        Ok(format!("learned: {} steps, loss {:.3} ({how}); a new conversation begins", report.steps, report.loss))
    }

    fn forget(&mut self, what: &str) -> Result<String, CliError> {
        let request = match (what, what.split_once(char::is_whitespace)) {
            ("last", _) => match self.last_taught {
                Some(id) => Forget::Ids(vec![id]),
                None => return Ok("nothing was taught in this chat; /forget takes a number too".to_owned()),
            },
            (_, Some(("task", name))) => Forget::Task(name.trim().to_owned()),
            (id, _) => match id.parse() {
                Ok(id) => Forget::Ids(vec![ExampleId(id)]),
                Err(_) => return Ok("say what: /forget 12, /forget last, /forget task NAME".to_owned()),
            },
        };
        let receipt = self.session.forget(&request)?;
        if self.last_taught.is_some_and(|id| receipt.records.contains(id)) {
            self.last_taught = None;
        }
        if receipt.back_to != BackTo::Unchanged {
            // What was known before a /learn of this chat may have been known from what is forgotten.
            self.before_learning.clear();
        }
        self.messages.clear();
        Ok(receipt::text(&receipt))
    }

    fn undo(&mut self) -> Result<String, CliError> {
        let Some(revision) = self.before_learning.last().copied() else {
            return Ok("nothing was learned in this chat that could be undone".to_owned());
        };
        self.session.rollback(revision)?;
        self.before_learning.pop();
        self.messages.clear();
        Ok(match revision {
            0 => "nothing is learned any more; a new conversation begins".to_owned(),
            revision => format!("back at revision {revision}; a new conversation begins"),
        })
    }

    fn status(&self) -> String {
        let status = self.session.status();
        let revision = status.revision.map_or_else(|| "none".to_owned(), |revision| revision.to_string());
        format!(
            "{} examples in the store, {} of them learned; {} steps taken; revision {revision}; on {}",
            status.examples, status.learned, status.steps, status.device,
        )
    }
}

/// Lines from a person or from a pipe.
enum Lines {
    Terminal(Box<rustyline::DefaultEditor>),
    Pipe,
}

impl Lines {
    fn open() -> Result<Self, CliError> {
        if !std::io::stdin().is_terminal() {
            return Ok(Self::Pipe);
        }
        let editor = rustyline::DefaultEditor::new().map_err(|source| CliError::Terminal { source })?;
        Ok(Self::Terminal(Box::new(editor)))
    }

    fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }

    /// The next line, or none at the end of input.
    fn next(&mut self) -> Result<Option<String>, CliError> {
        match self {
            Self::Pipe => {
                let mut line = String::new();
                let read = std::io::stdin().lock().read_line(&mut line).map_err(|source| CliError::Stdin { source })?;
                Ok(if read == 0 { None } else { Some(line) })
            }
            Self::Terminal(editor) => loop {
                match editor.readline("> ") {
                    Ok(line) => {
                        // History is a comfort: a line that cannot be kept is no error.
                        let _ = editor.add_history_entry(&line);
                        return Ok(Some(line));
                    }
                    Err(ReadlineError::Interrupted) => note("/quit leaves"),
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(source) => return Err(CliError::Terminal { source }),
                }
            },
        }
    }
}
