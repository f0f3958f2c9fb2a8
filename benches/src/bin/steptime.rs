//! What a learning step costs: with few and with many records in the store, and I-LoRA beside plain LoRA.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use mynah::example::ExampleId;
use mynah::learn::{Examples, Ilora, Method, Sequential};
use mynah::session::{Interaction, LearnRequest, PromptFormat};
use mynah::{Budget, Session};
use mynah_benches::arguments::StepArgs;
use mynah_benches::model;
use mynah_benches::report::{self, Report, table};
use mynah_benches::spread::Spread;
use mynah_benches::steps::{Learning, Rows};
use mynah_models::Stop;
use serde::Serialize;

/// Measure what a learning step costs.
///
/// 1. A step of a session, commit and replay from the store included, with few and with many records in the store. The two take
///    turns.
/// 2. A step of I-LoRA with as many replayed rows as new ones, over a plain LoRA step on the same new rows. The two take turns.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    step: StepArgs,
    /// Records of the small store
    #[arg(long, default_value_t = 10)]
    few: usize,
    /// Records of the large store
    #[arg(long, default_value_t = 100_000)]
    many: usize,
    /// Pairs of steps
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    pairs: u16,
    /// Where stores are made for the time of the measurement
    #[arg(long, value_name = "DIR", default_value = ".")]
    folder: std::path::PathBuf,
}

/// New examples of a step.
const BATCH_ROWS: usize = 4;
/// A step in a full store over one in an almost empty store.
const GOAL_STORE: f64 = 1.05;
/// An I-LoRA step over a plain one.
const GOAL_ILORA: f64 = 2.3;
/// Records that are stored at once while a store is filled.
const FILL: usize = 1000;

#[derive(Debug, Serialize)]
struct Outcome {
    threads: usize,
    precision: &'static str,
    pairs: u16,
    few: usize,
    many: usize,
    few_seconds: Spread,
    many_seconds: Spread,
    /// Median of many over median of few.
    store_ratio: f64,
    ilora: Vec<IloraCost>,
}

#[derive(Debug, Serialize)]
struct IloraCost {
    rows: usize,
    tokens: usize,
    plain_seconds: Spread,
    ilora_seconds: Spread,
    /// Pair by pair.
    ratio: Spread,
}

fn main() -> ExitCode {
    report::exit(run())
}

fn run() -> anyhow::Result<()> {
    let mut arguments = Arguments::parse();
    if arguments.step.smoke {
        (arguments.many, arguments.pairs) = (200, 2);
    }
    let (report, file) = arguments.step.start("steptime")?;
    let (few_seconds, many_seconds) = store_steps(&arguments, &file, &report)?;
    let mut ilora = Vec::new();
    let model = model::load(&file, &arguments.step.precision.device())?;
    for (rows, tokens) in [(1, 128), (4, 128)] {
        report.note(&format!("I-LoRA and plain LoRA, {rows}x{tokens}"));
        let new = Rows::random(&model, rows, tokens, 0);
        let replayed = Rows::random(&model, rows, tokens, 1);
        let mut plain = Learning::begin(&model, Method::Sequential(Sequential))?;
        let mut both = Learning::begin(&model, Method::Ilora(Ilora::DEFAULT))?;
        let (mut plain_seconds, mut ilora_seconds) = (Vec::new(), Vec::new());
        for pair in 0..=arguments.pairs {
            let plain = seconds(|| plain.step(&new, None, &Stop::new()))?;
            let both = seconds(|| both.step(&new, Some(&replayed), &Stop::new()))?;
            // The first warms up; before it the slow learner equals the fast one, and would cost nothing.
            if pair > 0 {
                plain_seconds.push(plain);
                ilora_seconds.push(both);
            }
        }
        let ratios: Vec<f64> = ilora_seconds.iter().zip(&plain_seconds).map(|(ilora, plain)| ilora / plain).collect();
        ilora.push(IloraCost {
            rows,
            tokens,
            plain_seconds: Spread::of(&plain_seconds),
            ilora_seconds: Spread::of(&ilora_seconds),
            ratio: Spread::of(&ratios),
        });
    }
    let outcome = Outcome {
        threads: arguments.step.threads,
        precision: arguments.step.precision.name(),
        pairs: arguments.pairs,
        few: arguments.few,
        many: arguments.many,
        store_ratio: many_seconds.median / few_seconds.median,
        few_seconds,
        many_seconds,
        ilora,
    };
    report.finish(&outcome, || text(&outcome))
}

