//! Several processes do the same work in turns, so that what the machine does besides meets all of them.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;

use crate::spread::Spread;
use crate::worker::{Answer, Kind, Request, Workload};

/// How far two sides' first losses may differ if they compute the same: bf16 rounds each weight by up to 0.4 %.
const LOSS_TOLERANCE: f64 = 0.02;
/// Time between two passes, so that threads which spin while they wait have gone to sleep.
const PAUSE: Duration = Duration::from_millis(200);

/// One side of a race.
#[derive(Debug)]
pub struct Side {
    /// Its name in reports.
    pub name: String,
    /// The process that answers its requests.
    pub command: Command,
}

/// What one side did.
#[derive(Debug, Serialize)]
pub struct SideResult {
    /// Its name.
    pub name: String,
    /// Duration of a pass.
    pub seconds: Spread,
    /// Tokens of a pass over the median duration.
    pub tokens_per_s: f64,
    /// Largest resident size of its process, which did nothing else, in bytes.
    pub peak_rss_bytes: Option<u64>,
    /// Loss of the pass that warmed it up.
    pub first_loss: Option<f64>,
    /// How many times as long as ours its passes took, pair by pair; 1 for ours.
    pub time_ratio: Spread,
}

/// Races `sides`, of which the first is ours, over `rounds` passes each.
///
/// # Errors
/// If a side fails, or does not compute what the others do.
pub fn race(sides: &mut [Side], workload: &Workload, rounds: usize) -> anyhow::Result<Vec<SideResult>> {
    let mut processes = Vec::new();
    for side in sides.iter_mut() {
        let mut process = Process::start(side)?;
        let answer = process.ask(&Request::Prepare(workload.clone()))?;
        processes.push((process, answer.loss, Vec::new()));
    }
    check_losses(&processes)?;
    for round in 0..rounds {
        // Whoever comes first in one round comes last in the next.
        processes.rotate_left(round.min(1));
        for (process, _, seconds) in &mut processes {
            std::thread::sleep(PAUSE);
            let answer = process.ask(&Request::Run(true))?;
            seconds.push(answer.seconds.with_context(|| format!("{} gave no time", process.name))?);
        }
    }
    let first = processes.iter().position(|(process, _, _)| process.name == sides[0].name).unwrap_or_default();
    processes.rotate_left(first);
    let ours = processes[0].2.clone();
    let tokens = (workload.rows * workload.tokens) as f64;
    let mut results = Vec::new();
    for (mut process, first_loss, seconds) in processes {
        let ratios: Vec<f64> = seconds.iter().zip(&ours).map(|(theirs, ours)| theirs / ours).collect();
        let spread = Spread::of(&seconds);
        results.push(SideResult {
            peak_rss_bytes: process.ask(&Request::Memory(true))?.peak_rss_bytes,
            name: process.name.clone(),
            tokens_per_s: tokens / spread.median,
            seconds: spread,
            first_loss,
            time_ratio: Spread::of(&ratios),
        });
    }
    Ok(results)
}

/// Times from the start of a process to the first token after a prompt, in seconds.
///
/// # Errors
/// If the process fails.
pub fn first_token_seconds(
    mut command: impl FnMut() -> Side,
    workload: &Workload,
    rounds: usize,
) -> anyhow::Result<Spread> {
    let mut seconds = Vec::new();
    // The first fills the page cache.
    for round in 0..=rounds {
        std::thread::sleep(PAUSE);
        let started = Instant::now();
        let mut process = Process::start(&mut command())?;
        process.ask(&Request::Prepare(Workload { kind: Kind::Start, ..workload.clone() }))?;
        process.ask(&Request::Run(true))?;
        if round > 0 {
            seconds.push(started.elapsed().as_secs_f64());
        }
    }
    Ok(Spread::of(&seconds))
}

fn check_losses(processes: &[(Process, Option<f64>, Vec<f64>)]) -> anyhow::Result<()> {
    let Some((ours, Some(expected), _)) = processes.first() else { return Ok(()) };
    for (theirs, loss, _) in processes {
        let Some(loss) = loss else { continue };
        if (loss - expected).abs() > LOSS_TOLERANCE * expected.abs() {
            bail!("{} and {} do not compute the same: losses {expected:.4} and {loss:.4}", ours.name, theirs.name);
        }
    }
    Ok(())
}

/// A running side.
#[derive(Debug)]
struct Process {
    name: String,
    child: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Process {
    fn start(side: &mut Side) -> anyhow::Result<Self> {
        let spawned = side.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut child = spawned.with_context(|| format!("cannot start {}", side.name))?;
        let requests = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().context("the process has no output")?);
        Ok(Self { name: side.name.clone(), child, requests, answers })
    }

    fn ask(&mut self, request: &Request) -> anyhow::Result<Answer> {
        let requests = self.requests.as_mut().context("the process has no input")?;
        writeln!(requests, "{}", serde_json::to_string(request)?)?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if line.is_empty() {
            bail!("{} ended in the middle of a request; run its command by hand to see why", self.name);
        }
        let answer: Answer = serde_json::from_str(&line).with_context(|| format!("{} answered {line:?}", self.name))?;
        match &answer.error {
            Some(error) => bail!("{}: {error}", self.name),
            None => Ok(answer),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It ends with its input.
        self.requests = None;
        if self.child.wait().is_err() {
            eprintln!("warning: {} may still run", self.name);
        }
    }
}
