//! Races Mynah and its peers in alternation on this machine.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use mynah_benches::model::{ModelArgs, PrecisionArgs, random_ids};
use mynah_benches::peers::Environment;
use mynah_benches::race::{Side, SideResult, first_token_seconds, race};
use mynah_benches::report::{self, OutputArgs, Report, table};
use mynah_benches::spread::Spread;
use mynah_benches::worker::{self, Kind, Workload};
use mynah_models::ModelConfig;
use mynah_models::weights::Gguf;
use serde::Serialize;

/// Race Mynah and its peers, in alternation, with the same model, tokens, rank and threads.
///
/// Each side is a process of its own, so that its memory is its own. All are loaded and warmed up, then each makes one pass
/// after the other, whoever was first in one round being last in the next. A ratio is the peer's time over ours of the same
/// round; above 1 we are faster. The first losses of all sides must agree, or they would not compute the same.
///
/// Training is one AdamW step of a LoRA adapter on all seven projections. Peers: PyTorch with PEFT in f32 and with the base in
/// bf16; llama-cpp-python with the same weights as Q4_0, Q8_0 and Q4_1.
#[derive(Debug, Parser)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  compare setup --env ~/peers                     build the peers' Python environment, once
  compare --env ~/peers                           everything; half an hour
  compare --env ~/peers --only train --shapes 1x128,4x128 --pairs 7 --json
  compare --alone --only decode                   our side only, without peers"
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Action>,
    #[command(flatten)]
    race: RaceArgs,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Build the peers' environment from the package index, and convert the model for them
    Setup {
        /// The folder of the environment
        #[arg(long, value_name = "DIR")]
        env: Option<PathBuf>,
        /// The Python that makes it
        #[arg(long, value_name = "FILE", default_value = "python3")]
        python: PathBuf,
        #[command(flatten)]
        model: ModelArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Answer the requests of a race
    #[command(hide = true)]
    Worker {
        /// The model
        file: PathBuf,
        #[command(flatten)]
        precision: PrecisionArgs,
    },
}

#[derive(Debug, clap::Args)]
struct RaceArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The folder that `compare setup` has made
    #[arg(long, value_name = "DIR")]
    env: Option<PathBuf>,
    /// What to race
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["train", "prefill", "decode", "start"])]
    only: Vec<Kind>,
    /// train: sequences of a step x tokens of each
    #[arg(long, value_delimiter = ',', value_parser = shape, default_values = ["1x128", "1x256", "4x128", "8x64", "1x512"])]
    shapes: Vec<(usize, usize)>,
    /// train: tokens of a sequence, counted from its end, that the loss is taken on; `all` for every one that can be
    #[arg(long, value_delimiter = ',', default_values = ["all", "32"])]
    scored: Vec<String>,
    /// prefill: tokens of the prompt
    #[arg(long, value_delimiter = ',', default_values_t = [128, 512])]
    prompts: Vec<usize>,
    /// How many passes each side makes
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pairs: u16,
    /// Threads of each side
    #[arg(long, default_value_t = 2)]
    threads: usize,
    #[command(flatten)]
    precision: PrecisionArgs,
    /// Rank of the adapter
    #[arg(long, default_value_t = 8)]
    rank: usize,
    /// Race nobody: our figures only
    #[arg(long)]
    alone: bool,
    /// Try the program itself in seconds: ours against ours, on a tiny model
    #[arg(long)]
    smoke: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// The goals that the project has set itself: how many times as fast as the fastest peer.
const GOAL: f64 = 1.5;
/// The same where the loss is taken on the last tokens only, so that a side may save the rest of the output matrix.
const GOAL_FEW_SCORED: f64 = 2.0;
/// From the start of the process to the first token after [`START_PROMPT_TOKENS`], in seconds.
const GOAL_START_SECONDS: f64 = 0.120;
const START_PROMPT_TOKENS: usize = 64;
const DECODE_TOKENS: usize = 128;

#[derive(Debug, Serialize)]
struct Outcome {
    threads: usize,
    precision: &'static str,
    rank: usize,
    pairs: u16,
    races: Vec<RaceOutcome>,
    first_token_seconds: Option<Spread>,
}