/// Times of a session's steps with few and with many records in its store.
fn store_steps(arguments: &Arguments, file: &Path, report: &Report) -> anyhow::Result<(Spread, Spread)> {
    let folder = tempfile::tempdir_in(&arguments.folder).context("cannot make a folder for stores; give --folder")?;
    let mut few = Taught::with(arguments, arguments.few, file, &folder.path().join("few"), report)?;
    let mut many = Taught::with(arguments, arguments.many, file, &folder.path().join("many"), report)?;
    report.note("steps in both stores");
    let (mut few_seconds, mut many_seconds) = (Vec::new(), Vec::new());
    for pair in 0..=arguments.pairs {
        let times = (few.step()?, many.step()?);
        if pair > 0 {
            few_seconds.push(times.0);
            many_seconds.push(times.1);
        }
    }
    Ok((Spread::of(&few_seconds), Spread::of(&many_seconds)))
}

/// A session that was taught something, has learned half of it, and is learning the rest.
struct Taught {
    session: Session,
    request: LearnRequest,
}

impl Taught {
    fn with(arguments: &Arguments, records: usize, file: &Path, store: &Path, report: &Report) -> anyhow::Result<Self> {
        report.note(&format!("a store of {records} records"));
        let mut session = Session::builder(file).store(store).precision(arguments.step.precision.precision()).open()?;
        let mut ids = Vec::new();
        for first in (0..records).step_by(FILL) {
            let interactions: Vec<Interaction> = (first..records.min(first + FILL)).map(interaction).collect();
            ids.extend(session.observe_batch(&interactions)?);
        }
        // The first rows are learned in a run of their own, so that the next one has something to replay.
        let (old, new) = ids.split_at(BATCH_ROWS.min(ids.len() / 2));
        session.learn(&request(old, 1), Budget::unlimited())?;
        let new = new[new.len() - BATCH_ROWS.min(new.len())..].to_vec();
        Ok(Self { session, request: request(&new, 1 << 20) })
    }

    /// Seconds of one step, its commit included.
    fn step(&mut self) -> anyhow::Result<f64> {
        let report = self.session.learn(&self.request, Budget::steps(1))?;
        anyhow::ensure!(report.steps == 1, "{} steps were taken, not 1", report.steps);
        Ok(report.elapsed.as_secs_f64())
    }
}

fn request(ids: &[ExampleId], steps: u64) -> LearnRequest {
    let examples = Examples::These(ids.to_vec());
    LearnRequest { examples, steps: Some(steps), batch_rows: BATCH_ROWS, ..LearnRequest::default() }
}

/// Something to teach; all of one length, so that all steps do the same work.
fn interaction(number: usize) -> Interaction {
    Interaction {
        prompt: format!("What is kept in the drawer with the number {number:06}?"),
        answer: format!("The drawer with the number {number:06} keeps a ball of wool and two keys."),
        format: PromptFormat::Raw { join: " ".to_owned() },
        task: "drawers".to_owned(),
    }
}

fn seconds<T, E: Into<anyhow::Error>>(work: impl FnOnce() -> Result<T, E>) -> anyhow::Result<f64> {
    let started = Instant::now();
    work().map_err(Into::into)?;
    Ok(started.elapsed().as_secs_f64())
}

fn text(outcome: &Outcome) -> String {
    let verdict = |is_met: bool| if is_met { "met" } else { "missed" };
    let Outcome { few, many, few_seconds, many_seconds, store_ratio, .. } = outcome;
    let rows: Vec<Vec<String>> = outcome
        .ilora
        .iter()
        .map(|cost| {
            let Spread { median, lowest, highest } = cost.ratio;
            vec![
                format!("{}x{}", cost.rows, cost.tokens),
                format!("{:.3}", cost.plain_seconds.median),
                format!("{:.3}", cost.ilora_seconds.median),
                format!("{median:.2} ({lowest:.2} to {highest:.2})"),
                verdict(median <= GOAL_ILORA).to_owned(),
            ]
        })
        .collect();
    format!(
        "a step with {few} records: {:.3} s; with {many}: {:.3} s, {store_ratio:.3} times as long; goal {GOAL_STORE} {}\n\n\
         I-LoRA at replay ratio 1:1 over plain LoRA, goal {GOAL_ILORA}\n{}",
        few_seconds.median,
        many_seconds.median,
        verdict(*store_ratio <= GOAL_STORE),
        table(&["new rows", "plain s", "I-LoRA s", "ratio", "goal"], &rows),
    )
}