#[derive(Debug, Serialize)]
struct RaceOutcome {
    workload: String,
    sides: Vec<SideResult>,
    /// The fastest peer, and how many times as fast as it ours is, median of the pairs.
    fastest_peer: Option<String>,
    ratio: Option<Spread>,
    goal: f64,
}

fn main() -> ExitCode {
    report::exit(run())
}

fn run() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    match arguments.command {
        Some(Action::Worker { file, precision }) => worker::serve(&file, &precision.device()),
        Some(Action::Setup { env, python, model, output }) => {
            let report = Report::start("compare setup", output);
            let environment = Environment::at(env)?;
            environment.set_up(&python, &model.file(false)?, &mut |text| report.note(text))?;
            report.finish(&environment.folder(), || format!("{} is ready", environment.folder().display()))
        }
        None => Racing::new(arguments.race)?.run(),
    }
}

struct Racing {
    args: RaceArgs,
    file: PathBuf,
    environment: Option<Environment>,
    vocab_size: usize,
    report: Report,
}

impl Racing {
    fn new(mut args: RaceArgs) -> anyhow::Result<Self> {
        let report = Report::start("compare", args.output);
        if args.smoke {
            (args.shapes, args.prompts, args.pairs) = (vec![(1, 40)], vec![16], 2);
        }
        let file = args.model.file(args.smoke)?;
        let environment = match args.alone || args.smoke {
            true => None,
            false => Some(Environment::at(args.env.clone())?),
        };
        if let Some(environment) = &environment {
            let missing = environment.missing(&file)?;
            if !missing.is_empty() {
                let folder = environment.folder().display();
                bail!("missing: {}; run `compare setup --env {folder}`, or race --alone", missing.join("; "));
            }
        }
        let vocab_size = ModelConfig::from_gguf(Gguf::open(&file)?.as_ref())?.vocab_size;
        Ok(Self { args, file, environment, vocab_size, report })
    }

    fn run(&self) -> anyhow::Result<()> {
        let args = &self.args;
        let mut outcome = Outcome {
            threads: args.threads,
            precision: args.precision.name(),
            rank: args.rank,
            pairs: args.pairs,
            races: Vec::new(),
            first_token_seconds: None,
        };
        for kind in &args.only {
            match kind {
                Kind::Train => {
                    for &(rows, tokens) in &args.shapes {
                        for scored in &args.scored {
                            outcome.races.push(self.train(rows, tokens, scored)?);
                        }
                    }
                }
                Kind::Prefill => {
                    for &tokens in &args.prompts {
                        outcome.races.push(self.infer(Kind::Prefill, tokens)?);
                    }
                }
                Kind::Decode => outcome.races.push(self.infer(Kind::Decode, DECODE_TOKENS)?),
                Kind::Start => {
                    self.report.note("start to first token");
                    let workload = self.workload(Kind::Start, 1, START_PROMPT_TOKENS, 0);
                    let ours = || Side { name: "mynah".to_owned(), command: self.ours() };
                    outcome.first_token_seconds = Some(first_token_seconds(ours, &workload, usize::from(args.pairs))?);
                }
            }
        }
        self.report.finish(&outcome, || text(&outcome))
    }

    fn train(&self, rows: usize, tokens: usize, scored: &str) -> anyhow::Result<RaceOutcome> {
        let (count, goal) = match scored {
            "all" => (tokens - 1, GOAL),
            count => {
                let count = count.parse().with_context(|| format!("--scored {count} is no number"))?;
                (tokens.saturating_sub(1).min(count), GOAL_FEW_SCORED)
            }
        };
        let mut sides = self.sides();
        if let Some(environment) = &self.environment {
            for precision in ["f32", "bf16"] {
                let mut command = environment.script("peft_train.py");
                command.arg(environment.hf_folder()).arg(precision);
                sides.push(Side { name: format!("peft {precision}"), command });
            }
        }
        let name = format!("train {rows}x{tokens}, loss on {scored}");
        self.race(name, sides, &self.workload(Kind::Train, rows, tokens, count), goal, |_| true)
    }

    fn infer(&self, kind: Kind, tokens: usize) -> anyhow::Result<RaceOutcome> {
        let mut sides = self.sides();
        if let Some(environment) = &self.environment {
            for tensor_type in ["Q4_0", "Q8_0", "Q4_1"] {
                let mut command = environment.script("llamacpp.py");
                command.arg(if tensor_type == "Q4_1" { self.file.clone() } else { environment.gguf(tensor_type) });
                sides.push(Side { name: format!("llama.cpp {tensor_type}"), command });
            }
        }
        let name = format!("{} {tokens}", if kind == Kind::Prefill { "prefill" } else { "decode" });
        // Decoding is bound by the bytes of the weights, so it is raced on the same file; a prompt by arithmetic, so any will do.
        let counts = |name: &str| kind == Kind::Prefill || name.ends_with("Q4_1");
        self.race(name, sides, &self.workload(kind, 1, tokens, 0), GOAL, counts)
    }

    fn race(
        &self,
        name: String,
        mut sides: Vec<Side>,
        workload: &Workload,
        goal: f64,
        counts: impl Fn(&str) -> bool,
    ) -> anyhow::Result<RaceOutcome> {
        self.report.note(&name);
        let results = race(&mut sides, workload, usize::from(self.args.pairs))?;
        let peers = results[1..].iter().filter(|side| counts(&side.name));
        let fastest = peers.min_by(|a, b| a.seconds.median.total_cmp(&b.seconds.median));
        let (fastest_peer, ratio) = (fastest.map(|side| side.name.clone()), fastest.map(|side| side.time_ratio));
        Ok(RaceOutcome { workload: name, fastest_peer, ratio, goal, sides: results })
    }

    /// Our side, and in a trial ours once more in the place of a peer.
    fn sides(&self) -> Vec<Side> {
        let names: &[&str] = if self.args.smoke { &["mynah", "mynah again"] } else { &["mynah"] };
        names.iter().map(|&name| Side { name: name.to_owned(), command: self.ours() }).collect()
    }

    fn ours(&self) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap_or_else(|_| "compare".into()));
        command.arg("worker").arg(&self.file).args(["--precision", self.args.precision.name()]);
        command
    }

    fn workload(&self, kind: Kind, rows: usize, tokens: usize, scored: usize) -> Workload {
        let ids = random_ids(self.vocab_size, rows * tokens, 0);
        Workload { kind, rows, tokens, scored, rank: self.args.rank, threads: self.args.threads, ids }
    }
}

fn text(outcome: &Outcome) -> String {
    let mut rows = Vec::new();
    for race in &outcome.races {
        for side in &race.sides {
            let memory = side.peak_rss_bytes.map_or_else(|| "-".to_owned(), |b| format!("{:.0}", b as f64 / 1e6));
            let Spread { median, lowest, highest } = side.time_ratio;
            let verdict = match race.fastest_peer.as_ref() == Some(&side.name) {
                true if median >= race.goal => format!("goal {} met", race.goal),
                true => format!("goal {} missed", race.goal),
                false => String::new(),
            };
            rows.push(vec![
                race.workload.clone(),
                side.name.clone(),
                format!("{:.1}", side.tokens_per_s),
                format!("{:.3}", side.seconds.median),
                memory,
                format!("{median:.2} ({lowest:.2} to {highest:.2})"),
                verdict,
            ]);
        }
    }
    let header = ["workload", "side", "tokens/s", "s a pass", "peak MB", "time over ours", ""];
    let races = table(&header, &rows);
    let start = outcome.first_token_seconds.map_or_else(String::new, |Spread { median, lowest, highest }| {
        let verdict = if median <= GOAL_START_SECONDS { "met" } else { "missed" };
        format!(
            "\n\nprocess start to first token after {START_PROMPT_TOKENS}: {:.0} ms ({:.0} to {:.0}), goal {:.0} ms {verdict}",
            median * 1e3,
            lowest * 1e3,
            highest * 1e3,
            GOAL_START_SECONDS * 1e3,
        )
    });
    {
        let Outcome { threads, precision, rank, pairs, .. } = outcome;
        format!("{threads} threads, {precision} precision, rank {rank}, medians of {pairs} passes\n\n{races}{start}")
    }
}

fn shape(text: &str) -> Result<(usize, usize), String> {
    let parsed = text.split_once('x').and_then(|(rows, tokens)| Some((rows.parse().ok()?, tokens.parse().ok()?)));
    match parsed {
        Some((rows, tokens)) if rows > 0 && tokens > 1 => Ok((rows, tokens)),
        _ => Err("expected ROWSxTOKENS, as 4x128, with at least 2 tokens".to_owned()),
    }
}
